"""Opening a split of a data set: its format is detected, and every fault of its annotations is reported at once."""

import difflib
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from understudy.data import coco, voc, yolo
from understudy.data.images import SUFFIXES, UnreadableImage, shown_size
from understudy.data.records import SPLIT_NAMES, DetectionData, Fault, Format, Record, SplitDraft
from understudy.errors import UserError

logger = logging.getLogger(__name__)

_FORMATS: dict[Format, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
_LISTED_FAULTS = 30  # of each kind, in one message


def open_data(path: Path | str, split: str = "train") -> DetectionData:
    """Open one split of a data set in COCO, VOC or YOLO format.

    Objects whose box is empty, not finite or completely outside its image are left out, with a warning in the log.
    Image files are not opened (only their headers, if the format does not state sizes); `understudy check` reads them.

    Args:
        path: the data set's folder, or a COCO .json, YOLO .yaml or list .txt file.
        split: a name from `splits(path)`; "val" also finds "valid" and "val2017". Or an annotation file, relative
            to `path`. A single .json or .txt file is one split, whatever its name.

    Raises:
        UserError: the path or the split does not exist, the format is not known, or the annotations have faults (the
            message lists them).
    """
    path = Path(path)
    format, name, read = _find_split(path, split)
    draft = read()
    add_emptiness(draft)
    if draft.faults:
        summary = f"{draft.source} has {len(draft.faults)} faults (`understudy check {path}` also reads the images):"
        raise UserError.listing(summary, shortened(draft.faults))
    if draft.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(f.kind for f in draft.left_out).items())
        logger.warning("%s: objects left out: %s. `understudy check %s` lists them.", draft.source, kinds, path)
    return DetectionData(
        classes=draft.classes,
        category_ids=draft.category_ids,
        records=tuple(draft.records),
        format=format,
        source=draft.source,
        split=name,
        image_root=draft.image_root,
    )


def open_unlabelled(path: Path | str, seen: Sequence[DetectionData] = ()) -> DetectionData:
    """Open images without labels, as a split without objects and classes.

    Args:
        path: a folder, searched to any depth; or a data set, whose split "train" (or whose only split) is used.
        seen: splits whose images are left out: those with labels, and those for evaluation. Images are compared by
            file, also through links; a copy is another image.

    Raises:
        UserError: the path does not exist, it has no images, all its images are in `seen`, or the header of an image
            cannot be read (the message lists these images).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"No unlabelled images at {path}: no such file or folder.{_closest_sibling(path)}")
    files = _files_without_labels(path)
    if not files:
        raise UserError(f"No unlabelled images in {path}: expected files that end in {', '.join(sorted(SUFFIXES))}.")
    known = {_identity(record.path) for data in seen for record in data.records if record.path.exists()}
    others = [file for file in files if not file.exists() or _identity(file) not in known]
    if not others:
        raise UserError(
            f"All {len(files)} unlabelled images of {path} belong to data.train or data.val. Name other images: those "
            "of data.train take part in the distillation already, those of data.val must not be trained on."
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
    """Return the image files of a data set's training split, or of a folder that is not a data set."""
    try:
        names = splits(path)
    except UserError:
        if path.is_file():
            raise
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    try:
        return [record.path for record in open_data(path, names[0] if len(names) == 1 else "train").records]
    except UserError as error:
        raise UserError(f"{error}\nUnlabelled images need no annotations: name the folder of images.") from None


def _identity(file: Path) -> tuple[int, int]:
    """Device and inode; equal for two paths of one file."""
    found = file.stat()
    return found.st_dev, found.st_ino


def splits(path: Path | str) -> list[str]:
    """Return the names of a data set's splits, as accepted by `open_data`.

    Raises:
        UserError: the path does not exist, or its format is not known.
    """
    return list(find_splits(Path(path))[1])


def find_splits(path: Path, root: Path | None = None) -> tuple[Format, dict[str, Callable[[], SplitDraft]]]:
    """Return the format of a data set, and its splits by short name, each with the function that reads it.

    Raises:
        UserError: the path does not exist, or its format is not known.
    """
    if not path.exists():
        raise UserError(f"No data set at {path}: no such file or folder.{_closest_sibling(path)}")
    for format, module in _FORMATS.items():
        if found := module.find_splits(path, root):
            return format, _with_short_names(found)
    kind = "folder" if path.is_dir() else "file"
    raise UserError.listing(
        f"The {kind} {path} has none of the known formats. Expected one of:", [m.LAYOUTS for m in _FORMATS.values()]
    )


def add_emptiness(draft: SplitDraft) -> None:
    """Add a fault if a split has no image, or no object to train on."""
    if draft.faults:
        return  # these explain why nothing could be read
    if not draft.records:
        draft.fault("empty split", str(draft.source), "it has no images")
    elif all(record.ignore.all() for record in draft.records):  # also true without any objects
        what = f"none of the {len(draft.records)} images has an annotated object to train on"
        draft.fault("no annotations", str(draft.source), what)


def shortened(faults: list[Fault], limit: int = _LISTED_FAULTS) -> list[str]:
    """Return the faults as lines, grouped by kind; beyond `limit` of a kind only their number."""
    lines: list[str] = []
    for kind, count in Counter(fault.kind for fault in faults).items():
        of_kind = [fault for fault in faults if fault.kind == kind]
        lines += [f"{kind}: {fault}" for fault in of_kind[:limit]]
        if count > limit:
            lines.append(f"{kind}: {count - limit} more")
    return lines


def _find_split(path: Path, split: str) -> tuple[Format, str, Callable[[], SplitDraft]]:
    """Return the format, the split's own name and its reader."""
    if path.is_dir() and (path / split).is_file():  # an annotation file, not a name
        format, found = find_splits(path / split, root=path)
        name, read = next(iter(found.items()))
        return format, name, read
    format, found = find_splits(path)
    names = [split, _short_name(split)]
    if path.suffix.lower() in (".json", ".txt"):  # one file is one split, whatever its name
        names = list(found)
    for name in names:
        if name in found:
            return format, name, found[name]
    close = difflib.get_close_matches(split, found, n=1)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise UserError(f'{path} ({format}) has no split "{split}". Available: {", ".join(found)}.{hint}')


def _with_short_names(found: dict[str, Callable[[], SplitDraft]]) -> dict[str, Callable[[], SplitDraft]]:
    """Shorten names where unambiguous (train2017 -> train, valid -> val), and sort them, training first."""
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
