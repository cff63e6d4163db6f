"""The check of a data set before a run: every fault at once, counts of images and objects, and a sheet of images."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor

from understudy.data.contact_sheet import draw_contact_sheet
from understudy.data.dataset import (
    Location,
    Readers,
    add_faults_of_content,
    different_classes,
    find_splits,
    named,
    shortened,
    shown_location,
)
from understudy.data.drafts import SplitDraft
from understudy.data.duplicates import Look, look_of, pairs_of_splits, shared_looks
from understudy.data.images import UnreadableImage, is_rotated, load_pixels, open_image
from understudy.data.limits import LIMITS, Limits
from understudy.data.records import DetectionData, Fault, Format, Record, Records
from understudy.errors import UserError
from understudy.files import check_writable

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # square pixels: COCO's limits of small, medium and large objects
_AT_ONCE = 256  # images that are given to the threads; a task for each of a million would fill the memory
_CLIP_TOLERANCE = 1.0  # pixels that a box may extend over the border without a warning (rounding, counting from 0)


Inspection = tuple[list[Fault], list[Fault], Look | None]
"""Faults and warnings of one image, and its look; None if it cannot be read."""


@dataclass(slots=True)
class SplitSummary:
    """The counts of one split.

    Attributes:
        images: number of images.
        empty_images: number of images without an object to train on.
        objects: number of objects of each class, without the ignored ones.
        ignored: number of `iscrowd` and `difficult` objects.
        sizes: number of objects "small" (area below 32^2 pixels of the original image), "medium" (below 96^2), "large".
    """

    images: int
    empty_images: int
    objects: dict[str, int]
    ignored: int
    sizes: dict[str, int]


@dataclass(slots=True)
class CheckReport:
    """The result of `check_data`.

    Attributes:
        path: the data set; several are separated by blanks.
        format: "coco", "voc" or "yolo".
        splits: the counts of each split that could be read.
        faults: problems that prevent a run, stop it midway, or lose objects.
        warnings: properties to know about; a run handles them.
        contact_sheet: the PNG that was drawn, or None.
        boxes: a line on the sizes of the boxes beside the anchors of a detector; empty if it was not asked for.
    """

    path: str
    format: Format
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    contact_sheet: Path | None = None
    boxes: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is no fault; warnings are allowed."""
        return not self.faults

    def to_text(self) -> str:
        """Return the report as plain text."""
        text = StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return text.getvalue()

    def to_dict(self) -> dict:
        """Return the report as plain values, with every fault and warning."""
        return {
            "path": self.path,
            "format": self.format,
            "ok": self.ok,
            "splits": {
                name: {
                    "images": split.images,
                    "empty_images": split.empty_images,
                    "objects": split.objects,
                    "ignored": split.ignored,
                    "sizes": split.sizes,
                }
                for name, split in self.splits.items()
            },
            "faults": [fault._asdict() for fault in self.faults],
            "warnings": [warning._asdict() for warning in self.warnings],
            "boxes": self.boxes or None,
            "contact_sheet": None if self.contact_sheet is None else str(self.contact_sheet),
        }

    def __rich__(self) -> Group:
        head = Text.assemble((self.path, "bold"), f": {self.format.upper()}")
        parts: list[Text | Table] = [head, self._split_table(), self._class_table()]
        parts += [Text(self.boxes)] if self.boxes else []
        for title, style, found in (("fault", "red", self.faults), ("warning", "yellow", self.warnings)):
            parts.append(Text(_count(len(found), title), style=f"bold {style if found else 'green'}"))
            parts += [Text(f"  {line}") for line in shortened(found)]
        if self.contact_sheet is not None:
            parts.append(Text(f"Images with their boxes: {self.contact_sheet}"))
        return Group(*parts)

    def _split_table(self) -> Table:
        table = Table("split", title="Images and objects", title_justify="left")
        columns = ("images", "without objects", "objects", "ignored", "small", "medium", "large")
        for column in columns:
            table.add_column(column, justify="right")
        for name, split in self.splits.items():
            counts = [split.images, split.empty_images, sum(split.objects.values()), split.ignored]
            counts += [split.sizes[size] for size in ("small", "medium", "large")]
            table.add_row(Text(name), *map(str, counts))
        return table

    def _class_table(self) -> Table:
        table = Table("class", title="Objects of each class", title_justify="left")
        for name in self.splits:
            table.add_column(Text(name), justify="right")
        for class_name in dict.fromkeys(name for split in self.splits.values() for name in split.objects):
            counts = [str(split.objects.get(class_name, "-")) for split in self.splits.values()]
            table.add_row(Text(class_name), *counts)
        return table


