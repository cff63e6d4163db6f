"""The cells of the objects, and feature losses in them (FGFI, DeFeat, FGD)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from understudy.functional.features import channel_attention, spatial_attention
from understudy.functional.precision import at_least_float32, comparable, same_shape
from understudy.networks.geometry import centres
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Target, Truth, unflatten_levels

FINEST_SIDE = 56.0
"""Objects of less than twice this side, by :func:`object_cells`, are on the finest level (DeFeat's code)."""

POINT_CELLS = 8
"""Side in cells of the box that takes the place of a point: as wide as an anchor of ATSS and GFL."""


def widened_points(anchors: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Return boxes that overlap with objects in place of anchors that are points.

    torchvision and mmdet make them one cell wide, regardless of the size of the objects that their level predicts. A
    square of 8 cells around the middle, as in ATSS and GFL, is our choice.

    Args:
        anchors: per level (H, W, A, 4), xyxy in pixels.
        strides: pixels per cell of every level.

    Returns:
        Per level (H, W, A, 4).
    """
    middles = [centres(level) for level in anchors]
    halves = [POINT_CELLS * stride / 2 for stride in strides]
    return [torch.cat([each - half, each + half], dim=-1) for each, half in zip(middles, halves, strict=True)]


def imitated_cells(anchors: Sequence[Tensor], targets: Sequence[Target], share: float = 0.5) -> list[Tensor]:
    """Choose the cells whose anchors are near an object.

    The imitation mask of FGFI (Wang et al., CVPR 2019). A cell is chosen if one of its anchors overlaps an object by
    more than a share of the largest IoU that any anchor has with this object. The paper has one level. Our reading: the
    largest IoU is taken over the anchors of all levels, so that an object is imitated on the levels of its size.

    Args:
        anchors: per level (H, W, A, 4), xyxy in pixels.
        targets: ground truth per image.
        share: 0..1; 1 chooses nothing.

    Returns:
        Per level (N, H, W) bool.
    """
    flat = torch.cat([level.flatten(0, 2) for level in anchors])
    near = []
    for target in targets:
        overlap = box_iou(target["boxes"].to(flat.dtype), flat)
        near.append((overlap > share * overlap.amax(1, keepdim=True)).any(0))
    sizes = [(level.shape[0], level.shape[1]) for level in anchors]
    return [level.any(-1) for level in unflatten_levels(torch.stack(near), sizes, anchors[0].shape[2])]


def object_cells(
    boxes: Sequence[Tensor], strides: Sequence[int], level_sizes: Sequence[tuple[int, int]], finest: int | None = None
) -> list[Tensor]:
    """Choose the cells inside objects, each object on the one level of its size.

    The masks of DeFeat (Guo et al., CVPR 2021) by the authors' code. An object of side s is on level floor(log2(s /
    56)), counted from the finest, where s is the root of its area, with width and height one pixel longer. It fills the
    cells from that of its first corner to the one before that of its last. Two things are ours. Levels are counted by
    their strides, each twice the one before, so that a level's objects do not depend on which other levels there are.
    An object whose own level is absent is on the next finer level, or else on the finest. An object thinner than a cell
    fills at least one row and column; the code's rule then chooses a single cell.

    Args:
        boxes: per image (M, 4), xyxy in pixels.
        strides: pixels per cell of every level.
        level_sizes: height and width in cells of every level.
        finest: the stride to count from; None: that of the first level.

    Returns:
        Per level (N, H, W) bool.

    Examples:
        >>> masks = object_cells([torch.tensor([[0.0, 0, 24, 16]])], strides=(8, 16), level_sizes=[(4, 4), (2, 2)])
        >>> [int(mask.sum()) for mask in masks]
        [6, 0]
    """
    masks: list[list[Tensor]] = [[] for _ in strides]
    for each in boxes:
        sides = (each[:, 2:] - each[:, :2] + 1).clamp(min=1).prod(1).sqrt()
        wanted = (sides / FINEST_SIDE + 1e-6).log2().floor().clamp(min=0) + math.log2(finest or strides[0])
        levels = (wanted[:, None] >= wanted.new_tensor([math.log2(stride) for stride in strides[1:]])).sum(1)
        for level, (stride, size) in enumerate(zip(strides, level_sizes, strict=True)):
            first, last = (each[levels == level] / stride).long().chunk(2, dim=1)
            masks[level].append(_rectangles(first, torch.maximum(last, first + 1), size).any(0))
    return [torch.stack(images) for images in masks]


def decoupled_cells(
    truth: Truth, strides: Sequence[int], level_sizes: Sequence[tuple[int, int]], finest: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Divide the cells into those of the objects and those of the background (DeFeat, Guo et al., CVPR 2021).

    The objects' cells are those of :func:`object_cells`, the background is the rest. Ours: the cells of an unlabelled
    image are in neither, nor are those of objects of classes that the teacher lacks, unless another object is there.

    Args:
        truth: ground truth.
        strides: pixels per cell of every level.
        level_sizes: height and width in cells of every level.
        finest: the stride from which the levels of objects are counted; None: that of the first level.

    Returns:
        Foreground and background, each per level (N, H, W) bool.
    """
    levels, labelled = (strides, level_sizes, finest), truth.labelled[:, None, None]
    objects = object_cells([target["boxes"] for target in truth.targets], *levels)
    unknown = object_cells(truth.left_out, *levels) if truth.left_out else [torch.zeros_like(mask) for mask in objects]
    background = [labelled & ~(known | other) for known, other in zip(objects, unknown, strict=True)]
    return [labelled & mask for mask in objects], background


