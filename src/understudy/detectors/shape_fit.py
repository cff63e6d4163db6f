"""How the shapes of a whole data set's boxes fit a detector's anchors: fast enough for every check of a data set.

:mod:`.anchor_fit` measures the assignment itself, anchor by anchor and image by image. Here each box is compared with
the anchor shapes as if one lay at its centre, which is an upper limit of its IoU with an anchor of the image.
"""

import torch
from torch import Tensor

from understudy.data import DetectionData
from understudy.detectors.anchor_fit import BoxFit, anchor_shapes
from understudy.detectors.anchor_scale import narrow_detector
from understudy.detectors.base import Detector

_AT_ONCE = 100_000  # boxes


def describe_boxes(
    data: DetectionData, detector: str, shorter_side: int, longer_side: int, anchor_scale: float | None = None
) -> tuple[str, list[str]]:
    """Describe box sizes at the training size beside the anchors of a detector, and what does not fit, with a remedy.

    Args:
        data: the split that is trained on.
        detector: name of the detector; its anchors do not depend on its width.
        shorter_side: as ``data.shorter_side``.
        longer_side: as ``data.longer_side``.
        anchor_scale: as ``detector.anchor_scale``.

    Returns:
        A line, empty if nothing is known of these anchors, and the remarks.

    Raises:
        UserError: the name is not known, or the detector has no such option.
    """
    fit = fit_of_shapes(narrow_detector(detector, anchor_scale), data, shorter_side, longer_side)
    if fit is None or not fit.objects:
        return "", []
    low, middle, high = fit.usual_sides
    smallest, largest = fit.anchor_sides
    line = (
        f"Side of the boxes of {data.split} at data.shorter_side={shorter_side}: 10 % below {low:.0f}, half below "
        f"{middle:.0f}, 10 % above {high:.0f} pixels; anchors of {detector}: {smallest:.0f} to {largest:.0f} pixels"
        + ("" if anchor_scale is None else f" (detector.anchor_scale={anchor_scale:g})")
    )
    remedy = f"Set {fit.remedy()}; for another detector or size: check --detector NAME --shorter-side N"
    return line, [f"{remark}, at data.shorter_side={shorter_side}. {remedy}" for remark in fit.remarks()]


@torch.no_grad()
def fit_of_shapes(detector: Detector, data: DetectionData, shorter_side: int, longer_side: int) -> BoxFit | None:
    """Compare the shapes of all boxes with those of the anchors; None if the detector has no dense predictions.

    Returns:
        The fit, whose overlaps are upper limits. How many anchors each box gets is not measured: one each.
    """
    spec = detector.spec
    if not (spec.dense and spec.first_anchors):
        return None
    boxes, labels = _shapes_and_labels(data, shorter_side, longer_side)
    return BoxFit.of(
        detector,
        sides=boxes.prod(1).sqrt(),
        labels=labels,
        positives=torch.ones(len(boxes), dtype=torch.int64),
        overlaps=_best_overlaps(boxes, anchor_shapes(spec)),
        levels={},
        size=(shorter_side, longer_side),
        images=len(data),
    )


def resized_shapes(data: DetectionData, shorter_side: int, longer_side: int) -> Tensor:
    """Return width and height (M, 2) of all boxes to train on, at the training size and clipped to their images."""
    return _shapes_and_labels(data, shorter_side, longer_side)[0]


def _shapes_and_labels(data: DetectionData, shorter_side: int, longer_side: int) -> tuple[Tensor, Tensor]:
    records = data.records
    sizes = records.images[:, 1:].double()
    scale = torch.minimum(shorter_side / sizes.amin(1), longer_side / sizes.amax(1))
    counts = records.ends.diff()
    limits = torch.repeat_interleave(sizes, counts, dim=0)
    corners = torch.minimum(records.boxes.reshape(-1, 2, 2).clamp(min=0), limits[:, None])
    shapes = (corners[:, 1] - corners[:, 0]) * torch.repeat_interleave(scale, counts)[:, None]
    seen = ~records.ignore & (shapes > 0).all(1)
    return shapes[seen].float(), records.labels[seen]


def _best_overlaps(boxes: Tensor, shapes: Tensor) -> Tensor:
    """Return the highest IoU (M,) of boxes (M, 2) with anchors (A, 2), widths and heights with a common centre."""
    found = [torch.zeros(0)]
    for part in boxes.split(_AT_ONCE):
        common = torch.minimum(part[:, None], shapes).prod(2)
        found.append((common / (part.prod(1)[:, None] + shapes.prod(1) - common)).amax(1))
    return torch.cat(found)
