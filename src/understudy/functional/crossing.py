"""A student's maps made fit for the teacher's layers, and how central an anchor lies (CrossKD, FCOS)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.functional.features import standardised
from understudy.functional.precision import comparable
from understudy.outputs import Truth


def align_scale(student: Tensor, teacher: Tensor) -> Tensor:
    """Give a student's map the mean and the spread of the teacher's, so that the teacher's layers can read it.

    CrossKD (Wang et al., CVPR 2024), as in the authors' code: every channel is standardised over the images and cells
    of the batch (the deviation is unbiased, plus 1e-6), then takes the teacher's deviation and mean. Gradient flows
    through the student's statistics, too. A channel that is constant, or of a single cell, becomes the teacher's mean.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), the map at the same place of the teacher, a constant.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: shapes differ.
    """
    own, theirs = comparable(student, teacher, "maps")
    correction = min(1, theirs[:, 0].numel() - 1)  # a single cell has no unbiased deviation
    deviation = theirs.std((0, 2, 3), correction=correction, keepdim=True)
    return standardised(own) * deviation + theirs.mean((0, 2, 3), keepdim=True)


def true_centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Say how central an anchor lies in its object: 1 in the middle, 0 on the border or outside.

    FCOS (Tian et al., ICCV 2019), Eq. 3.

    Args:
        anchors: (P, 4) xyxy, whose centres count.
        boxes: (P, 4) xyxy, the object of each.

    Returns:
        (P,).
    """
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = (centres - boxes[:, :2]).clamp(min=0), (boxes[:, 2:] - centres).clamp(min=0)
    return (torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)).prod(-1).sqrt()


def total_centerness(anchors: Sequence[Tensor], truth: Truth) -> Tensor:
    """Count the anchors that have an object, each by how central it lies: what an FCOS divides its box loss by.

    The sum of :func:`true_centerness` over the positives of the batch, as mmdet's FCOS and CrossKD's authors have it.

    Args:
        anchors: per level (H, W, A, 4), xyxy in pixels.
        truth: ground truth and the assignment of these anchors.

    Returns:
        A scalar; 0 where nothing is assigned.
    """
    flat = torch.cat([level.flatten(0, 2) for level in anchors])
    images = zip(truth.gt_index, truth.targets, strict=True)
    return torch.cat([true_centerness(flat[row >= 0], target["boxes"][row[row >= 0]]) for row, target in images]).sum()
