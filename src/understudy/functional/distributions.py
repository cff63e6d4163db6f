"""Losses between distributions: softened class scores, and box sides as distributions (Hinton, LD)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, distance_box_iou

from understudy.functional.precision import above_zero, comparable
from understudy.networks.geometry import centres

Nearness = Literal["code", "paper"]
"""What the region of LD is bounded by: as in its authors' code, or as in the paper."""


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the divergence of the teacher's distribution from the student's, both softened by a temperature.

    Knowledge distillation (Hinton et al., 2015), section 2: the Kullback-Leibler divergence of the two softmaxes, of
    logits divided by the temperature T, times T squared. The factor keeps the size of the gradient independent of T.

    Args:
        student: (..., X) logits.
        teacher: (..., X) logits; a constant.
        temperature: above 0. A higher one gives small shares more influence.

    Returns:
        (...), the sum over the X entries; not reduced further.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -2.0]])
        >>> softened_divergence(student, teacher)
        tensor([0.6031])
        >>> softened_divergence(teacher + 1, teacher) < 1e-6  # the same distribution
        tensor([True])
    """
    pair = comparable(student, teacher, "logits")
    own, theirs = ((logits / above_zero(temperature)).log_softmax(-1) for logits in pair)
    return (theirs.exp() * (theirs - own)).sum(-1) * temperature**2


def side_divergence(student: Tensor, teacher: Tensor, temperature: float = 10.0) -> Tensor:
    """Compute the divergence of the teacher's box sides, as distributions, from the student's.

    LD (Zheng et al., CVPR 2022), localisation distillation: :func:`softened_divergence` of each side, averaged over its
    bins as in the authors' code.

    Args:
        student: (..., 4 * (n + 1)) logits of the distances 0 to n of four sides.
        teacher: of the same shape; a constant.
        temperature: above 0; 10 in the paper.

    Returns:
        (...), the mean over bins and over the four sides.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    own, theirs = student.unflatten(-1, (4, -1)), teacher.unflatten(-1, (4, -1))
    return softened_divergence(own, theirs, temperature).mean(-1) / own.shape[-1]


@torch.no_grad()
def atss_thresholds(anchors: Sequence[Tensor], boxes: Tensor, counted: Tensor, candidates: int = 9) -> Tensor:
    """Compute for each object the IoU from which on ATSS assigns an anchor to it.

    ATSS (Zhang et al., CVPR 2020), Algorithm 1: the mean plus the deviation of the IoU of the object's candidates,
    which are the anchors of each level whose centres are nearest to its own.

    Args:
        anchors: per level (R_l, 4), xyxy.
        boxes: (M, 4), xyxy.
        counted: (M, R) bool, the anchors that may be an object's candidates.
        candidates: number of candidates of an object per level.

    Returns:
        (M,), 0 for an object without candidates.
    """
    flat = torch.cat(list(anchors))
    distances = (centres(flat) - centres(boxes)[:, None]).square().sum(-1)  # (M, R)
    distances = distances.masked_fill(~counted, torch.inf)
    nearest, start = [], 0
    for level in distances.split([len(level) for level in anchors], dim=1):
        nearest.append(start + level.topk(min(candidates, level.shape[1]), dim=1, largest=False).indices)
        start += level.shape[1]
    index = torch.cat(nearest, dim=1)
    valid = counted.gather(1, index)
    overlaps = box_iou(boxes, flat).gather(1, index)
    number = valid.sum(1)
    mean = (overlaps * valid).sum(1) / number.clamp(min=1)
    squares = ((overlaps - mean[:, None]).square() * valid).sum(1)
    return mean + (squares / (number - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def valuable_region(
    anchors: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    counted: Tensor,
    nearness: Nearness = "code",
) -> Tensor:
    """Weight the anchors around the objects that are not assigned to them, but useful for their sides.

    LD (Zheng et al., CVPR 2022), the valuable localisation region: anchors whose nearness to an object is below its
    threshold by :func:`atss_thresholds`, and at least a quarter of it. An anchor's weight is its IoU, the highest of
    several objects that claim it, as in the authors' code.

    Args:
        anchors: per level (R_l, 4), xyxy; the same for all images.
        boxes: (M, 4), xyxy, the objects of all images.
        image: (M,) int64, the image of each object.
        counted: (N, R) bool; ignored anchors are False and get no weight.
        nearness: ``"paper"``, the distance IoU; or ``"code"``, the same with the intersection divided by the area of
            the anchor, not of the union.

    Returns:
        (N, R), 0..1; 0 outside the region.
    """
    flat, own = torch.cat(list(anchors)), counted[image]
    threshold = atss_thresholds(anchors, boxes, own)[:, None]
    overlaps, near = box_iou(boxes, flat), distance_box_iou(boxes, flat)
    if nearness == "code":  # the intersection is IoU / (1 + IoU) of the sum of both areas
        near = near - overlaps + overlaps / (1 + overlaps) * (1 + box_area(boxes)[:, None] / box_area(flat))
    region = (near >= threshold / 4) & (near < threshold) & own
    weights = overlaps * region
    nothing = torch.zeros(counted.shape, device=flat.device, dtype=weights.dtype)
    return nothing.scatter_reduce(0, image[:, None].expand_as(weights), weights, "amax")
