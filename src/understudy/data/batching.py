"""Batches of images that need the same padding."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

from understudy.data.records import DetectionData
from understudy.data.transforms import padded_size, resized_size

Grouping = bool | Literal["size"]
"""Which images a batch joins: any (False), those of one orientation (True), or those with the same padded size."""


def groups_of(sizes: Tensor, by: Grouping, shorter_side: int, longer_side: int) -> list[int]:
    """Return the group of each image, counted from 0; none without groups.

    Args:
        sizes: width and height of each, (N, 2) int64.
        by: what the images of a group have in common. Square images belong to the wide ones.
        shorter_side: length in pixels that the images are scaled to.
        longer_side: largest length of the longer side in pixels.
    """
    if not by:
        return []
    shapes, shape_of = sizes.unique(dim=0, return_inverse=True)
    if by == "size":
        padded = [padded_size(resized_size((high, wide), shorter_side, longer_side)) for wide, high in shapes.tolist()]
        groups = torch.tensor(padded).unique(dim=0, return_inverse=True)[1]
    else:
        groups = (shapes[:, 1] > shapes[:, 0]).long()
    return groups[shape_of].tolist()


class SizeBatches(Sampler[list[tuple[int, int]]]):
    """Batches of images with the same padded size: the batch pads each image as it is padded alone.

    A batch follows as soon as it is full, the incomplete ones at the end, so any first part of the batches is about a
    first part of the images. None is dropped or repeated.

    Args:
        data: the images.
        batch_size: most images of a batch.
        shorter_side: length in pixels that the images are scaled to.
        longer_side: largest length of the longer side in pixels.
        rank: number of this process, 0..world_size-1; it takes every `world_size`-th image.
        world_size: number of processes.
    """

    def __init__(
        self,
        data: DetectionData,
        batch_size: int,
        shorter_side: int,
        longer_side: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.batches: list[list[tuple[int, int]]] = []
        waiting: dict[tuple[int, int], list[tuple[int, int]]] = {}
        sizes = data.records.images[:, 1:3].tolist()
        for index in range(rank, len(data), world_size):
            width, height = sizes[index]
            size = padded_size(resized_size((height, width), shorter_side, longer_side))
            waiting.setdefault(size, []).append((index, 0))
            if len(waiting[size]) == batch_size:
                self.batches.append(waiting.pop(size))
        self.batches += waiting.values()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)
