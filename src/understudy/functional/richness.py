"""What a teacher sees in every cell, and losses under such a weight map (FRS)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from understudy.functional.precision import at_least_float32

Normaliser = Literal["batch", "image"]

SMALLEST_MASS = 1e-6
"""A weight map that sums to less is divided by this instead, so that an empty mask gives zero and not NaN."""


def feature_richness(class_logits: Tensor) -> Tensor:
    """Say how much a detector sees in every cell: its highest class score there.

    FRS (Du et al., NeurIPS 2021), Eq. 5. The paper takes the maximum over classes; the authors' code takes it over
    classes and anchors, and so does this.

    Args:
        class_logits: (N, H, W, A, K), before the sigmoid.

    Returns:
        (N, H, W), in 0..1. Differentiable; a teacher's richness is used as a constant.
    """
    return at_least_float32(class_logits).amax((-2, -1)).sigmoid()


def highest_of_cell(class_logits: Tensor) -> Tensor:
    """Keep, for each class, the highest score of a cell over its anchors, so that detectors with other anchors compare.

    Args:
        class_logits: (N, H, W, A, K).

    Returns:
        (N, H, W, 1, K); anchors with the same highest score share its gradient.
    """
    return class_logits.amax(-2, keepdim=True)


def weighted_feature_loss(student: Tensor, teacher: Tensor, weight: Tensor, normaliser: Normaliser = "batch") -> Tensor:
    """Compare two feature maps of one level where a weight map says it matters.

    FRS (Du et al., NeurIPS 2021), Eq. 6, for one level: squared differences, summed over channels, weighted and
    summed over cells, divided by the sum of the weights.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W); a constant, no gradient reaches it.
        weight: (N, H, W), not negative; its scale does not matter.
        normaliser: ``"batch"`` sums cells of all images and divides once by the weights of all images (the authors'
            code); ``"image"`` divides per image and averages over images (the equation read literally).

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the normaliser is unknown.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features to compare differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return _weighted_mean_of_cells(difference.square().sum(1), weight, normaliser)


def weighted_class_loss(student: Tensor, teacher: Tensor, weight: Tensor, normaliser: Normaliser = "batch") -> Tensor:
    """Compare two classification maps of one level where a weight map says it matters.

    FRS (Du et al., NeurIPS 2021), Eq. 7, for one level: binary cross-entropy of the student's scores with the
    teacher's scores as soft targets, summed over anchors and classes, weighted and summed over cells, divided by the
    sum of the weights. Its smallest value is the teacher's own entropy, not zero.

    Args:
        student: (N, H, W, A, K) logits.
        teacher: (N, H, W, A, K) logits; their sigmoid is the target, a constant.
        weight: (N, H, W), not negative.
        normaliser: as in :func:`weighted_feature_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the normaliser is unknown.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"class logits to compare differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    target = at_least_float32(teacher.detach()).sigmoid()
    entropy = F.binary_cross_entropy_with_logits(at_least_float32(student), target, reduction="none")
    return _weighted_mean_of_cells(entropy.sum((-2, -1)), weight, normaliser)


def _weighted_mean_of_cells(cells: Tensor, weight: Tensor, normaliser: Normaliser) -> Tensor:
    if cells.shape != weight.shape:
        raise ValueError(f"the weight map is {tuple(weight.shape)}, the cells to weight are {tuple(cells.shape)}")
    weight = at_least_float32(weight)
    if normaliser == "batch":
        return (cells * weight).sum() / weight.sum().clamp(min=SMALLEST_MASS)
    if normaliser == "image":
        return ((cells * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=SMALLEST_MASS)).mean()
    raise ValueError(f'normaliser is "batch" or "image", got {normaliser!r}')
