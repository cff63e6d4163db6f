"""Detections and objects of a whole split as flat arrays: D detections, O objects, I images, K classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from understudy.data import DetectionData
from understudy.errors import UserError

Detection = dict[str, Any]
"""One row of COCO's results format.

``image_id``, ``category_id`` (the data set's own), ``bbox`` (x, y, width, height in pixels of the original image) and
``score`` (0..1).
"""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Rows of COCO's results format as arrays.

    Attributes:
        image_ids: (D,) int64.
        category_ids: (D,) int64, the data set's own.
        boxes: (D, 4) float64, x, y, width and height in pixels of the original image.
        scores: (D,) float64, 0..1.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    @classmethod
    def of_rows(cls, rows: Sequence[Detection]) -> Self:
        """Read rows of COCO's results format.

        >>> cat = {"image_id": 1, "category_id": 3, "bbox": [20.0, 40.0, 60.0, 40.0], "score": 0.5}
        >>> Detections.of_rows([cat]).rows() == [cat]
        True
        """
        image_ids, category_ids = (
            np.fromiter(map(itemgetter(key), rows), np.int64, len(rows)) for key in ("image_id", "category_id")
        )
        sides = np.fromiter(chain.from_iterable(map(itemgetter("bbox"), rows)), np.float64, 4 * len(rows))
        scores = np.fromiter(map(itemgetter("score"), rows), np.float64, len(rows))
        return cls(image_ids, category_ids, sides.reshape(-1, 4), scores)

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Join the detections of several parts of a split."""
        each = [(part.image_ids, part.category_ids, part.boxes, part.scores) for part in (cls.of_rows([]), *parts)]
        return cls(*map(np.concatenate, zip(*each, strict=True)))

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, places: NDArray[Any]) -> Self:
        """Return the detections at places (indices or a mask)."""
        return type(self)(self.image_ids[places], self.category_ids[places], self.boxes[places], self.scores[places])

    def rows(self) -> list[Detection]:
        """Return rows of COCO's results format."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The annotated objects of a split.

    Attributes:
        images: (O,) int64, number of the image in the order of the image ids, 0..I-1.
        labels: (O,) int64, 0..K-1.
        corners: (O, 4) float64, xyxy in pixels of the original image, as annotated.
        areas: (O,) float64, square pixels.
        ignore: (O,) bool, COCO's crowd and VOC's difficult objects.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    corners: NDArray[np.float64]
    areas: NDArray[np.float64]
    ignore: NDArray[np.bool_]

    @classmethod
    def of(cls, data: DetectionData) -> Self:
        """Collect the objects of a split, in the order of its records."""
        records = data.records
        numbers = np.argsort(np.argsort(records.images[:, 0].numpy()))
        return cls(
            images=np.repeat(numbers, records.ends.diff().numpy()),
            labels=records.labels.numpy(),
            corners=records.boxes.numpy(),
            areas=records.areas.numpy(),
            ignore=records.ignore.numpy(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Detections on a split.

    Attributes:
        images: (D,) int64, number of the image in the order of the image ids, 0..I-1.
        labels: (D,) int64, 0..K-1.
        boxes: (D, 4) float64, x, y, width and height in pixels of the original image.
        scores: (D,) float64, 0..1.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, data: DetectionData, detections: Detections) -> Self:
        """Look up the images and the classes of detections.

        Raises:
            UserError: the split lacks some of them.
        """
        images, unknown_images = _looked_up(detections.image_ids, sorted(data.records.image_ids()))
        labels, unknown_categories = _looked_up(detections.category_ids, data.category_ids)
        faults = [f"image_id {image_id} is not in the split" for image_id in unknown_images[:20]]
        faults += [f"... and {len(unknown_images) - 20} more images"] if len(unknown_images) > 20 else []
        faults += [f"category_id {category} is not one of {list(data.category_ids)}" for category in unknown_categories]
        if faults:
            raise UserError.listing(
                f"The detections do not belong to the split {data.split!r} of {data.source}:", faults
            )
        return cls(images, labels, detections.boxes, detections.scores)


def _looked_up(values: NDArray[np.int64], known: Sequence[int]) -> tuple[NDArray[np.int64], list[int]]:
    """Return the place of each value in a sequence without repetitions, and the values that are not in it."""
    ids = np.array(known, np.int64)
    order = ids.argsort()
    places = np.append(order, -1)[np.searchsorted(ids, values, sorter=order)]
    strange = np.append(ids, 0)[places] != values if len(ids) else np.ones(len(values), bool)
    return places, np.unique(values[strange]).tolist()