def imitation_loss(student: Tensor, teacher: Tensor, cells: Tensor) -> Tensor:
    """Compute half of the squared difference of two feature maps, averaged over some cells.

    FGFI's imitation loss (Wang et al., CVPR 2019), for one level: summed over channels, averaged over the chosen cells
    of the whole batch (their number averaged over processes), halved. Divided by the number of channels it is the loss
    of DeFeat (Guo et al., CVPR 2021) for one kind of cell, as its authors' code reduces it.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W), a constant: no gradient reaches it.
        cells: (N, H, W) bool.

    Returns:
        A scalar; zero without cells.

    Raises:
        ValueError: shapes differ.
    """
    own, theirs = comparable(student, teacher)
    _check_cells(cells, own)
    # Chosen before the square, and not by a product with 0: values of other cells, even NaN, must give no gradient.
    return torch.where(cells[:, None], own - theirs, 0).square().sum() / averaged_over_processes(2 * cells.sum())


def area_weights(truth: Truth, size: tuple[int, int], image_sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Weight the cells of each object by one over its area, and background cells by one over their number.

    The binary and the scale mask of FGD (Yang et al., CVPR 2022). A cell of an object has the weight of one over the
    area of its box in cells, that of the smallest box where several overlap. As in the authors' code a box is stretched
    from the image without its padding to the whole map, rounded outwards, and its last row and column are part of it.
    Ours: the cells of an unlabelled image have weight 0, and so have those of objects of classes that the teacher
    lacks, unless another object is there.

    Args:
        truth: ground truth.
        size: height and width of the level in cells.
        image_sizes: height and width in pixels of each image without its padding.

    Returns:
        Foreground and background, (N, H, W) each. The background of an image sums to 1, or to 0 if there is none.
    """
    labelled = truth.labelled[:, None, None]
    foreground = _highest_shares([target["boxes"] for target in truth.targets], size, image_sizes) * labelled
    nothing = labelled & (foreground == 0)
    if truth.left_out:
        nothing &= _highest_shares(truth.left_out, size, image_sizes) == 0
    return foreground, nothing / nothing.sum((1, 2), keepdim=True).clamp(min=1)


def sizes_of_images(outputs: Outputs, stride: int) -> Sequence[tuple[int, int]]:
    """Return the height and width in pixels of each image without its padding; if unknown, those of the batch.

    Args:
        outputs: a record.
        stride: pixels per cell of its finest level.
    """
    if outputs.image_sizes is not None:
        return outputs.image_sizes
    rows, columns = outputs.level_sizes[0]
    return [(rows * stride, columns * stride)] * len(outputs.features[0])


def focal_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, temperature: float = 0.5, images: Tensor | None = None
) -> Tensor:
    """Compute the squared difference of two feature maps under the teacher's attention and a weight map.

    The feature loss of FGD (Yang et al., CVPR 2022), one of its two sums for one level: multiplied by the teacher's
    attention to cells and to channels and by the weights, summed over channels and cells, averaged over images.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W), a constant.
        weight: (N, H, W), of :func:`area_weights`.
        temperature: of the attention, above zero.
        images: number of images to average over, those that have weights; None: all.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the temperature is not above zero.
    """
    own, theirs = comparable(student, teacher)
    _check_cells(weight, own)
    spatial, channel = _attention(theirs, temperature)
    per_cell = ((own - theirs).square() * channel[:, :, None, None]).sum(1)
    return (per_cell * spatial * weight).sum() / (len(student) if images is None else images.clamp(min=1))


def attention_loss(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> Tensor:
    """Compute the absolute difference of the attentions of two maps to cells and to channels.

    The attention loss of FGD (Yang et al., CVPR 2022), for one level: summed over cells and channels respectively,
    averaged over images.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W), a constant.
        temperature: of the attention, above zero.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the temperature is not above zero.
    """
    pairs = zip(*(_attention(features, temperature) for features in comparable(student, teacher)), strict=True)
    return torch.stack([(own - theirs).abs().sum() for own, theirs in pairs]).sum() / len(student)


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared difference of two maps to which the context of the whole image has been added.

    The global loss of FGD (Yang et al., CVPR 2022), for one level: summed over channels and cells, averaged over
    images. The teacher's side is no constant here: the block that adds its context is trained, too.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), of the teacher's block.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    same_shape(student, teacher)
    return (at_least_float32(student) - at_least_float32(teacher)).square().sum() / len(student)


def _check_cells(cells: Tensor, features: Tensor) -> None:
    if cells.shape != features[:, 0].shape:
        raise ValueError(f"cells of shape {tuple(cells.shape)} do not match features of shape {tuple(features.shape)}")


def _attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return spatial_attention(features, temperature), channel_attention(features, temperature)


def _highest_shares(boxes: Sequence[Tensor], size: tuple[int, int], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return one over the area in cells of the smallest box over each cell, 0 without a box: (N, H, W)."""
    images = []
    for each, (height, width) in zip(boxes, image_sizes, strict=True):
        low, high = each.split(2, dim=1)
        image, grid = each.new_tensor([width, height]), each.new_tensor([size[1], size[0]])
        first, last = (low / image * grid).floor().long(), (high / image * grid).ceil().long() + 1
        shares = _rectangles(first, last, size) / (last - first).prod(1)[:, None, None]
        images.append(torch.cat([shares, shares.new_zeros(1, *size)]).amax(0))
    return torch.stack(images)


def _rectangles(first: Tensor, last: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the cells from a first corner (M, 2), x and y, to before a last one: (M, H, W) bool."""
    rows, columns = (torch.arange(length, device=first.device) for length in size)
    in_rows = (rows >= first[:, 1:]) & (rows < last[:, 1:])
    in_columns = (columns >= first[:, :1]) & (columns < last[:, :1])
    return in_rows[:, :, None] & in_columns[:, None, :]
