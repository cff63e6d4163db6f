"""Relations between the cells of a map, by which detectors with different channels can be compared."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.functional.precision import at_least_float32, same_shape


def pooled(features: Tensor, max_cells: int) -> Tensor:
    """Max-pool square patches of cells, the smallest that leave at most a number of cells.

    Args:
        features: (N, C, H, W).
        max_cells: 1 or more.

    Returns:
        (N, C, h, w), the maximum of each patch, with h * w at most ``max_cells``. Patches at the right and lower edge
        may be smaller.

    Examples:
        >>> pooled(torch.rand(1, 3, 40, 60), max_cells=700).shape
        torch.Size([1, 3, 20, 30])
    """
    height, width = features.shape[-2:]
    side = max(1, math.isqrt(height * width // max_cells))
    while math.ceil(height / side) * math.ceil(width / side) > max_cells:
        side += 1
    return features if side == 1 else F.max_pool2d(features, side, ceil_mode=True)


def cosine_similarities(features: Tensor) -> Tensor:
    """Compute the cosine similarity of the features of every two cells of an image.

    Structured knowledge distillation (Liu et al., CVPR 2019). As in the authors' code the length of a cell's feature
    is a constant: no gradient flows through it.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, H * W, H * W), in -1..1; zero for a cell whose feature is zero.
    """
    features = at_least_float32(features)
    length = torch.linalg.vector_norm(features.detach(), dim=1, keepdim=True)
    # A cell of zeros stays zero: divided by almost nothing it would get a gradient of a hundred million.
    unit = (features / torch.where(length > 0, length + 1e-8, torch.inf)).flatten(2)
    # Autocast would round the products to half precision, and their small differences are the loss.
    with torch.autocast(features.device.type, enabled=False):
        return unit.transpose(1, 2) @ unit


def pairwise_loss(student: Tensor, teacher: Tensor, max_cells: int | None = None) -> Tensor:
    """Compute the mean squared difference of the cosine similarities of all pairs of cells.

    The pair-wise term of structured knowledge distillation (Liu et al., CVPR 2019), averaged over the pairs of cells of
    an image and over images. The channels need not agree.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W), a constant.
        max_cells: largest number of cells, to which both are first pooled, see :func:`pooled`. None: all cells, with
            memory for the square of their number.

    Returns:
        A scalar.

    Raises:
        ValueError: the numbers of images or cells differ.

    Examples:
        >>> maps = torch.rand(1, 3, 4, 4)
        >>> pairwise_loss(2 * maps, maps) < 1e-6
        tensor(True)
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
    """Sum the values of all cells for each cell, each weighted by the product of its key and the cell's query.

    Non-local networks (Wang et al., CVPR 2018), Eq. 1 and 4, the dot-product form, which FKD uses: products of query
    and key over channels, times the values, averaged over the cells of the keys.

    Args:
        query: (N, C, H, W).
        key: (N, C, h, w), with as many cells or fewer.
        value: (N, C, h, w).

    Returns:
        (N, C, H, W).
    """
    queries, keys, values = (at_least_float32(part).flatten(2) for part in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        # Without a softmax the order of the two products is free. This one needs no matrix of cells times cells.
        collected = values @ keys.transpose(1, 2) / keys.shape[2] @ queries
    return collected.view_as(query)


def joint_distance(student: Tensor, teacher: Tensor, images: int | None = None) -> Tensor:
    """Compute the 2-norm of the difference of two maps, over the whole batch, with a gradient to both.

    The non-local term of FKD (Zhang & Ma, ICLR 2021), in the reduction of its authors' code: the square root of the
    squared differences, summed over everything, the batch included. It is no average: repeating the batch twice
    multiplies it by sqrt(2), unless ``images`` is given. Unlike elsewhere the teacher's side keeps its gradient, since
    FKD trains a non-local block there. Detach the teacher's features before that block.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W).
        images: as in :func:`.batch_distance`.

    Returns:
        A scalar; if the two are equal, its gradient is zero.

    Raises:
        ValueError: shapes differ.
    """
    same_shape(student, teacher, "relations")
    distance = torch.linalg.vector_norm(at_least_float32(student) - at_least_float32(teacher))
    return distance * math.sqrt(images / len(student) if images else 1)