def check_data(
    path: Location,
    contact_sheet: Path | str | None = None,
    limits: Limits = LIMITS,
    *,
    force: bool = False,
    describe_boxes: Callable[[DetectionData], tuple[str, list[str]]] | None = None,
) -> CheckReport:
    """Read every image of every split of a data set, and report every fault.

    Args:
        path: as in `open_data`.
        contact_sheet: a .png file for a sample of the images with their boxes and class names.
        limits: as in `open_data`.
        force: whether the sheet may replace an existing file.
        describe_boxes: returns a line and warnings on the boxes of the training split, e.g. of
            :func:`understudy.detectors.shape_fit.describe_boxes`.

    Raises:
        UserError: the path does not exist, its format is not known, or the sheet exists or cannot be written.
    """
    sheet = None if contact_sheet is None else Path(contact_sheet)
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserError(f"The contact sheet must be a PNG file: expected a name that ends in .png, got {sheet}.")
    if sheet is not None:
        check_writable(sheet, force)
    format, found = find_splits(path, limits=limits)
    report = CheckReport(shown_location(path), format)
    drafts: dict[str, SplitDraft] = {}
    for name, read in _with_status(found):
        try:
            drafts[name] = read()
        except UserError as error:
            report.faults.append(Fault("split unreadable", name, str(error)))
    for name, draft in drafts.items():
        add_faults_of_content(draft)
        report.splits[name] = _summary(draft)
        report.faults += named(name, draft.faults + draft.left_out)
        report.warnings += named(name, [*draft.notes, *_classes_without_objects(draft)])
    _compare_splits(drafts, report)
    trained = next((name for name in drafts if name.rpartition("/")[2] == "train"), next(iter(drafts), ""))
    if describe_boxes and trained and len(drafts[trained].records):
        draft = drafts[trained]
        data = DetectionData(draft.classes, draft.category_ids, draft.records, format, draft.source, trained)
        report.boxes, misfits = describe_boxes(data)
        report.warnings += [Fault("boxes do not fit the anchors", trained, misfit) for misfit in misfits]
    usable = _inspect_images(drafts, report, limits)
    if sheet is not None:
        draw_contact_sheet(usable, {name: draft.classes for name, draft in drafts.items()}, sheet, limits)
        report.contact_sheet = sheet
    return report


def _with_status(found: Readers) -> Iterator[tuple[str, Callable[[], SplitDraft]]]:
    """Iterate over the splits to read; a terminal shows which one is read, since a large file takes a while."""
    console = Console(stderr=True)
    for name, read in found.items():
        with console.status(Text(f"reading the annotations of {name}")) if console.is_terminal else nullcontext():
            yield name, read


def _summary(draft: SplitDraft) -> SplitSummary:
    records = draft.records
    labels, areas = records.labels[~records.ignore], records.areas[~records.ignore]
    counts = torch.bincount(labels, minlength=len(draft.classes)).tolist()
    small, below_large = int((areas < SMALL_AREA).sum()), int((areas < MEDIUM_AREA).sum())
    return SplitSummary(
        images=len(records),
        empty_images=int((records.objects_to_learn() == 0).sum()),
        objects=dict(zip(draft.classes, counts, strict=True)),
        ignored=int(records.ignore.sum()),
        sizes={"small": small, "medium": below_large - small, "large": len(areas) - below_large},
    )


def _classes_without_objects(draft: SplitDraft) -> Iterator[Fault]:
    seen = set(draft.records.labels.unique().tolist())
    for label, name in enumerate(draft.classes):
        if label not in seen:
            yield Fault("class without objects", draft.source.name, f'"{name}" occurs in no image')


def _classes_alike(names: list[str]) -> Iterator[Fault]:
    """Warn of class names that differ in case or blanks only, and may be meant as one."""
    spellings: dict[str, set[str]] = {}
    for name in names:
        spellings.setdefault("".join(name.split()).casefold(), set()).add(name)
    for alike in spellings.values():
        if len(alike) > 1:
            what = "these names differ in case or blanks only; if they mean one class, give it one name"
            yield Fault("class names alike", ", ".join(f'"{name}"' for name in sorted(alike)), what)


