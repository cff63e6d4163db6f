"""The sizes to which images are padded together, found by drawing batches."""

import torch
from torch import Tensor

from understudy.config import DataConfig, TrainConfig
from understudy.data import DetectionData
from understudy.data.transforms import PAD_MULTIPLE

BATCHES_DRAWN = 32
"""Batches whose mean size is found."""

BATCHES_COUNTED = 1024
"""Batches whose different sizes are counted."""


def images_of_step(config: TrainConfig, *, unlabelled: bool) -> int:
    """Return the images of a step and process, with the unlabelled ones if there are any."""
    others = config.batch_size if config.data.unlabelled_batch is None else config.data.unlabelled_batch
    return config.batch_size + (others if unlabelled else 0)


def padded_pixels(
    config: DataConfig, data: DetectionData, images: int, *, grouped: bool | None = False
) -> tuple[float, float]:
    """Return the pixels to which each image of a batch is padded: the mean over random batches, and the most.

    Args:
        config: with the size of images.
        data: the images.
        images: in a batch.
        grouped: whether a batch has only images that are higher than wide, or only others.
    """
    sizes, _ = _padded(config, data, images, BATCHES_DRAWN, grouped=grouped)
    pixels = sizes.prod(1)
    return float(pixels.mean()), float(pixels.max())


def kept_pixels(config: DataConfig, data: DetectionData, images: int, epochs: float) -> float:
    """Return the pixels of an image in all the sizes to which it is padded over some epochs, each counted once.

    Args:
        config: with the size of images, and whether batches are grouped.
        data: the images.
        images: in a batch.
        epochs: in which an image comes.
    """
    sizes, high = _padded(config, data, images, BATCHES_COUNTED, grouped=config.group_by_aspect)
    found = 0.0
    for group in (high, ~high) if config.group_by_aspect else (torch.ones_like(high),):
        each, counts = sizes[group].unique(dim=0, return_counts=True)
        if len(each):
            comes = 1 - (1 - counts / counts.sum()) ** epochs
            found += float(group.double().mean() * (each.prod(1) * comes).sum())
    return found


def _padded(
    config: DataConfig, data: DetectionData, images: int, batches: int, *, grouped: bool | None
) -> tuple[Tensor, Tensor]:
    """Return the padded size of random batches, (B, 2) float64, and whether the first image of each is high, (B,)."""
    sizes = data.records.images[:, 1:].double()
    scale = torch.minimum(max(config.shorter_side) / sizes.amin(1), config.longer_side / sizes.amax(1))
    resized = (sizes * scale[:, None]).floor().clamp(min=1)
    drawn = torch.randint(len(sizes), (batches, images), generator=torch.Generator().manual_seed(0))
    high = sizes[:, 1] > sizes[:, 0]
    if grouped:  # a batch of the group of its first image
        for group in (high.nonzero()[:, 0], (~high).nonzero()[:, 0]):
            rows = torch.isin(drawn[:, 0], group)
            drawn[rows] = group[drawn[rows] % max(1, len(group))]
    return (resized[drawn].amax(1) / PAD_MULTIPLE).ceil() * PAD_MULTIPLE, high[drawn[:, 0]]
