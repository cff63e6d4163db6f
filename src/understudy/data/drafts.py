"""A split of a data set while a format's reader fills it: its images and objects, and the faults found so far."""

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
from numpy.typing import NDArray

from understudy.data.records import Fault, Records

Box = tuple[float, float, float, float]

PROBLEMS = ("box not finite", "box empty", "box outside the image")
"""Why a box is not usable; the first that applies is reported."""


class AnnotatedObject(NamedTuple):
    """One object as read from an annotation file; its box may be empty or outside the image."""

    annotation_id: int
    label: int
    box: Box
    ignore: bool = False
    area: float | None = None


class Objects(NamedTuple):
    """T objects as read from annotation files, in any order; their boxes may be empty or outside the images.

    Attributes:
        images: (T,) int64, the place of the image of each in the split.
        annotation_ids: (T,) int64.
        labels: (T,) int64.
        boxes: (T, 4) float64, xyxy in pixels.
        ignore: (T,) bool.
        areas: (T,) float64, nan for the area of the box.
    """

    images: NDArray[np.int64]
    annotation_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    ignore: NDArray[np.bool_]
    areas: NDArray[np.float64]

    def at(self, places: NDArray) -> "Objects":
        """Return the objects at some places, or where a mask is true."""
        return Objects(*(column[places] for column in self))


@dataclass(slots=True)
class SplitDraft:
    """One split while a format's reader fills it, with the faults found so far.

    A reader calls `add` for each image and `close` at the end, or `fill` for all of them.

    Attributes:
        source: the file or folder that is read.
        image_root: the folder of the images.
        classes: the class names.
        category_ids: the data set's own id of each class.
        faults: faults for which `open_data` refuses the split.
        left_out: objects without a usable box, which `open_data` leaves out with a warning.
        notes: properties to know about, of which `open_data` warns.
        records: the images with their usable objects.
    """

    source: Path
    image_root: Path
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    records: Records = field(default_factory=partial(Records.of, ()))
    _paths: list[Path] = field(default_factory=list)
    _images: array = field(default_factory=partial(array, "q"))
    _objects: tuple[array, ...] = field(default_factory=lambda: tuple(map(array, "qqqdbd")))

    def fault(self, kind: str, where: str, what: str) -> None:
        """Add a fault for which the split is refused."""
        self.faults.append(Fault(kind, where, what))

    def add(self, image_id: int, path: Path, size: tuple[int, int], objects: Iterable[AnnotatedObject]) -> None:
        """Add an image of `size` (width, height) with its objects."""
        images, annotation_ids, labels, boxes, ignore, areas = self._objects
        for item in objects:
            images.append(len(self._paths))
            annotation_ids.append(item.annotation_id)
            labels.append(item.label)
            boxes.extend(item.box)
            ignore.append(item.ignore)
            areas.append(np.nan if item.area is None else item.area)
        self._paths.append(path)
        self._images.extend((image_id, *size))

    def close(self) -> Self:
        """Put the images that were added into `records`, and return the draft."""
        owners, annotation_ids, labels, boxes, ignore, areas = map(np.array, self._objects)
        objects = Objects(owners, annotation_ids, labels, boxes.reshape(-1, 4), ignore.astype(bool), areas)
        root = f"{self.image_root}{os.sep}"
        names = [str(path).removeprefix(root) for path in self._paths]
        return self.fill(names, np.array(self._images).reshape(-1, 3), objects)

    def fill(self, names: list[str], images: NDArray[np.int64], objects: Objects) -> Self:
        """Put images and objects into `records`; objects without a usable box go to `left_out`.

        Args:
            names: of the N images: their paths, relative to the image root or absolute.
            images: (N, 3), id, width and height of each.
            objects: of all images.
        """
        objects = objects.at(np.argsort(objects.images, kind="stable"))
        problems = box_problems(objects.boxes, images[objects.images, 1:])
        for place in np.flatnonzero(problems >= 0).tolist():
            name, (_, width, height) = names[objects.images[place]], images[objects.images[place]]
            box = [round(value, 2) for value in objects.boxes[place].tolist()]
            where = f"{Path(name).name}, annotation {objects.annotation_ids[place]}"
            self.left_out.append(Fault(PROBLEMS[problems[place]], where, f"box xyxy {box}, image {width}x{height}"))
        usable = objects.at(problems < 0)
        own_areas = (usable.boxes[:, 2:] - usable.boxes[:, :2]).prod(1)
        arrays = {
            "boxes": usable.boxes,
            "labels": usable.labels,
            "ignore": usable.ignore,
            "areas": np.where(np.isnan(usable.areas), own_areas, usable.areas),
            "annotation_ids": usable.annotation_ids,
        }
        self.records = Records.made(
            self.image_root,
            names,
            torch.from_numpy(images),
            torch.from_numpy(np.bincount(usable.images, minlength=len(names))),
            {name: torch.from_numpy(values) for name, values in arrays.items()},
        )
        return self


def repeated(items: Iterable[str]) -> list[str]:
    """Return the items that occur more than once, in the order of their first occurrence."""
    return [item for item, count in Counter(items).items() if count > 1]


def box_problems(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return why boxes (T, 4) xyxy on images of `sizes` (T, 2), width and height, are not usable.

    Returns:
        (T,) places in `PROBLEMS`; -1 if a box is usable.

    >>> box_problems(np.array([[10.0, 10, 10, 40], [10, 10, 20, 40]]), np.array([[100, 80], [100, 80]])).tolist()
    [1, -1]
    """
    top_left, bottom_right = boxes[:, :2], boxes[:, 2:]
    found = [
        ~np.isfinite(boxes).all(1),
        (bottom_right <= top_left).any(1),
        (bottom_right <= 0).any(1) | (top_left >= sizes).any(1),
    ]
    return np.select(found, range(len(found)), default=-1)
