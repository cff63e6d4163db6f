"""Opening a split of a data set: its format is detected, and every fault of its annotations is reported at once."""

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from understudy.data import coco, voc, yolo
from understudy.data.drafts import SplitDraft, repeated
from understudy.data.images import SUFFIXES, UnreadableImage, shown_size
from understudy.data.limits import LIMITS, Limits
from understudy.data.records import SPLIT_NAMES, DetectionData, Fault, Format, Record, Records
from understudy.errors import UserError
from understudy.text import is_printable

logger = logging.getLogger(__name__)

_FORMATS: dict[Format, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
_LISTED_FAULTS = 30  # of each kind, in one message

Location = Path | str | Sequence[Path | str]
"""A data set, or several that are used as one."""

Readers = dict[str, Callable[[], SplitDraft]]
"""The splits of a data set by name, each with the function that reads it."""


def open_data(path: Location, split: str = "train", limits: Limits = LIMITS) -> DetectionData:
    """Open one split of a data set in COCO, VOC or YOLO format.

    Objects whose box is empty, not finite or completely outside its image are left out, with a warning in the log.
    Image files are not opened (only their headers, if the format does not state sizes); `understudy check` reads them.

    Args:
        path: the data set's folder, or a COCO .json, YOLO .yaml or list .txt file; or a list of data sets of one
            format and the same classes.
        split: a name from `splits(path)`; "val" also finds "valid" and "val2017". Or an annotation file, relative
            to `path`. A single .json or .txt file is one split, whatever its name. Of several data sets, a name
            stands for the union over those that have such a split, and "a+b" for the union of two names.
        limits: of the data set: its files and the size of its images.

    Raises:
        UserError: the path or the split does not exist, the format is not known, or the annotations have faults (the
            message lists them).
    """
    format, name, read = _find_split(path, split, limits)
    draft = read()
    add_faults_of_content(draft)
    check = f"understudy check {shown_location(path)}"
    if draft.faults:
        summary = f"{draft.source} has {len(draft.faults)} faults (`{check}` also reads the images):"
        raise UserError.listing(summary, shortened(draft.faults))
    if draft.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(f.kind for f in draft.left_out).items())
        logger.warning("%s: objects left out: %s. `%s` lists them.", draft.source, kinds, check)
    for line in shortened(draft.notes, 1):
        logger.warning("%s: %s", draft.source, line)
    return DetectionData(
        classes=draft.classes,
        category_ids=draft.category_ids,
        records=draft.records,
        format=format,
        source=draft.source,
        split=name,
        image_root=draft.image_root,
        limits=limits,
    )


def open_unlabelled(path: Path | str, seen: Sequence[DetectionData] = (), limits: Limits = LIMITS) -> DetectionData:
    """Open images without labels, as a split without objects and classes.

    Args:
        path: a folder, searched to any depth; or a data set, whose split "train" (or whose only split) is used.
        seen: splits whose images are left out: those with labels, and those for evaluation. Images are compared by
            file, also through links; a copy is another image.
        limits: of the images.

    Raises:
        UserError: the path does not exist, it has no images, all its images are in `seen`, or the header of an image
            cannot be read (the message lists these images).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"No unlabelled images at {path}: no such file or folder.{_closest_sibling(path)}")
    files = _files_without_labels(path, limits)
    if not files:
        raise UserError(f"No unlabelled images in {path}: expected files that end in {', '.join(sorted(SUFFIXES))}.")
    known = {_identity(path) for data in seen for path in data.records.paths()} - {None}
    others = [file for file in files if _identity(file) not in known]
    if not others:
        raise UserError(
            f"All {len(files)} unlabelled images of {path} belong to data.train or data.val. Name other images: those "
            "of data.train take part in the distillation already, those of data.val must not be trained on."
        )
    records, faults = [], []
    for number, file in enumerate(others, start=1):
        try:
            records.append(Record.without_objects(number, file, shown_size(file, limits.max_pixels)))
        except UnreadableImage as error:
            faults.append(str(error))
    if faults:
        raise UserError.listing(
            f"{len(faults)} of the {len(others)} unlabelled images of {path} cannot be used:", faults
        )
    return DetectionData((), (), Records.of(records), "coco", path, "unlabelled", limits=limits, upright=True)


def _files_without_labels(path: Path, limits: Limits) -> list[Path]:
    """Return the image files of a data set's training split, or of a folder that is not a data set."""
    try:
        names = splits(path, limits)
    except UserError:
        if path.is_file():
            raise
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    try:
        return [*map(Path, open_data(path, names[0] if len(names) == 1 else "train", limits).records.paths())]
    except UserError as error:
        raise UserError(f"{error}\nUnlabelled images need no annotations: name the folder of images.") from None


