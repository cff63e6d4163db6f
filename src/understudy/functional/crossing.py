"""Student maps on the scale of the teacher's, and the centre-ness of anchors (CrossKD, FCOS)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.functional.features import standardised
from understudy.functional.precision import comparable
from understudy.networks.geometry import true_centerness
from understudy.outputs import Truth


def align_scale(student: Tensor, teacher: Tensor) -> Tensor:
    """Give each channel of a student's map the mean and the deviation of the teacher's.

    CrossKD (Wang et al., CVPR 2024), as in the authors' code: each channel is standardised over the images and cells of
    the batch (the deviation is unbiased, plus 1e-6), then scaled to the teacher's deviation and shifted to its mean.
    Gradient flows through the student's statistics, too. A channel that is constant, or has a single cell, becomes the
    teacher's mean.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), the teacher's map at the same place; a constant.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: the shapes differ.

    Examples:
        >>> teacher = torch.tensor([[[[2.0, 4, 6]]]])
        >>> align_scale(torch.tensor([[[[0.0, 1, 2]]]]), teacher).round(decimals=3)
        tensor([[[[2., 4., 6.]]]])
    """
    own, theirs = comparable(student, teacher, "maps")
    correction = min(1, theirs[:, 0].numel() - 1)  # a single cell has no unbiased deviation
    deviation = theirs.std((0, 2, 3), correction=correction, keepdim=True)
    return standardised(own) * deviation + theirs.mean((0, 2, 3), keepdim=True)


def total_centerness(anchors: Sequence[Tensor], truth: Truth) -> Tensor:
    """Sum the true centre-ness of all anchors that are assigned to an object: the divisor of an FCOS' box loss.

    mmdet's FCOS and CrossKD's authors sum :func:`true_centerness` over the positives of the batch.

    Args:
        anchors: per level (H, W, A, 4), xyxy in pixels.
        truth: ground truth and the assignment of these anchors.

    Returns:
        A scalar; 0 if no anchor is assigned.
    """
    flat = torch.cat([level.flatten(0, 2) for level in anchors])
    images = zip(truth.gt_index, truth.targets, strict=True)
    return torch.cat([true_centerness(flat[row >= 0], target["boxes"][row[row >= 0]]) for row, target in images]).sum()
