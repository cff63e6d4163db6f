"""The types of the data package: an annotated image, the images of a split, a split of a data set, and a fault."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self, overload

import numpy as np
import torch
from torch import Tensor

from understudy.data.images import load_pixels
from understudy.data.limits import LIMITS, Limits

Format = Literal["coco", "voc", "yolo"]

OBJECT_ARRAYS = ("boxes", "labels", "ignore", "areas", "annotation_ids")
"""What a `Record` holds of its objects, and `Records` of those of all images."""

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
        # A view would take along the objects of all images. Arrays travel by value.
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
class Records(Sequence[Record]):
    """The N images of a split with their T objects, in flat arrays; reading one makes a `Record` of views.

    A few arrays take a tenth of the memory of tensors for each image, and worker processes share them: those that are
    forked do not count references to every image, and those that are spawned receive the memory itself.

    Attributes:
        root: the folder that the names are relative to.
        names: (B,) uint8, the paths of the images one after another, relative to `root` or absolute.
        name_ends: (N + 1,) int64, the places in `names` where the names begin and end.
        images: (N, 3) int64, id, width and height of each image.
        ends: (N + 1,) int64, the places in the following arrays where the objects of an image begin and end.
        boxes: (T, 4) float64; this and the others as in `Record`.
        labels: (T,) int64.
        ignore: (T,) bool.
        areas: (T,) float64.
        annotation_ids: (T,) int64.
    """

    root: Path
    names: Tensor
    name_ends: Tensor
    images: Tensor
    ends: Tensor
    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    areas: Tensor
    annotation_ids: Tensor

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """Return records in flat arrays."""
        if isinstance(records, cls):
            return records
        rows = [Record.without_objects(0, Path(), (0, 0)), *records]  # the first sets the types; it has no objects
        return cls.made(
            Path(),
            [str(row.path) for row in rows[1:]],
            [(row.image_id, row.width, row.height) for row in rows[1:]],
            [len(row.labels) for row in rows[1:]],
            {name: torch.cat([getattr(row, name) for row in rows]) for name in OBJECT_ARRAYS},
        )

    @classmethod
    def made(
        cls,
        root: Path,
        names: Iterable[str],
        images: Sequence[tuple[int, int, int]] | Tensor,
        counts: Sequence[int] | Tensor,
        objects: Mapping[str, Tensor],
    ) -> Self:
        """Make them from names, (id, width, height) and number of objects of each image, and the arrays of objects."""
        encoded = [os.fsencode(name) for name in names]
        text = np.frombuffer(b"".join(encoded), np.uint8).copy()  # a tensor's memory must be writable
        rows = torch.as_tensor(images, dtype=torch.int64).reshape(-1, 3)
        return cls(root, torch.from_numpy(text), _ends([*map(len, encoded)]), rows, _ends(counts), **objects)

    @classmethod
    def joined(cls, parts: Sequence["Records"]) -> Self:
        """Return the images of several splits, one after another, with new ids from 1 on."""
        objects = {name: torch.cat([getattr(part, name) for part in parts]) for name in OBJECT_ARRAYS}
        objects["annotation_ids"] = torch.arange(1, len(objects["labels"]) + 1)
        images = torch.cat([part.images for part in parts])
        images[:, 0] = torch.arange(1, len(images) + 1)
        counts = torch.cat([part.ends.diff() for part in parts])
        return cls.made(Path(), [path for part in parts for path in part.paths()], images, counts, objects)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> "Record | Records":
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        place = range(len(self))[place]  # negative places count from the end; IndexError beyond it
        (begin, end), (image_id, width, height) = self.ends[place : place + 2].tolist(), self.images[place].tolist()
        objects = {name: getattr(self, name)[begin:end] for name in OBJECT_ARRAYS}
        return Record(image_id, self.root / self._name(place), width, height, **objects)

    def take(self, places: Sequence[int] | Tensor) -> Self:
        """Return the images at some places, in this order."""
        chosen = torch.as_tensor(places, dtype=torch.int64)
        letters, name_ends = _within(self.name_ends, chosen)
        objects, ends = _within(self.ends, chosen)
        arrays = {name: getattr(self, name)[objects] for name in OBJECT_ARRAYS}
        return type(self)(self.root, self.names[letters], name_ends, self.images[chosen], ends, **arrays)

    def paths(self) -> list[str]:
        """Return the path of each image; faster than to make the records."""
        text, ends = self.names.numpy().tobytes(), self.name_ends.tolist()
        names = [os.fsdecode(text[begin:end]) for begin, end in itertools.pairwise(ends)]
        if self.root == Path():
            return names
        root = str(self.root)
        return [os.path.join(root, name) for name in names]  # noqa: PTH118 - it is called for every image

    def image_ids(self) -> list[int]:
        """Return the id of each image."""
        return self.images[:, 0].tolist()

    def objects_to_learn(self) -> Tensor:
        """Return the number of objects of each image that are not ignored, (N,) int64."""
        return _ends(~self.ignore)[self.ends].diff()

    def _name(self, place: int) -> str:
        begin, end = self.name_ends[place : place + 2].tolist()
        return os.fsdecode(self.names[begin:end].numpy().tobytes())


def _ends(counts: Sequence[int] | Tensor) -> Tensor:
    """Return where each of several runs of so many entries begins, and where the last one ends."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.as_tensor(counts, dtype=torch.int64).cumsum(0)])


def _within(ends: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the entries of some runs, and the ends of these runs once they are put together."""
    begins, counts = ends[:-1][places], ends.diff()[places]
    new = _ends(counts)
    return torch.arange(int(new[-1])) + torch.repeat_interleave(begins - new[:-1], counts), new


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """One split of a data set: its classes and its annotated images.

    Attributes:
        classes: the K class names; a label is an index into them.
        category_ids: the data set's own category id of each label (COCO's ids, VOC 1..K, YOLO 0..K-1).
        records: the images, in the order of the annotation file; any sequence of records is put into flat arrays.
        format: "coco", "voc" or "yolo".
        source: the JSON file (COCO), the folder (VOC), the YAML file, list or folder (YOLO).
        split: the name of the split.
        image_root: the folder that `file_name` in `to_coco()` is relative to.
        limits: of the images.
        upright: whether the images are turned as viewers show them, since nobody drew boxes on the stored pixels.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Records
    format: Format
    source: Path
    split: str
    image_root: Path | None = None
    limits: Limits = LIMITS
    upright: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", Records.of(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def pixels_of(self, record: Record) -> Tensor:
        """Load an image; see :func:`.images.load_pixels`."""
        return load_pixels(record.path, (record.width, record.height), self.limits.max_pixels, self.upright)

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
