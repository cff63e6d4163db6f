"""How the boxes of a data set, at the size they are trained at, fit a detector's anchors, points and levels."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.ops import box_iou

from understudy.data import DetectionData
from understudy.data.transforms import clip_boxes, padded_size, resized_size, scale_boxes
from understudy.detectors.base import Detector
from understudy.detectors.families import FAMILIES
from understudy.outputs import Outputs, Spec, anchors_per_level, flat_anchors

IMAGES = 500
"""Images that are read at most: so many show the sizes of a data set's boxes."""

MANY = 0.2
"""Share of the objects from which a misfit is worth a remark: fewer are the small or the odd ones of every data set."""


@dataclass(frozen=True, slots=True)
class BoxFit:
    """How M objects, at the training size, fit the anchors of a detector.

    Attributes:
        detector: name of the detector.
        scalable: whether ``detector.anchor_scale`` sets its anchors.
        sides: (M,) square root of each box's area, in pixels at the training size.
        labels: (M,) int64, the objects' classes.
        positives: (M,) anchors or points that the detector's own assignment gives to each object.
        overlaps: (M,) highest IoU of each object with an anchor.
        background_below: IoU below which an anchor is background, as :attr:`.Detector.background_below`; None: the
            assignment has no such limit.
        levels: objects by the stride of the level that holds most of their positives; those without any are left out.
        anchor_sides: square root of the area of the smallest and the largest anchor, in pixels.
        strides: pixels per cell of every level.
        shorter_side: pixels of the shorter side of the images,
        longer_side: unless their longer side would exceed this.
        images: number of images that were read.
    """

    detector: str
    scalable: bool
    sides: Tensor
    labels: Tensor
    positives: Tensor
    overlaps: Tensor
    background_below: float | None
    levels: dict[int, int]
    anchor_sides: tuple[float, float]
    strides: tuple[int, ...]
    shorter_side: int
    longer_side: int
    images: int

    @classmethod
    def of(
        cls,
        detector: Detector,
        *,
        sides: Tensor,
        labels: Tensor,
        positives: Tensor,
        overlaps: Tensor,
        levels: dict[int, int],
        size: tuple[int, int],
        images: int,
    ) -> Self:
        """Add what is known of the detector; ``size`` is (shorter_side, longer_side), the rest as the attributes."""
        spec, family = detector.spec, FAMILIES.get(detector.spec.family)
        anchor_sides = anchor_shapes(spec).prod(1).sqrt()
        return cls(
            detector=spec.name,
            scalable=family is not None and "anchor_scale" not in family.refused,
            sides=sides,
            labels=labels,
            positives=positives,
            overlaps=overlaps,
            background_below=detector.background_below,
            levels=levels,
            anchor_sides=(float(anchor_sides.min()), float(anchor_sides.max())),
            strides=spec.strides,
            shorter_side=size[0],
            longer_side=size[1],
            images=images,
        )

    @property
    def objects(self) -> int:
        """Number M of objects."""
        return len(self.sides)

    @property
    def unmatched(self) -> float:
        """Share of the objects, 0..1, to which no anchor or point is assigned: they cannot be learned."""
        return _share(self.positives == 0)

    @property
    def below_cell(self) -> float:
        """Share of the objects whose side is below the finest level's stride: several may share one cell."""
        return _share(self.sides < self.strides[0])

    @property
    def too_small(self) -> float:
        """Share of the objects that even the smallest anchor is too large for: its IoU is that of background."""
        return _share(self._weak & (self.sides < self.anchor_sides[0]))

    @property
    def too_large(self) -> float:
        """Share of the objects that even the largest anchor is too small for: its IoU is that of background."""
        return _share(self._weak & (self.sides > self.anchor_sides[1]))

    @property
    def weak(self) -> float:
        """Share of the objects whose best anchor has the IoU of background, and is theirs by force alone."""
        return _share(self._weak)

    @property
    def usual_sides(self) -> tuple[float, float, float]:
        """The 10th percentile, the median and the 90th percentile of the sides in pixels; nan without objects."""
        if not self.objects:
            return math.nan, math.nan, math.nan
        low, middle, high = torch.quantile(self.sides, self.sides.new_tensor([0.1, 0.5, 0.9])).tolist()
        return low, middle, high

    def remarks(self) -> list[str]:
        """Describe, a sentence each, what does not fit and affects at least :data:`MANY` of the objects."""
        smallest, largest = self.anchor_sides
        found = []
        if self.unmatched >= MANY:
            found.append(f"{self.unmatched:.0%} of the objects get no anchor of {self.detector}, so none is learned")
        if self.too_small >= MANY:
            found.append(
                f"{self.too_small:.0%} of the objects are too small for the smallest anchor of {self.detector} "
                f"({smallest:.0f} pixels): their IoU is below {self.background_below:g}, that of background"
            )
        if self.too_large >= MANY:
            found.append(
                f"{self.too_large:.0%} of the objects are too large for the largest anchor of {self.detector} "
                f"({largest:.0f} pixels): their IoU is below {self.background_below:g}, that of background"
            )
        if self.weak - self.too_small - self.too_large >= MANY:
            found.append(
                f"{self.weak - self.too_small - self.too_large:.0%} of the objects have no anchor of {self.detector} "
                f"that overlaps them by {self.background_below:g}: they are long and narrow, or between two sizes"
            )
        if self.below_cell >= MANY:
            found.append(
                f"{self.below_cell:.0%} of the objects are smaller than one cell of the finest level "
                f"({self.strides[0]} pixels)"
            )
        return found

    def remedy(self) -> str:
        """Name the keys that fit anchors to the boxes, or boxes to the anchors."""
        low, _, high = self.usual_sides
        keys = []
        if self.scalable:
            scale = high / self.strides[-1] if self.too_large > self.too_small else low / self.strides[0]
            keys.append(f"detector.anchor_scale={max(scale, 0.5):.1f}")
        if self.too_large <= self.too_small:
            wanted = max(self.anchor_sides[0] if self.background_below is not None else 0, 2 * self.strides[0])
            growth = wanted / low if self.objects else 1.0
            if 1 < growth <= 4:  # beyond, no detector is trained at such a size
                keys.append(f"data.shorter_side={32 * math.ceil(self.shorter_side * growth / 32)}")
        return " or ".join(keys) or "another detector, whose levels or anchors fit the boxes"

    def to_dict(self) -> dict[str, Any]:
        """Return its numbers for JSON; shares from 0 to 1."""
        low, middle, high = (round(side, 1) for side in self.usual_sides) if self.objects else (None, None, None)
        shares = ("unmatched", "weak", "too_small", "too_large", "below_cell")
        return {
            "images": self.images,
            "objects": self.objects,
            "shorter_side": self.shorter_side,
            "side_percentiles": {"10": low, "50": middle, "90": high},
            "anchor_sides": [round(side, 1) for side in self.anchor_sides],
            "strides": list(self.strides),
            **{name: round(getattr(self, name), 4) for name in shares},
            "objects_by_stride": {str(stride): count for stride, count in self.levels.items()},
        }

    @property
    def _weak(self) -> Tensor:
        if self.background_below is None:
            return torch.zeros_like(self.sides, dtype=torch.bool)
        return self.overlaps < self.background_below


