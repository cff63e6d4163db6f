"""The scale of anchors that fits the boxes of a data set: the family's own, or a given one, or the best of a few."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import torch

from understudy.data import DetectionData
from understudy.detectors.anchor_fit import BoxFit, fit_of_boxes
from understudy.detectors.base import Detector
from understudy.detectors.build import build_detector
from understudy.detectors.families import family_of

FACTORS = (0.5, 0.75, 1.5, 2.0)
"""Scales that are compared with the family's own and with a given one, relative to the first."""

ENOUGH = 0.7
"""IoU from which an anchor fits: every assignment by IoU makes it a positive, so a better one is of no use."""

MARGIN = 0.02
"""Mean IoU by which another scale must be better than the one before: less lies within the choice of the images."""

FAR_BETTER = 0.1
"""The same margin where anchors are assigned without a limit of the IoU, as by ATSS, which adapts to anchors that fit
worse: 0.18 brought 1.5 and 1.8 AP (BCCD, two seeds), 0.05 brought nothing (a subset of VOC, one seed)."""

CLEARLY_BETTER = 0.05
"""Rise of the mean IoU of the boxes with their best anchors that is worth a remark. On BCCD it is 0.09 from RetinaNet's
own anchors to the best, and the plain student's AP rises by 6; 0.01 on a subset of VOC."""

OBJECTS, FEWEST, MOST = 250, 8, 32
"""Objects that the scales are compared on, and images at least and at most; the comparison takes a second or two."""


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """The best of the scales that were compared.

    Attributes:
        scale: None: the one that the others were compared with.
        overlap: mean of the objects' highest IoU with an anchor, counted up to :data:`ENOUGH`. It is the mean over the
            classes, as of AP: a rare class of small objects counts as much as a frequent one.
        before: the scale that the others were compared with,
        overlap_before: and its overlap.
        own: whether that is the family's own.
    """

    scale: float | None
    overlap: float
    before: float
    overlap_before: float
    own: bool = True

    @property
    def clearly(self) -> bool:
        """Whether another scale is so much better that it is worth a remark, see :data:`CLEARLY_BETTER`."""
        return self.overlap - self.overlap_before >= CLEARLY_BETTER

    def __str__(self) -> str:
        """Describe the choice."""
        before = f"the family's own, {self.before:g}" if self.own else f"{self.before:g}"
        if self.scale is None:
            return f"{before}{',' * self.own} is as good as others ({self.overlap:.2f})"
        return (
            f"IoU of the boxes with their best anchors {self.overlap:.2f} on average (up to {ENOUGH}), "
            f"{self.overlap_before:.2f} with {before}"
        )


def best_scale(
    name: str,
    data: DetectionData,
    shorter_side: int,
    longer_side: int,
    conventions: Literal["torchvision", "mmdet"] = "torchvision",
    settings: Mapping[str, Any] = MappingProxyType({}),
    before: float | None = None,
) -> ScaleFit | None:
    """Compare a few scales of anchors by the mean IoU of each class's boxes with their best anchors.

    Anchors are laid over the images as in training, so small anchors, which are far apart for their size, are not
    overrated.

    Args:
        name: of the detector.
        data: the split that is trained on.
        shorter_side: pixels of the shorter side of an image in training,
        longer_side: unless its longer side would exceed this.
        conventions: as of :func:`.build_detector`.
        settings: likewise.
        before: the scale that the others must be better than; None: the family's own.

    Returns:
        None if the detector has no anchors or is one of a plugin, or if there are no boxes.

    Raises:
        UserError: there is no such detector, or it does not have these settings.
    """
    family = family_of(name)
    if family is None or "anchor_scale" in family.refused:
        return None

    stated = json.dumps(dict(settings), default=str)  # a value that JSON lacks suits no setting

    def build(scale: float | None) -> Detector:
        return narrow_detector(name, scale, conventions, stated)

    objects = int((~data.records.ignore).sum())
    images = min(MOST, max(FEWEST, OBJECTS * len(data) // max(objects, 1)))

    def fit(scale: float | None) -> BoxFit | None:
        return fit_of_boxes(build(scale), data, shorter_side, longer_side, images)

    own = fit(None)
    if own is None or not own.objects:
        return None
    of_family = round(own.anchor_sides[0] / own.strides[0], 1)  # anchors are rounded
    now, fitted = (of_family, own) if before is None else (before, fit(before))
    assert fitted is not None  # there are objects, and the assignment is that of the family's own anchors
    margin = FAR_BETTER if own.background_below is None else MARGIN
    means = {now: _mean_over_classes(fitted)}
    if means[now] + margin <= ENOUGH:
        others = {of_family: own} | {factor * of_family: fit(factor * of_family) for factor in FACTORS}
        means |= {scale: _mean_over_classes(each) for scale, each in others.items() if each and scale != now}
    best = max(means, key=lambda scale: means[scale])
    better = means[best] >= means[now] + margin
    return ScaleFit(best if better else None, means[best if better else now], now, means[now], before is None)


@lru_cache(maxsize=8)
def narrow_detector(
    name: str,
    anchor_scale: float | None = None,
    conventions: Literal["torchvision", "mmdet"] = "torchvision",
    settings: str = "{}",
) -> Detector:
    """Return a detector whose anchors are to be read, which do not depend on widths; not to be changed.

    Args:
        name: of the detector.
        anchor_scale: as of :func:`.build_detector`,
        conventions: likewise,
        settings: likewise, as JSON.

    Raises:
        UserError: as :func:`.build_detector`.
    """
    options: Any = {"neck_channels": 16, "width_mult": 0.25, "conventions": conventions}
    return build_detector(name, num_classes=1, anchor_scale=anchor_scale, settings=json.loads(settings), **options)


def _mean_over_classes(fit: BoxFit) -> float:
    counted = fit.overlaps.clamp(max=ENOUGH)
    return float(torch.stack([counted[fit.labels == label].mean() for label in fit.labels.unique()]).mean())
