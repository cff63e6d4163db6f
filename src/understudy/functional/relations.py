"""How the cells of a map relate to each other, which two detectors can be compared by."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.functional.precision import at_least_float32, same_shape


def pooled(features: Tensor, max_cells: int) -> Tensor:
    """Merge square patches of cells, the smallest that leave few enough of them.

    Args:
        features: (N, C, H, W).
        max_cells: 1 or more.

    Returns:
        (N, C, h, w), the maximum of each patch, with h * w at most ``max_cells``; patches at the right and lower edge
        may be smaller.
    """
    height, width = features.shape[-2:]
    side = max(1, math.isqrt(height * width // max_cells))
    while math.ceil(height / side) * math.ceil(width / side) > max_cells:
        side += 1
    return features if side == 1 else F.max_pool2d(features, side, ceil_mode=True)


def cosine_similarities(features: Tensor) -> Tensor:
    """Say of every two cells of an image how alike their features are.

    Structured knowledge distillation (Liu et al., CVPR 2019). As in the authors' code the length of a cell's
    feature is a constant: no gradient flows through it.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, H * W, H * W), in -1..1; zero for a cell without features.
    """
    features = at_least_float32(features)
    length = torch.linalg.vector_norm(features.detach(), dim=1, keepdim=True)
    # A cell of zeros stays one: divided by next to nothing it would get a gradient of a hundred millions.
    unit = (features / torch.where(length > 0, length + 1e-8, torch.inf)).flatten(2)
    # Autocast would round the products, whose small differences are the loss, to half precision.
    with torch.autocast(features.device.type, enabled=False):
        return unit.transpose(1, 2) @ unit


def pairwise_loss(student: Tensor, teacher: Tensor, max_cells: int | None = None) -> Tensor:
    """Let two cells be alike to the student where they are to the teacher; the channels need not agree.

    The pair-wise term of structured knowledge distillation (Liu et al., CVPR 2019): squared differences of the cosine
    similarities of all pairs of cells of an image, averaged over these pairs and over images.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W), any number of channels; a constant.
        max_cells: both are first pooled to at most so many cells, see :func:`pooled`; None: all, with memory for the
            square of their number.

    Returns:
        A scalar.

    Raises:
        ValueError: images or cells differ in number.
    """
    if (len(student), student.shape[2:]) != (len(teacher), teacher.shape[2:]):
        raise ValueError(
            f"features to compare differ in images or cells: student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)}"
        )
    if max_cells is not None:
        student, teacher = pooled(student, max_cells), pooled(teacher, max_cells)
    return (cosine_similarities(student) - cosine_similarities(teacher.detach())).square().mean()


def non_local(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Collect for every cell the values of all others, each as far as its key agrees with the cell's query.

    Non-local networks (Wang et al., CVPR 2018), Eq. 1 and 4, the dot-product form, which FKD uses: products of query
    and key over channels, times the values, averaged over the cells of the keys.

    Args:
        query: (N, C, H, W).
        key: (N, C, h, w), of as many cells or fewer.
        value: (N, C, h, w).

    Returns:
        (N, C, H, W).
    """
    queries, keys, values = (at_least_float32(part).flatten(2) for part in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        # Without a softmax the order of the two products is free; this one never holds a matrix of cells times cells.
        collected = values @ keys.transpose(1, 2) / keys.shape[2] @ queries
    return collected.view_as(query)


def joint_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Measure how far two maps lie apart as two long vectors; both sides are trained.

    The non-local term of FKD (Zhang & Ma, ICLR 2021), in the reduction of its authors' code: the square root of
    squared differences summed over everything, the batch included. Nothing is averaged: a batch that is repeated twice
    gives sqrt(2) times the value. Unlike elsewhere the teacher's side keeps its gradient, for FKD trains a non-local
    block there; the teacher's features must be detached before that block.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W).

    Returns:
        A scalar; where the two are equal its gradient is zero.

    Raises:
        ValueError: shapes differ.
    """
    same_shape(student, teacher, "relations")
    return torch.linalg.vector_norm(at_least_float32(student) - at_least_float32(teacher))
