"""Reading a whole data set before a run: every fault at once, what is in it, and a sheet of images to look at."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import StringIO
from itertools import combinations
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from understudy.data.contact_sheet import draw_contact_sheet
from understudy.data.dataset import add_emptiness, find_splits, shortened
from understudy.data.images import UnreadableImage, is_rotated, load_image, open_image
from understudy.data.records import Fault, Format, Reading, Record
from understudy.errors import UserError

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # pixels: COCO's borders between small, medium and large objects
_CLIP_TOLERANCE = 1.0  # pixels that a box may stand over without a warning: rounding, and tools that count from 0


@dataclass(slots=True)
class SplitSummary:
    """What one split holds.

    Attributes:
        images: their number.
        empty_images: those without an object to learn from.
        objects: number for each class name, without the ignored.
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
    """What `check_data` found.

    Attributes:
        path: the data set.
        format: "coco", "voc" or "yolo".
        splits: what each split holds, as far as it could be read.
        faults: what prevents a run, stops it midway, or loses objects.
        warnings: what is worth knowing; a run handles it.
        contact_sheet: the file drawn, if any.
    """

    path: Path
    format: Format
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    contact_sheet: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no fault; warnings are allowed."""
        return not self.faults

    def to_text(self) -> str:
        """The report as plain text."""
        text = StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return text.getvalue()

    def to_dict(self) -> dict:
        """The whole report in plain values, every fault and warning included."""
        return {
            "path": str(self.path),
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
            "contact_sheet": None if self.contact_sheet is None else str(self.contact_sheet),
        }

    def __rich__(self) -> Group:
        parts = [f"[bold]{escape(str(self.path))}[/]: {self.format.upper()}", self._split_table(), self._class_table()]
        for title, style, found in (("fault", "red", self.faults), ("warning", "yellow", self.warnings)):
            parts.append(f"[bold {style if found else 'green'}]{_count(len(found), title)}[/]")
            parts += [f"  {escape(line)}" for line in shortened(found)]
        if self.contact_sheet is not None:
            parts.append(f"Images with their boxes: {escape(str(self.contact_sheet))}")
        return Group(*parts)

    def _split_table(self) -> Table:
        table = Table("split", title="Images and objects", title_justify="left")
        columns = ("images", "without objects", "objects", "ignored", "small", "medium", "large")
        for column in columns:
            table.add_column(column, justify="right")
        for name, split in self.splits.items():
            counts = [split.images, split.empty_images, sum(split.objects.values()), split.ignored]
            counts += [split.sizes[size] for size in ("small", "medium", "large")]
            table.add_row(escape(name), *map(str, counts))
        return table

    def _class_table(self) -> Table:
        table = Table("class", title="Objects of each class", title_justify="left")
        for name in self.splits:
            table.add_column(escape(name), justify="right")
        for class_name in dict.fromkeys(name for split in self.splits.values() for name in split.objects):
            counts = [str(split.objects.get(class_name, "-")) for split in self.splits.values()]
            table.add_row(escape(class_name), *counts)
        return table


def check_data(path: Path | str, contact_sheet: Path | str | None = None) -> CheckReport:
    """Read a whole data set, every image of every split, and report all that is wrong with it.

    Args:
        path: as for `open_data`.
        contact_sheet: a .png file to draw a sample of the images into, with their boxes and class names.

    Raises:
        UserError: nothing there, no known format, or the sheet cannot be written.
    """
    path = Path(path)
    sheet = None if contact_sheet is None else Path(contact_sheet)
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserError(f"The contact sheet is a PNG: expected a file name that ends in .png, got {sheet}.")
    format, found = find_splits(path)
    report = CheckReport(path, format)
    readings: dict[str, Reading] = {}
    for name, read in found.items():
        try:
            readings[name] = read()
        except UserError as error:
            report.faults.append(Fault("split unreadable", name, str(error)))
    for name, reading in readings.items():
        add_emptiness(reading)
        report.splits[name] = _summary(reading)
        report.faults += _named(name, reading.faults + reading.left_out)
        report.warnings += _named(name, _classes_without_objects(reading))
    _compare_splits(readings, report)
    usable = _inspect_images(readings, report)
    if sheet is not None:
        draw_contact_sheet(usable, {name: reading.classes for name, reading in readings.items()}, sheet)
        report.contact_sheet = sheet
    return report


def _summary(reading: Reading) -> SplitSummary:
    records = reading.records
    labels = torch.cat([record.labels[~record.ignore] for record in records] or [torch.empty(0, dtype=torch.int64)])
    areas = torch.cat([record.areas[~record.ignore] for record in records] or [torch.empty(0)])
    counts = torch.bincount(labels, minlength=len(reading.classes)).tolist()
    small, below_large = int((areas < SMALL_AREA).sum()), int((areas < MEDIUM_AREA).sum())
    return SplitSummary(
        images=len(records),
        empty_images=sum(bool(record.ignore.all()) for record in records),
        objects=dict(zip(reading.classes, counts, strict=True)),
        ignored=sum(int(record.ignore.sum()) for record in records),
        sizes={"small": small, "medium": below_large - small, "large": len(areas) - below_large},
    )


def _named(split: str, faults: Iterable[Fault]) -> list[Fault]:
    """The faults with the split they are in."""
    return [fault._replace(where=f"{split}: {fault.where}") for fault in faults]


def _classes_without_objects(reading: Reading) -> Iterator[Fault]:
    seen = {label for record in reading.records for label in record.labels.tolist()}
    for label, name in enumerate(reading.classes):
        if label not in seen:
            yield Fault("class without objects", reading.source.name, f'"{name}" occurs in no image')


def _compare_splits(readings: dict[str, Reading], report: CheckReport) -> None:
    """Classes that differ between the splits, and images that are in two of them."""
    first = next(iter(readings), "")
    for name, reading in readings.items():
        if reading.classes != readings[first].classes:
            mine, others = ", ".join(reading.classes), ", ".join(readings[first].classes)
            report.faults.append(Fault("classes differ", name, f"it has {mine}; {first} has {others}"))
    files = {name: {record.path for record in reading.records} for name, reading in readings.items()}
    for one, other in combinations(files, 2):
        if "trainval" in one + other:
            continue  # it holds train and val on purpose
        if shared := sorted(files[one] & files[other]):
            report.warnings.append(
                Fault("images in two splits", f"{one} and {other}", f"{len(shared)}, the first is {shared[0].name}")
            )


def _inspect_images(readings: dict[str, Reading], report: CheckReport) -> dict[str, list[Record]]:
    """Decode every image of every split, note what is found, and return the usable ones of each split."""
    rows = [(name, record) for name, reading in readings.items() for record in reading.records]
    usable: dict[str, list[Record]] = {name: [] for name in readings}
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about broken metadata: what matters is judged here
        inspected = pool.map(_inspect, (record for _, record in rows))
        shown = track(
            zip(rows, inspected, strict=True),
            "reading images",
            total=len(rows),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        for (name, record), (faults, notes) in shown:
            report.faults += _named(name, faults)
            report.warnings += _named(name, notes)
            if not faults:
                usable[name].append(record)
    return usable


def _inspect(record: Record) -> tuple[list[Fault], list[Fault]]:
    """The faults and the warnings of one image and its boxes."""
    name = record.path.name
    if not record.path.is_file():
        return [Fault("image missing", name, f"there is no file {record.path}")], []
    notes = _box_notes(record)
    stated = record.width, record.height
    try:
        with open_image(record.path) as image:
            size, mode, rotated = image.size, image.mode, is_rotated(image)
        load_image(record.path)
    except UnreadableImage as error:
        return [Fault("image unreadable", name, str(error))], notes
    except Exception as error:  # metadata that Pillow cannot parse
        return [Fault("image unreadable", name, f"its metadata is damaged ({error})")], notes
    if rotated:
        used = "turned, as its annotation states the turned size" if size != stated else "as stored"
        notes.append(Fault("EXIF rotation", name, f"viewers turn it; its pixels are used {used}"))
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        depth = "16-bit image" if mode.startswith("I") else "grey image"
        notes.append(Fault(depth, name, f"mode {mode}: it becomes RGB in 0..1"))
    if size != stated and not (rotated and size == stated[::-1]):
        what = f"the file has {size[0]}x{size[1]} pixels, its annotation says {stated[0]}x{stated[1]}"
        return [Fault("size mismatch", name, what)], notes
    return [], notes


def _box_notes(record: Record) -> list[Fault]:
    """Boxes that stand over the border (clipped for training), and objects annotated twice."""
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
