"""A split of a data set while a format's reader fills it: its images and objects, and the faults found so far."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from understudy.data.records import Fault, Records

Box = tuple[float, float, float, float]


class AnnotatedObject(NamedTuple):
    """One object as read from an annotation file; its box may be empty or outside the image."""

    annotation_id: int
    label: int
    box: Box
    ignore: bool = False
    area: float | None = None


class _Columns:
    """The images and objects that were added to a draft, in arrays that grow."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.images, self.counts = array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.labels, self.ignore, self.annotation_ids = array("q"), array("b"), array("q")


@dataclass(slots=True)
class SplitDraft:
    """One split while a format's reader fills it, with the faults found so far.

    Attributes:
        source: the file or folder that is read.
        image_root: the folder of the images.
        classes: the class names.
        category_ids: the data set's own id of each class.
        faults: faults for which `open_data` refuses the split.
        left_out: objects without a usable box, which `open_data` leaves out with a warning.
        records: the images with their usable objects, after `close`.
    """

    source: Path
    image_root: Path
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)
    records: Records = field(default_factory=partial(Records.of, ()))
    _columns: _Columns = field(default_factory=_Columns)

    def fault(self, kind: str, where: str, what: str) -> None:
        """Add a fault for which the split is refused."""
        self.faults.append(Fault(kind, where, what))

    def add(self, image_id: int, path: Path, size: tuple[int, int], objects: Iterable[AnnotatedObject]) -> None:
        """Add an image of `size` (width, height); objects without a usable box go to `left_out`."""
        columns, before = self._columns, len(self._columns.labels)
        for annotation_id, label, box, ignore, area in objects:
            if problem := box_problem(box, size):
                where = f"{path.name}, annotation {annotation_id}"
                self.left_out.append(Fault(problem, where, f"box xyxy {_rounded(box)}, image {size[0]}x{size[1]}"))
                continue
            columns.annotation_ids.append(annotation_id)
            columns.labels.append(label)
            columns.boxes.extend(box)
            columns.ignore.append(ignore)
            columns.areas.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)
        columns.names.append(str(path).removeprefix(f"{self.image_root}{os.sep}"))
        columns.images.extend((image_id, *size))
        columns.counts.append(len(columns.labels) - before)

    def close(self) -> Self:
        """Put the images that were added into `records`, and return the draft."""
        columns = self._columns
        objects = {
            "boxes": _tensor(columns.boxes).reshape(-1, 4),
            "labels": _tensor(columns.labels),
            "ignore": _tensor(columns.ignore).bool(),
            "areas": _tensor(columns.areas),
            "annotation_ids": _tensor(columns.annotation_ids),
        }
        images, counts = _tensor(columns.images).reshape(-1, 3), _tensor(columns.counts)
        self.records = Records.made(self.image_root, columns.names, images, counts, objects)
        self._columns = _Columns()
        return self


def repeated(items: Iterable[str]) -> list[str]:
    """Return the items that occur more than once, in the order of their first occurrence."""
    return [item for item, count in Counter(items).items() if count > 1]


def box_problem(box: Box, size: tuple[int, int]) -> str | None:
    """Return why a box (xyxy, pixels) on an image of `size` (width, height) is not usable; None if it is.

    >>> box_problem((10, 10, 10, 40), (100, 80))
    'box empty'
    """
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return "box not finite"
    if x2 <= x1 or y2 <= y1:
        return "box empty"
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        return "box outside the image"
    return None


def _tensor(values: array) -> Tensor:
    return torch.from_numpy(np.array(values))  # torch would read the array value by value


def _rounded(box: Box) -> list[float]:
    return [round(value, 2) for value in box]
