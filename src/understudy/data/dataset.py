"""Opening a data set: its format is recognised by itself, and every fault that prevents reading is named at once."""

import difflib
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from understudy.data import coco, voc, yolo
from understudy.data.images import SUFFIXES, UnreadableImage, shown_size
from understudy.data.records import SPLIT_NAMES, DetectionData, Fault, Format, Reading, Record
from understudy.errors import UserError

logger = logging.getLogger(__name__)

_FORMATS: dict[Format, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
_LISTED_FAULTS = 30  # of each kind, in one message; `understudy check` counts them all


def open_data(path: Path | str, split: str = "train") -> DetectionData:
    """Open one split of a data set in COCO, VOC or YOLO format.

    Objects whose box is empty, not finite or wholly outside its image are left out with a warning in the log.
    Image files are not opened here (except their headers, where the format does not state sizes): that is what
    `understudy check` is for.

    Args:
        path: the data set's folder, or a COCO .json, YOLO .yaml or list .txt file.
        split: a name from `splits(path)`; "val" also finds "valid" and "val2017". Or an annotation file, relative
            to `path`. A single .json or .txt file is one split, whatever its name.

    Raises:
        UserError: nothing there, no known format, no such split, or a list of every fault that prevents reading.
    """
    path = Path(path)
    format, name, read = _find_split(path, split)
    reading = read()
    add_emptiness(reading)
    if reading.faults:
        summary = f"{reading.source} cannot be used ({len(reading.faults)} faults; see also `understudy check {path}`):"
        raise UserError.listing(summary, shortened(reading.faults))
    if reading.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(f.kind for f in reading.left_out).items())
        logger.warning("%s: objects left out: %s. `understudy check %s` lists them.", reading.source, kinds, path)
    return DetectionData(
        classes=reading.classes,
        category_ids=reading.category_ids,
        records=tuple(reading.records),
        format=format,
        source=reading.source,
        split=name,
        image_root=reading.image_root,
    )


def open_unlabelled(path: Path | str, seen: Sequence[DetectionData] = ()) -> DetectionData:
    """Open images of which no labels are used, as a split without objects and classes.

    Args:
        path: a folder, in which images are looked for at any depth; or a data set, of which the split "train" is
            taken, or the only one.
        seen: splits whose images are left out: the labelled ones, and those that results are measured on. An image is
            known by its file, through links; a copy is another image.

    Raises:
        UserError: nothing there, no images, only images that are in `seen`, or a list of every image whose header
            cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"No unlabelled images at {path}: there is no such file or folder.{_closest_sibling(path)}")
    files = _files_without_labels(path)
    if not files:
        raise UserError(f"No unlabelled images at {path}: there is none in it ({', '.join(sorted(SUFFIXES))}).")
    known = {_identity(record.path) for data in seen for record in data.records if record.path.exists()}
    others = [file for file in files if not file.exists() or _identity(file) not in known]
    if not others:
        raise UserError(
            f"The {len(files)} unlabelled images of {path} are those of data.train or data.val. Name other images: "
            "labelled ones take part in the distillation already, and those of data.val must not be trained on."
        )
    records, faults = [], []
    for number, file in enumerate(others, start=1):
        try:
            records.append(Record.without_objects(number, file, shown_size(file)))
        except UnreadableImage as error:
            faults.append(str(error))
    if faults:
        raise UserError.listing(
            f"{len(faults)} of the {len(others)} unlabelled images of {path} cannot be used:", faults
        )
    return DetectionData((), (), tuple(records), format="coco", source=path, split="unlabelled")


def _files_without_labels(path: Path) -> list[Path]:
    """The image files of a data set's training split, or of a folder that is no data set."""
    try:
        names = splits(path)
    except UserError:
        if path.is_file():
            raise
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    try:
        return [record.path for record in open_data(path, names[0] if len(names) == 1 else "train").records]
    except UserError as error:
        raise UserError(f"{error}\nNo labels are needed here: name the folder of its images instead.") from None


def _identity(file: Path) -> tuple[int, int]:
    """What tells whether two paths are one file."""
    found = file.stat()
    return found.st_dev, found.st_ino


def splits(path: Path | str) -> list[str]:
    """The names of a data set's splits, as `open_data` takes them.

    Raises:
        UserError: nothing there, or no known format.
    """
    return list(find_splits(Path(path))[1])


def find_splits(path: Path, root: Path | None = None) -> tuple[Format, dict[str, Callable[[], Reading]]]:
    """The format of a data set, and its splits by short name, each with the function that reads it.

    Raises:
        UserError: nothing there, or no known format.
    """
    if not path.exists():
        raise UserError(f"No data set at {path}: there is no such file or folder.{_closest_sibling(path)}")
    for format, module in _FORMATS.items():
        if found := module.find_splits(path, root):
            return format, _with_short_names(found)
    kind = "folder" if path.is_dir() else "file"
    raise UserError.listing(
        f"{path} is a {kind} in none of the known formats. Looked for:", [m.LAYOUTS for m in _FORMATS.values()]
    )


def add_emptiness(reading: Reading) -> None:
    """Note as a fault that a split has no image, or no object to learn from."""
    if reading.faults:
        return  # they say already why nothing could be read
    if not reading.records:
        reading.fault("empty split", str(reading.source), "there is no image in it")
    elif all(record.ignore.all() for record in reading.records):  # true of no objects at all
        what = f"none of the {len(reading.records)} images has an annotated object to learn from"
        reading.fault("no annotations", str(reading.source), what)


def shortened(faults: list[Fault], limit: int = _LISTED_FAULTS) -> list[str]:
    """The faults as lines, grouped by kind; past `limit` of a kind only their number."""
    lines: list[str] = []
    for kind, count in Counter(fault.kind for fault in faults).items():
        of_kind = [fault for fault in faults if fault.kind == kind]
        lines += [f"{kind}: {fault}" for fault in of_kind[:limit]]
        if count > limit:
            lines.append(f"{kind}: and {count - limit} more")
    return lines


def _find_split(path: Path, split: str) -> tuple[Format, str, Callable[[], Reading]]:
    """The format, the split's own name and its reader."""
    if path.is_dir() and (path / split).is_file():  # an annotation file instead of a name
        format, found = find_splits(path / split, root=path)
        name, read = next(iter(found.items()))
        return format, name, read
    format, found = find_splits(path)
    names = [split, _short_name(split)]
    if path.suffix.lower() in (".json", ".txt"):  # one file is one split, whatever it is called
        names = list(found)
    for name in names:
        if name in found:
            return format, name, found[name]
    close = difflib.get_close_matches(split, found, n=1)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise UserError(f'{path} ({format}) has no split "{split}"; it has: {", ".join(found)}.{hint}')


def _with_short_names(found: dict[str, Callable[[], Reading]]) -> dict[str, Callable[[], Reading]]:
    """train2017 -> train, valid -> val, where that is unambiguous; training's splits first."""
    counts = Counter(map(_short_name, found))
    short = {_short_name(name) if counts[_short_name(name)] == 1 else name: read for name, read in found.items()}
    return dict(sorted(short.items(), key=lambda item: SPLIT_NAMES.index(item[0]) if item[0] in SPLIT_NAMES else 99))


def _short_name(name: str) -> str:
    name = re.sub(r"(?<=[a-z])[_-]?\d{4}$", "", name)
    return "val" if name in ("valid", "validation") else name


def _closest_sibling(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