def _identity(file: Path | str) -> tuple[int, int] | None:
    """Device and inode, equal for two paths of one file; None if there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116 - it is called for every image
    except OSError:
        return None
    return found.st_dev, found.st_ino


def splits(path: Location, limits: Limits = LIMITS) -> list[str]:
    """Return the names of a data set's splits, as accepted by `open_data`.

    Raises:
        UserError: the path does not exist, or its format is not known.
    """
    return list(find_splits(path, limits=limits)[1])


def find_splits(path: Location, root: Path | None = None, limits: Limits = LIMITS) -> tuple[Format, Readers]:
    """Return the format of a data set, and its splits by short name, each with the function that reads it.

    The splits of several data sets have the name of their folder in front: `VOC2007/train`.

    Raises:
        UserError: a path does not exist or is a run folder, its format is not known, or several data sets have
            different formats.
    """
    paths = as_paths(path)
    if len(paths) > 1:
        return _side_by_side(paths, limits)
    path = paths[0]
    if not path.exists():
        raise UserError(f"No data set at {path}: no such file or folder.{_closest_sibling(path)}")
    if (path / "config.yaml").is_file() and (path / "environment.json").is_file():  # its result.json looks like COCO
        raise UserError(
            f"{path} is a run folder, not a data set. Give the path of a data set; that of the run is data.path in "
            f"{path / 'config.yaml'}. To compare runs: understudy compare RUN RUN"
        )
    for format, module in _FORMATS.items():
        if found := module.find_splits(path, root, limits):
            return format, _with_short_names(found)
    kind = "folder" if path.is_dir() else "file"
    raise UserError.listing(
        f"The {kind} {path} has none of the known formats. Expected one of:", [m.LAYOUTS for m in _FORMATS.values()]
    )


def _side_by_side(paths: Sequence[Path], limits: Limits) -> tuple[Format, Readers]:
    names = [path.name for path in paths]
    labels = [str(path) if names.count(path.name) > 1 else path.name for path in paths]
    if twice := repeated(str(path.resolve()) for path in paths):
        raise UserError(f"The data set {twice[0]} is named twice. Leave one out.")
    found = {label: find_splits(path, limits=limits) for label, path in zip(labels, paths, strict=True)}
    formats = {label: format for label, (format, _) in found.items()}
    if len(set(formats.values())) > 1:
        kinds = ", ".join(f"{label} is {format}" for label, format in formats.items())
        raise UserError(f"Several data sets must have one format to be used as one: {kinds}.")
    every = {f"{label}/{name}": read for label, (_, of_one) in found.items() for name, read in of_one.items()}
    return next(iter(formats.values())), every


def as_paths(path: Location) -> list[Path]:
    """Return the paths of one data set or several."""
    return [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]


def shown_location(path: Location) -> str:
    """Write the paths of one data set or several as arguments of a command."""
    return " ".join(map(str, as_paths(path)))


def _union(parts: Mapping[str, Callable[[], SplitDraft]]) -> SplitDraft:
    """Read several splits as one, with new image and annotation ids; splits with other classes are a fault."""
    drafts = {name: read() for name, read in parts.items()}
    first = next(iter(drafts.values()))
    source, images = (
        Path(os.path.commonpath([getattr(draft, name).absolute() for draft in drafts.values()]))
        for name in ("source", "image_root")
    )
    joined = SplitDraft(source, images, first.classes, first.category_ids)
    for name, draft in drafts.items():
        joined.faults += [*named(name, draft.faults), *different_classes(name, drafts)]
        joined.left_out += named(name, draft.left_out)
        joined.notes += named(name, draft.notes)
    joined.records = Records.joined([draft.records for draft in drafts.values()])
    for path in repeated(str(Path(path).absolute()) for path in joined.records.paths()):
        joined.fault("image in two splits", " and ".join(drafts), path)
    return joined


def named(split: str, faults: Iterable[Fault]) -> list[Fault]:
    """Return the faults with the name of their split."""
    return [fault._replace(where=f"{split}: {fault.where}") for fault in faults]


def different_classes(name: str, drafts: Mapping[str, SplitDraft]) -> list[Fault]:
    """Return a fault if a split has other classes than the first."""
    first = next(iter(drafts))
    mine, others = drafts[name].classes, drafts[first].classes
    if mine == others:
        return []
    return [Fault("classes differ", name, f"{', '.join(mine)}; but in {first}: {', '.join(others)}")]


def add_faults_of_content(draft: SplitDraft) -> None:
    """Add a fault for each class name that cannot be printed, and if a split has no image or no object."""
    for name in draft.classes:
        if not is_printable(name):
            what = f"{name!a} contains characters that cannot be printed; rename the class"
            draft.fault("invalid class name", draft.source.name, what)
    if draft.faults:
        return  # these explain why nothing could be read
    if not draft.records:
        draft.fault("empty split", str(draft.source), "it has no images")
    elif draft.records.ignore.all():  # also true without any objects
        what = f"none of the {len(draft.records)} images has an annotated object (ignored ones do not count)"
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


def _find_split(path: Location, split: str, limits: Limits) -> tuple[Format, str, Callable[[], SplitDraft]]:
    """Return the format, the split's own name and its reader."""
    paths = as_paths(path)
    if len(paths) == 1 and paths[0].is_dir() and (paths[0] / split).is_file():  # an annotation file, not a name
        format, found = find_splits(paths[0] / split, paths[0], limits)
        name, read = next(iter(found.items()))
        return format, name, read
    format, found = find_splits(paths, limits=limits)
    if len(paths) == 1 and paths[0].suffix.lower() in (".json", ".txt"):  # one file is one split, whatever its name
        name, read = next(iter(found.items()))
        return format, name, read
    parts = {name: found[name] for piece in split.split("+") for name in _meant(piece, split, path, format, found)}
    if len(parts) == 1:
        name, read = next(iter(parts.items()))
        return format, name, read
    return format, split, partial(_union, parts)


def _meant(piece: str, split: str, path: Location, format: Format, found: Readers) -> list[str]:
    """Return the splits that a name stands for: the one of this name, or that of every year or data set that has it."""
    for name in (split, piece, _short_name(piece)):
        if name in found:
            return [name]
        if several := [each for each in found if each.endswith(f"/{name}")]:
            return several
    close = difflib.get_close_matches(piece, found, n=1)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    where = f"{shown_location(path)} ({format})"
    raise UserError(f'{where} has no split "{piece}". Available: {", ".join(found)}.{hint}')


def _with_short_names(found: Readers) -> Readers:
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
