"""The transforms of images and boxes: resize, flip, pad. Teacher and student receive the same pixels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PAD_MULTIPLE = 32


def resized_size(size: Sequence[int], shorter_side: int, longer_side: int) -> tuple[int, int]:
    """Return the height and width of an image of `size` (h, w) after it is resized.

    Its shorter side has the given length, unless the longer side would exceed its limit.

    Args:
        size: height and width in pixels.
        shorter_side: length of the shorter side in pixels.
        longer_side: largest length of the longer side in pixels.

    >>> resized_size((60, 100), shorter_side=30, longer_side=40)
    (24, 40)
    """
    scale = min(shorter_side / min(size), longer_side / max(size))
    height, width = (max(1, math.floor(side * scale)) for side in size)  # a strip keeps one pixel
    return height, width


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale an image (3, H, W), float in 0..1, to `size` (h, w).

    The arithmetic is that of torchvision's detection models at inference: an exported model that resizes by itself
    computes the same pixels.
    """
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def padded_size(size: Sequence[int], multiple: int = PAD_MULTIPLE) -> tuple[int, int]:
    """Return a height and width rounded up to multiples.

    >>> padded_size((33, 20))
    (64, 32)
    """
    return math.ceil(size[0] / multiple) * multiple, math.ceil(size[1] / multiple) * multiple


def scale_boxes(boxes: Tensor, from_size: Sequence[int], to_size: Sequence[int]) -> Tensor:
    """Scale boxes (M, 4) xyxy from an image of `from_size` (h, w) to the same image at `to_size` (h, w)."""
    x_scale, y_scale = to_size[1] / from_size[1], to_size[0] / from_size[0]
    return boxes * boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Clip boxes (M, 4) xyxy to an image of `size` (h, w).

    >>> clip_boxes(torch.tensor([[-5.0, 2.0, 30.0, 9.0]]), (8, 20))
    tensor([[ 0.,  2., 20.,  8.]])
    """
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Mirror boxes (M, 4) xyxy of an image of a width horizontally.

    >>> flip_boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 10)
    tensor([[7., 2., 9., 4.]])
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def pad_to_batch(images: Sequence[Tensor], multiple: int = PAD_MULTIPLE) -> Tensor:
    """Pad images (3, h, w) with zeros at the bottom and right to a batch (N, 3, H, W).

    H and W are the largest height and width, rounded up to a multiple of `multiple`.

    >>> tuple(pad_to_batch([torch.ones(3, 20, 30), torch.ones(3, 33, 20)]).shape)
    (2, 3, 64, 32)
    """
    return pad_to(images, padded_size([max(image.shape[axis] for image in images) for axis in (-2, -1)], multiple))


def pad_to(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Pad images (3, h, w) with zeros at the bottom and right to a batch (N, 3, H, W) of `size` (h, w)."""
    batch = images[0].new_zeros(len(images), 3, *size)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    return batch