@torch.no_grad()
def fit_of_boxes(
    detector: Detector, data: DetectionData, shorter_side: int, longer_side: int, images: int = IMAGES
) -> BoxFit | None:
    """Measure how the boxes of a data set fit the anchors of a detector; None if it has no dense predictions.

    It reads annotations alone, no image and no weights. The assignment is the detector's own; where this depends on
    its predictions (:attr:`.Spec.assigns_by_anchors`), nothing is known before training, and the result is None, too.

    Args:
        detector: the detector, on the CPU; its weights do not matter.
        data: the split that is trained on.
        shorter_side: pixels of the shorter side of an image in training,
        longer_side: unless its longer side would exceed this.
        images: read at most so many images, evenly spread over the split.
    """
    spec = detector.spec
    if not (spec.dense and spec.first_anchors and spec.assigns_by_anchors):
        return None
    places = torch.linspace(0, len(data) - 1, min(images, len(data))).round().long().unique()
    laid: dict[tuple[int, int], Outputs] = {}
    sides, labels, positives, overlaps, levels = [], [], [], [], Counter()
    for record in data.records.take(places):
        file_size = (record.height, record.width)
        size = resized_size(file_size, shorter_side, longer_side)
        boxes = clip_boxes(scale_boxes(record.boxes[~record.ignore], file_size, size), size).float()
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = boxes[seen]
        if not len(boxes):
            continue
        padded = padded_size(size)
        if padded not in laid:
            laid[padded] = Outputs([], [], anchors=detector.lay_anchors(padded), size=padded)
        per_level = _positives(detector, replace(laid[padded], image_sizes=(size,)), boxes)
        sides.append((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt())
        labels.append(record.labels[~record.ignore][seen])
        positives.append(per_level.sum(0))
        overlaps.append(box_iou(boxes, torch.cat(flat_anchors(laid[padded]))).amax(1))
        levels.update(spec.strides[level] for level in per_level.argmax(0)[positives[-1] > 0].tolist())
    return BoxFit.of(
        detector,
        sides=torch.cat([torch.zeros(0), *sides]),
        labels=torch.cat([torch.zeros(0, dtype=torch.int64), *labels]),
        positives=torch.cat([torch.zeros(0, dtype=torch.int64), *positives]),
        overlaps=torch.cat([torch.zeros(0), *overlaps]),
        levels=dict(sorted(levels.items())),
        size=(shorter_side, longer_side),
        images=len(places),
    )


def anchor_shapes(spec: Spec) -> Tensor:
    """Return width and height (A, 2) of the anchors of one cell of every level, in pixels."""
    anchors = torch.tensor([anchor for level in spec.first_anchors for anchor in level])
    return anchors[:, 2:] - anchors[:, :2]


def _positives(detector: Detector, record: Outputs, boxes: Tensor) -> Tensor:
    """Count the anchors of every level that the detector assigns to each object of one image: (levels, M)."""
    target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    index = detector.assign(record, [target])[0]
    parts = index.split(anchors_per_level(record))
    return torch.stack([torch.bincount(part[part >= 0], minlength=len(boxes)) for part in parts])


def _share(mask: Tensor) -> float:
    return float(mask.float().mean()) if len(mask) else 0.0
