"""The types of the data package: an annotated image, a split of a data set, and a fault."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from understudy.data.limits import LIMITS, Limits

Format = Literal["coco", "voc", "yolo"]
Box = tuple[float, float, float, float]

SPLIT_NAMES = ("train", "val", "valid", "validation", "test", "trainval", "minival")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image file with its M annotated objects.

    Attributes:
        image_id: the data set's own number (COCO), otherwise 1, 2, ... in the order of the split.
        path: the image file.
        width: in pixels, as annotated.
        height: in pixels, as annotated.
        boxes: (M, 4) float64, xyxy in pixels of the original image, as annotated (not clipped).
        labels: (M,) int64, 0..K-1.
        ignore: (M,) bool, `iscrowd` or `difficult`: not used for training, ignored in evaluation.
        areas: (M,) float64, in square pixels: the annotation's `area`, otherwise width times height of the box.
        annotation_ids: (M,) int64.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    areas: Tensor
    annotation_ids: Tensor

    @classmethod
    def without_objects(cls, image_id: int, path: Path, size: tuple[int, int]) -> Self:
        """Make the record of an image of `size` (width, height) without annotated objects."""
        nothing = torch.zeros(0, dtype=torch.int64)
        boxes = torch.zeros(0, 4, dtype=torch.float64)
        return cls(image_id, path, *size, boxes, nothing, nothing.bool(), nothing.double(), nothing)

    def __reduce__(self) -> tuple:
        # A pickled tensor becomes a shared-memory file; five for each image would exhaust a spawned worker's
        # open files. Arrays travel by value.
        arrays = (self.boxes, self.labels, self.ignore, self.areas, self.annotation_ids)
        return _record_from_arrays, (
            self.image_id,
            self.path,
            self.width,
            self.height,
            *(array.numpy() for array in arrays),
        )


def _record_from_arrays(image_id: int, path: Path, width: int, height: int, *arrays: np.ndarray) -> Record:
    return Record(image_id, path, width, height, *map(torch.from_numpy, arrays))


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """One split of a data set: its classes and its annotated images.

    Attributes:
        classes: the K class names; a label is an index into them.
        category_ids: the data set's own category id of each label (COCO's ids, VOC 1..K, YOLO 0..K-1).
        records: the images, in the order of the annotation file.
        format: "coco", "voc" or "yolo".
        source: the JSON file (COCO), the folder (VOC), the YAML file, list or folder (YOLO).
        split: the name of the split.
        image_root: the folder that `file_name` in `to_coco()` is relative to.
        limits: of the images.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    format: Format
    source: Path
    split: str
    image_root: Path | None = None
    limits: Limits = LIMITS

    def __len__(self) -> int:
        return len(self.records)

    def to_coco(self) -> dict:
        """Return the ground truth as a COCO dict, which COCO evaluation tools read, for any format.

        `ignore` objects get `iscrowd` 1. Boxes are xywh in pixels of the original image.
        """
        images, annotations = [], []
        for record in self.records:
            images.append(
                {
                    "id": record.image_id,
                    "file_name": self._file_name(record.path),
                    "width": record.width,
                    "height": record.height,
                }
            )
            rows = zip(
                record.annotation_ids.tolist(),
                record.labels.tolist(),
                record.boxes.tolist(),
                record.areas.tolist(),
                record.ignore.tolist(),
                strict=True,
            )
            for annotation_id, label, (x1, y1, x2, y2), area, ignore in rows:
                annotations.append(
                    {
                        "id": annotation_id,
                        "image_id": record.image_id,
                        "category_id": self.category_ids[label],
                        # (x + w) - x differs from w in floating point; six decimals restore the annotated value
                        "bbox": [x1, y1, round(x2 - x1, 6), round(y2 - y1, 6)],
                        "area": area,
                        "iscrowd": int(ignore),
                    }
                )
        categories = [{"id": i, "name": name} for i, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _file_name(self, path: Path) -> str:
        if self.image_root is not None and path.is_relative_to(self.image_root):
            return path.relative_to(self.image_root).as_posix()
        return path.name


class Fault(NamedTuple):
    """One fault of a data set: its kind, its place, and what was expected and found."""

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class AnnotatedObject(NamedTuple):
    """One object as read from an annotation file; its box may be empty or outside the image."""

    annotation_id: int
    label: int
    box: Box
    ignore: bool = False
    area: float | None = None


@dataclass(slots=True)
class SplitDraft:
    """One split while a format's reader fills it, with the faults found so far.

    Attributes:
        source: the file or folder that is read.
        image_root: the folder of the images.
        classes: the class names.
        category_ids: the data set's own id of each class.
        records: the images with their usable objects.
        faults: faults for which `open_data` refuses the split.
        left_out: objects without a usable box, which `open_data` leaves out with a warning.
    """

    source: Path
    image_root: Path
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    records: list[Record] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)

    def fault(self, kind: str, where: str, what: str) -> None:
        """Add a fault for which the split is refused."""
        self.faults.append(Fault(kind, where, what))

    def add(self, image_id: int, path: Path, size: tuple[int, int], objects: Iterable[AnnotatedObject]) -> None:
        """Add an image of `size` (width, height); objects without a usable box go to `left_out`."""
        usable = []
        for item in objects:
            if problem := box_problem(item.box, size):
                where = f"{path.name}, annotation {item.annotation_id}"
                self.left_out.append(Fault(problem, where, f"box xyxy {_rounded(item.box)}, image {size[0]}x{size[1]}"))
            else:
                usable.append(item)
        self.records.append(_record(image_id, path, size, usable))


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


def _record(image_id: int, path: Path, size: tuple[int, int], objects: list[AnnotatedObject]) -> Record:
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float64).reshape(-1, 4)
    own_areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    areas = [own if item.area is None else item.area for item, own in zip(objects, own_areas, strict=True)]
    return Record(
        image_id=image_id,
        path=path,
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=torch.tensor([item.label for item in objects], dtype=torch.int64),
        ignore=torch.tensor([item.ignore for item in objects], dtype=torch.bool),
        areas=torch.tensor(areas, dtype=torch.float64),
        annotation_ids=torch.tensor([item.annotation_id for item in objects], dtype=torch.int64),
    )


def _rounded(box: Box) -> list[float]:
    return [round(value, 2) for value in box]
