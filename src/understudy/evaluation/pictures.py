"""Images that are decoded once: resized for a detector, and whole to draw its detections on."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.data import Batch, DetectionData, Record, UnreadableImage
from understudy.data.batching import SizeBatches
from understudy.data.images import as_floats
from understudy.data.loading import LoadedImages, Sample, collate
from understudy.evaluation.detections import data_section

_AHEAD = 2
"""Batches that are read ahead."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image.

    Attributes:
        record: its record.
        pixels: (3, H, W) uint8, of the whole image.
        sample: the resized image.
    """

    record: Record
    pixels: Tensor
    sample: Sample


class Pictures:
    """The images of a split in batches of one padded size, read ahead in threads.

    Threads, since pixels of whole photos would fill the memory that processes share.

    Args:
        data: the split.
        config: the config of the detector's run, whose evaluation size the images get.
        batch_size: images per batch.
        workers: threads that read images; 0 reads them when they are needed.
    """

    def __init__(self, data: DetectionData, config: Mapping[str, Any], batch_size: int, workers: int):
        sizes = data_section(config)
        self.side, longer = sizes["shorter_side"][-1], sizes["longer_side"]
        self.images, self.workers = LoadedImages(data, [self.side], longer, flip=0.0, seed=0), workers
        self.batches = list(SizeBatches(data, batch_size, self.side, longer))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Picture | UnreadableImage]]:
        places = ([index for index, _ in batch] for batch in self.batches)
        if not self.workers:
            yield from ([self._read(place) for place in batch] for batch in places)
            return
        pool, waiting = ThreadPoolExecutor(self.workers), deque()
        try:
            for batch in places:
                waiting.append([pool.submit(self._read, place) for place in batch])
                if len(waiting) > _AHEAD:
                    yield [each.result() for each in waiting.popleft()]
            for batch in waiting:
                yield [each.result() for each in batch]
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, place: int) -> Picture | UnreadableImage:
        data = self.images.data
        record = data.records[place]
        try:
            values = data.pixels_of(record)
        except UnreadableImage as error:
            return error
        sample = self.images.sample(record, values, torch.Generator())  # nothing is drawn: one size, no flip
        bytes_ = values.permute(2, 0, 1) if values.dtype == torch.uint8 else (as_floats(values) * 255).round().byte()
        return Picture(record, bytes_, sample)


def batch_of(pictures: Sequence[Picture]) -> Batch:
    """Put the resized images into a batch."""
    batch = collate([picture.sample for picture in pictures])
    assert isinstance(batch, Batch)  # none of them is an error
    return batch
