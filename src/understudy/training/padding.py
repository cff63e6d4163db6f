"""The sizes to which the images of a run are padded together, found by drawing its batches."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from understudy.config import DataConfig, TrainConfig
from understudy.data import DetectionData, EpochSampler
from understudy.data.batching import Grouping, groups_of
from understudy.data.transforms import PAD_MULTIPLE, padded_size, resized_size

BATCHES_DRAWN = 32
"""Batches whose sizes are found at least."""

BATCHES_OF_EPOCH = 1024
"""Most batches of an epoch that are drawn; of more images, some chosen at random stand for all."""


def images_of_step(config: TrainConfig, *, unlabelled: bool) -> int:
    """Return the images of a step and process, with the unlabelled ones if there are any."""
    others = config.batch_size if config.data.unlabelled_batch is None else config.data.unlabelled_batch
    return config.batch_size + (others if unlabelled else 0)


def padded_pixels(
    config: DataConfig, data: DetectionData, images: int, *, grouped: Grouping | None = False
) -> tuple[float, float]:
    """Return the pixels to which each image of a batch is padded: the mean over random batches, and the most.

    Args:
        config: with the size of images.
        data: the images.
        images: in a batch.
        grouped: what the images of a batch have in common.
    """
    epochs = math.ceil(BATCHES_DRAWN * min(images, len(data)) / len(data))  # a batch has each image at most once
    pixels = torch.cat([sizes.prod(1) for _, sizes in _epochs(config, data, images, epochs, grouped or False)])
    return float(pixels.double().mean()), float(pixels.max())


def smallest_size(config: DataConfig, data: DetectionData) -> tuple[int, int]:
    """Return height and width in pixels to which an image is padded alone, of that with the shortest longer side.

    Args:
        config: with the size of images; of several shorter sides, the smallest counts.
        data: the images.
    """
    sides = min(config.shorter_side), config.longer_side
    shapes = data.records.images[:, 1:3].unique(dim=0).tolist()
    return min((padded_size(resized_size((height, width), *sides)) for width, height in shapes), key=max)


def kept_sizes(config: DataConfig, data: DetectionData, images: int, epochs: int) -> tuple[float, float]:
    """Return to how many sizes an image is padded over some epochs, and its pixels in all of them together.

    Args:
        config: with the size of images, and how they are grouped.
        data: the images.
        images: in a batch.
        epochs: in which an image comes.
    """
    padded = torch.cat(
        [
            torch.cat([batches[..., None], sizes[:, None].expand(*batches.shape, 2)], dim=2).flatten(end_dim=1)
            for batches, sizes in _epochs(config, data, images, epochs, config.group_by_aspect or False)
        ]
    ).unique(dim=0)
    count = len(padded[:, 0].unique())
    return len(padded) / count, float(padded[:, 1:].prod(1).sum()) / count


def _epochs(
    config: DataConfig, data: DetectionData, images: int, epochs: int, grouped: Grouping
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield of each epoch the images of its batches (B, images) and the height and width that they have (B, 2)."""
    sides = max(config.shorter_side), config.longer_side
    places = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: BATCHES_OF_EPOCH * images]
    chosen = data.records.images[places, 1:3]
    shapes, shape_of = chosen.unique(dim=0, return_inverse=True)
    resized = torch.tensor([resized_size((height, width), *sides) for width, height in shapes.tolist()])[shape_of]
    images = min(images, len(chosen))
    sampler = EpochSampler(len(chosen), images, seed=0, groups=groups_of(chosen, grouped, *sides))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = torch.tensor([index for index, _ in sampler])
        batches = order[: len(order) // images * images].view(-1, images)
        yield batches, (resized[batches].amax(1) / PAD_MULTIPLE).ceil().long() * PAD_MULTIPLE
