"""What happens to an image and its boxes between the disk and the batch: resize, flip, pad, once for everybody."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PAD_MULTIPLE = 32


def resize(image: Tensor, shorter_side: int, longer_side: int) -> Tensor:
    """Scale an image so that its shorter side has the wanted length, or its longer side the cap.

    The same arithmetic as torchvision's detection models have at inference, so that an exported model that resizes
    by itself sees the same pixels.

    Args:
        image: (3, H, W) float in 0..1.
        shorter_side: pixels wanted.
        longer_side: cap in pixels.
    """
    height, width = image.shape[-2:]
    scale = min(shorter_side / min(height, width), longer_side / max(height, width))
    resized = F.interpolate(
        image[None], scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=True
    )
    return resized[0]


def scale_boxes(boxes: Tensor, from_size: Sequence[int], to_size: Sequence[int]) -> Tensor:
    """Boxes (M, 4) xyxy of an image of `from_size` (h, w) on the same image at `to_size` (h, w)."""
    x_scale, y_scale = to_size[1] / from_size[1], to_size[0] / from_size[0]
    return boxes * boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (M, 4) xyxy cut at the borders of an image of `size` (h, w)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def flip_horizontally(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror an image (3, H, W) and its boxes (M, 4) xyxy left to right."""
    x1, y1, x2, y2 = boxes.unbind(1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def pad_to_batch(images: Sequence[Tensor], multiple: int = PAD_MULTIPLE) -> Tensor:
    """Images (3, h, w) as one batch (N, 3, H, W), zeros below and to the right; H and W are multiples of `multiple`."""
    height, width = (math.ceil(max(image.shape[axis] for image in images) / multiple) * multiple for axis in (-2, -1))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    return batch