def _compare_splits(drafts: dict[str, SplitDraft], report: CheckReport) -> None:
    """Report classes that differ between the splits, class names that are alike, and images that are in two splits."""
    for name in drafts:
        report.faults += different_classes(name, drafts)
    report.warnings += _classes_alike([name for draft in drafts.values() for name in draft.classes])
    files = {name: set(draft.records.paths()) for name, draft in drafts.items()}
    for one, other in pairs_of_splits(files):
        if shared := sorted(files[one] & files[other]):
            what = f"{len(shared)}, the first is {Path(shared[0]).name}"
            report.warnings.append(Fault("images in two splits", f"{one} and {other}", what))


def _inspect_images(drafts: dict[str, SplitDraft], report: CheckReport, limits: Limits) -> dict[str, Records]:
    """Decode every image of every split, report its faults, and return the usable images of each split."""
    usable: dict[str, list[int]] = {name: [] for name in drafts}
    looks: dict[str, dict[str, Look]] = {name: {} for name in drafts}
    several = len(pairs_of_splits(drafts)) > 0
    shown = track(
        _inspected(drafts, limits),
        "reading images",
        total=sum(len(draft.records) for draft in drafts.values()),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken metadata, which is checked here
        for name, place, path, (faults, notes, look) in shown:
            report.faults += named(name, faults)
            report.warnings += named(name, notes)
            if not faults:
                usable[name].append(place)
            if look and several:
                looks[name][path] = look
    report.warnings += shared_looks(looks)
    return {name: drafts[name].records.take(places) for name, places in usable.items()}


def _inspected(drafts: dict[str, SplitDraft], limits: Limits) -> Iterator[tuple[str, int, str, Inspection]]:
    """Yield split, place and path of every image, with what was found; a few images are read ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, draft in drafts.items():
            for first in range(0, len(draft.records), _AT_ONCE):
                places = range(len(draft.records))[first : first + _AT_ONCE]
                records = [draft.records[place] for place in places]
                found = pool.map(partial(_inspect, limits=limits), records)
                for place, record, each in zip(places, records, found, strict=True):
                    yield name, place, str(record.path), each


def _inspect(record: Record, limits: Limits) -> Inspection:
    """Return the faults and the warnings of one image and its boxes, and its look."""
    name = record.path.name
    if not record.path.exists():
        return [Fault("image missing", name, f"{record.path} does not exist")], [], None
    notes = _box_notes(record)
    stated = record.width, record.height
    try:
        with open_image(record.path, limits.max_pixels) as image:
            size, mode, rotated = image.size, image.mode, is_rotated(image)
        look = look_of(load_pixels(record.path, max_pixels=limits.max_pixels))
    except UnreadableImage as error:
        return [Fault("image unreadable", name, str(error))], notes, None
    except Exception as error:  # metadata that Pillow cannot parse
        return [Fault("image unreadable", name, f"the metadata is damaged ({error})")], notes, None
    if rotated:
        used = "rotated, like the annotated size" if size != stated else "as stored"
        notes.append(Fault("EXIF rotation", name, f"viewers rotate the image; its pixels are used {used}"))
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        depth = "16-bit image" if mode.startswith("I") else "grey image"
        notes.append(Fault(depth, name, f"mode {mode}, converted to RGB in 0..1"))
    if size != stated and not (rotated and size == stated[::-1]):
        what = f"the file has {size[0]}x{size[1]} pixels; the annotation states {stated[0]}x{stated[1]}"
        return [Fault("size mismatch", name, what)], notes, look
    return [], notes, look


def _box_notes(record: Record) -> list[Fault]:
    """Boxes that extend over the border (they are clipped for training), and objects annotated twice."""
    notes = []
    limits = torch.tensor([record.width, record.height] * 2, dtype=torch.float64)
    excess = torch.maximum(-record.boxes, record.boxes - limits).clamp(min=0)
    for number in torch.nonzero((excess > _CLIP_TOLERANCE).any(1)).flatten().tolist():
        where = f"{record.path.name}, annotation {int(record.annotation_ids[number])}"
        what = f"by {excess[number].max():.1f} pixels of {record.width}x{record.height}; clipped for training"
        notes.append(Fault("box partly outside", where, what))
    for (label, *box), count in _object_counts(record.labels, record.boxes).items():
        if count > 1:
            what = f"label {label}, box {[round(value, 1) for value in box]} occurs {count} times"
            notes.append(Fault("duplicate object", record.path.name, what))
    return notes


def _object_counts(labels: Tensor, boxes: Tensor) -> Counter[tuple]:
    return Counter((label, *box) for label, box in zip(labels.tolist(), boxes.tolist(), strict=True))


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
