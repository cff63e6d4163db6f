"""Geometry of anchors and boxes: the only implementation of each function in the package.

Boxes are xyxy, in pixels of the padded batch unless stated otherwise.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import generalized_box_iou_loss

PADDING = 32
"""Images are padded at the right and the bottom to a multiple of this, in pixels."""


class StrideAnchors(nn.Module):
    """Lay anchors at multiples of each level's stride, for any size of the image.

    torchvision's generator rounds the sides of the anchors and divides the image's size by the number of cells. This
    one does neither. It is called in the same way.

    Args:
        strides: pixels per cell of each level, fine to coarse.
        scales: sides of the square anchors of a cell, in strides.
        ratios: height divided by width of the anchors.
        offset: centre of a cell's anchors, in strides from the cell's upper left corner.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float], offset: float = 0.0):
        super().__init__()
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)
        self.offset = offset

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of anchors per cell of each level."""
        return [len(self.scales) * len(self.ratios)] * len(self.strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Lay the anchors of all levels: per image (R, 4), xyxy in pixels, by level, row, column, anchor."""
        device = feature_maps[0].device
        levels = [
            self.level(stride, feature.shape[-2], feature.shape[-1], device)
            for stride, feature in zip(self.strides, feature_maps, strict=True)
        ]
        return [torch.cat(levels)] * len(image_list.image_sizes)

    def level(self, stride: int, height: int, width: int, device: torch.device) -> Tensor:
        """Lay the anchors of one level of `height` x `width` cells: (cells * anchors per cell, 4), float32."""
        scales = torch.tensor(self.scales, device=device)
        roots = torch.tensor(self.ratios, device=device).sqrt()
        widths = (stride * scales / roots[:, None]).flatten() / 2  # by ratio, then by scale
        heights = (stride * scales * roots[:, None]).flatten() / 2
        rows = (torch.arange(height, device=device) + self.offset) * stride
        columns = (torch.arange(width, device=device) + self.offset) * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
        return (points + torch.stack([-widths, -heights, widths, heights], dim=-1)).view(-1, 4)


def in_own_padding(anchors: Tensor, image_size: tuple[int, int] | None) -> Tensor:
    """Find the anchors that an image would have without the larger images of its batch.

    As in mmdet, the image's own padding rounds its size up to a multiple of 32 pixels. Anchors centred beyond it are
    not matched.

    Args:
        anchors: (R, 4), centred on whole pixels.
        image_size: height and width of the image without padding, in pixels. None: the image fills the batch.

    Returns:
        (R,) bool.
    """
    if image_size is None:
        return torch.ones_like(anchors[:, 0], dtype=torch.bool)
    height, width = (math.ceil(side / PADDING) * PADDING for side in image_size)
    # Half a pixel less, since the mean of two sides in float32 may miss a whole number by a little.
    return (centres(anchors) < anchors.new_tensor([width, height]) - 0.5).all(dim=-1)


def centres(boxes: Tensor) -> Tensor:
    """Compute the centres (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def distances_to_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Measure the distances (..., 4) from points (..., 2) to the left, top, right and bottom side of boxes (..., 4).

    A distance is negative if the point lies beyond the side.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Compute the boxes (..., 4) whose sides have the distances (..., 4) from points (..., 2)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def integral(raw: Tensor) -> Tensor:
    """Compute the expectation of each side's distribution over the distances 0, 1, ..., n.

    GFL (Li et al., NeurIPS 2020), Eq. 5.

    Args:
        raw: (..., 4 * (n + 1)) logits of the distances, side by side: left, top, right, bottom.

    Returns:
        (..., 4) distances, 0 to n.

    Examples:
        >>> integral(torch.zeros(1, 4 * 17))
        tensor([[8., 8., 8., 8.]])
    """
    shares = raw.unflatten(-1, (4, -1)).softmax(-1)
    return (shares * torch.arange(shares.shape[-1], device=raw.device)).sum(-1)  # no matmul: autocast rounds it


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def paired_iou(boxes: Tensor, others: Tensor, area: Callable[[Tensor], Tensor] = _areas) -> Tensor:
    """Compute the IoU of each box with the other box at the same position.

    Args:
        boxes: (..., 4).
        others: (..., 4).
        area: computes the areas (...) of boxes. Implementations differ in the last bit of their gradients.

    Returns:
        (...), 0 to 1; 0 for two empty boxes.

    Examples:
        >>> paired_iou(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 2]]))
        tensor([0.5000])
    """
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    # mmdet's limit is 1e-6. The two differ only if the union is smaller, so never for an object of the data.
    return overlap / (area(boxes) + area(others) - overlap).clamp(min=1e-7)


def paired_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the generalised IoU of each box with the other box at the same position.

    Rezatofighi et al., CVPR 2019.

    Args:
        boxes: (..., 4).
        others: (..., 4).

    Returns:
        (...), -1 to 1.
    """
    return 1 - generalized_box_iou_loss(boxes, others)


def true_centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Compute the centre-ness of each anchor in its object: 1 at the centre, 0 on the border or outside.

    FCOS (Tian et al., ICCV 2019), Eq. 3.

    Args:
        anchors: (P, 4); only their centres matter.
        boxes: (P, 4), the object of each anchor.

    Returns:
        (P,), 0 to 1.

    Examples:
        >>> true_centerness(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 10]]))
        tensor([0.5000])
    """
    before, after = distances_to_sides(centres(anchors), boxes).clamp(min=0).chunk(2, dim=-1)
    return (torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)).prod(-1).sqrt()


class ClippedBoxCoder(BoxCoder):
    """Code boxes as deltas to anchors; a side neither grows nor shrinks beyond a factor of 62.5, as in mmdet.

    torchvision's coder limits only the growth.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas (R, 4 * k) to boxes (R, 4): (R, 4 * k)."""
        deltas = rel_codes.unflatten(1, (-1, 4))
        # The coder divides the deltas of the sides by their weights before it limits them.
        least = -self.bbox_xform_clip * deltas.new_tensor(self.weights[2:])
        sides = torch.maximum(deltas[..., 2:], least)
        return super().decode_single(torch.cat([deltas[..., :2], sides], dim=-1).flatten(1), boxes)
