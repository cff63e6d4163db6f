"""Batches for training and evaluation; the seed alone decides the order and the augmentation of the images."""

import gc
import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from understudy.data import transforms
from understudy.data.batch import Batch, Pixels
from understudy.data.batching import Grouping, SizeBatches, groups_of
from understudy.data.images import UnreadableImage
from understudy.data.records import DetectionData, Record
from understudy.data.views import PLAIN, Augmentation, View
from understudy.errors import RunError, UserError

_UNLABELLED = 0x756E6C61  # separates the random numbers of unlabelled images from those of the others


def training_loader(
    data: DetectionData,
    *,
    batch_size: int,
    shorter_side: Sequence[int],
    longer_side: int,
    flip: float,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    group_by_aspect: Grouping = False,
    unlabelled: DetectionData | None = None,
    unlabelled_batch: int = 0,
    augmentation: Augmentation = PLAIN,
    teacher_scale: int = 1,
) -> DataLoader:
    """Make a loader of shuffled, augmented batches: the same for the same seed, with any number of workers.

    `loader.sampler` is an `EpochSampler`: call its `set_epoch(epoch)` before each epoch, and set its `start` to resume
    in the middle of one. The last incomplete batch of an epoch is dropped.

    Args:
        data: the split to train on.
        batch_size: images per batch of this process.
        shorter_side: lengths in pixels, one is drawn for each image.
        longer_side: largest length of the longer side in pixels.
        flip: probability of mirroring an image horizontally, 0..1.
        seed: a non-negative integer.
        workers: processes that load ahead; 0 loads in this process.
        rank: number of this process, 0..world_size-1.
        world_size: number of processes that share an epoch.
        group_by_aspect: what the labelled images of a batch have in common, see `Grouping` and `EpochSampler`; with
            several shorter sides, the padded size is that of the largest.
        unlabelled: images from `open_unlabelled` to add to the batches; they do not lengthen an epoch.
        unlabelled_batch: number of them per batch of this process, after its labelled images.
        augmentation: random colours and scales, and the number of variants of an image.
        teacher_scale: how many times as large a teacher sees the images.

    Raises:
        UserError: there are fewer images than one batch of every process needs.
        RunError: (while iterating) an image is missing, truncated, or of another size than annotated.
    """
    check_batch_size(data, batch_size, world_size)
    options = shorter_side, longer_side, flip
    dataset = LoadedImages(data, *options, seed, augmentation=augmentation)
    groups = groups_of(data.records.images[:, 1:3], group_by_aspect, max(shorter_side), longer_side)
    if unlabelled is None or not unlabelled_batch:
        sampler = EpochSampler(len(data), batch_size, seed, rank, world_size, groups)
        return _loader(dataset, workers, teacher_scale, sampler=sampler, batch_size=batch_size, drop_last=True)
    others = LoadedImages(
        unlabelled, *options, derived_seed(seed, _UNLABELLED), labelled=False, augmentation=augmentation
    )
    sampler = MixedSampler(len(data), batch_size, seed, rank, world_size, groups, len(unlabelled), unlabelled_batch)
    size = batch_size + unlabelled_batch
    mixed = MixedImages(dataset, others)
    return _loader(mixed, workers, teacher_scale, sampler=sampler, batch_size=size, drop_last=True)


def check_batch_size(data: DetectionData, batch_size: int, world_size: int = 1) -> None:
    """Check that an epoch has a batch for every process; arguments as of `training_loader`.

    Raises:
        UserError: there are fewer images.
    """
    if len(data) < batch_size * world_size:
        several = world_size > 1
        raise UserError(
            f"{data.source} has {len(data)} images in split {data.split!r}, fewer than one batch of {batch_size}"
            f"{f' for each of {world_size} processes' if several else ''}. "
            f"Lower batch_size{' or the number of processes' if several else ''}."
        )


def evaluation_loader(
    data: DetectionData,
    *,
    batch_size: int,
    shorter_side: int,
    longer_side: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    teacher_scale: int = 1,
) -> DataLoader:
    """Make a loader of batches that has each image exactly once over all ranks, not augmented.

    The images of a batch are padded to a size that each would be padded to alone, so a batch changes no detection, see
    `SizeBatches`. Batches of one image are in the order of the data set.

    Arguments and exceptions are those of `training_loader`.
    """
    batches = SizeBatches(data, batch_size, shorter_side, longer_side, rank, world_size)
    dataset = LoadedImages(data, [shorter_side], longer_side, flip=0.0, seed=0)
    return _loader(dataset, workers, teacher_scale, batch_sampler=batches)


def derived_seed(*numbers: int) -> int:
    """Return a seed for a random generator that depends on all numbers (non-negative), and on nothing else.

    >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochSampler(Sampler[tuple[int, int]]):
    """Samples the (image index, epoch) pairs of one rank: a permutation that depends on seed and epoch alone.

    `epoch` and `start` are the only state, so a resumed run loads the same images as an uninterrupted one.

    If images are grouped, a batch is complete as soon as enough images of one group were drawn, as in mmdet's
    `AspectRatioBatchSampler`. The remainders of the groups follow at the end of the epoch, in the order of the groups;
    with two groups, at most one batch is mixed. The batches of an epoch have the same images as without groups, and so
    those that fill no batch are others in each epoch.

    Args:
        length: number of images.
        batch_size: images of a batch.
        seed: a non-negative integer.
        rank: number of this process, 0..world_size-1.
        world_size: number of processes.
        groups: the group of each image; empty: no groups.

    Attributes:
        epoch: the epoch of the next iteration.
        start: number of batches that the next iteration skips, once.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] = (),
    ):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.groups = rank, world_size, groups
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = _permutation(self.length, self.seed, self.epoch)
        mine = order[self.rank : self.length // self.world_size * self.world_size : self.world_size]
        if self.groups:
            mine = _grouped(mine, self.groups, self.batch_size)
        skipped, self.start = self.start * self.batch_size, 0
        return iter([(index, self.epoch) for index in mine[skipped:]])


class MixedSampler(EpochSampler):
    """Samples like `EpochSampler`, with unlabelled images after the labelled ones of each batch.

    Over all epochs and ranks, the unlabelled images come from one endless sequence of permutations, so each is used
    once before any is used again. Epoch, batch number and rank decide the place of a batch in this sequence. The index
    of an unlabelled image follows those of all labelled ones; its second number is that of the permutation.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        groups: Sequence[int],
        unlabelled: int,
        unlabelled_batch: int,
    ):
        super().__init__(length, batch_size, seed, rank, world_size, groups)
        self.unlabelled, self.unlabelled_batch = unlabelled, unlabelled_batch
        self.batches = length // world_size // batch_size

    def __len__(self) -> int:
        return self.batches * (self.batch_size + self.unlabelled_batch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, labelled = self.start, super().__iter__()
        orders: dict[int, list[int]] = {}
        drawn: list[tuple[int, int]] = []
        for batch in range(first, self.batches):
            drawn += itertools.islice(labelled, self.batch_size)
            place = ((self.epoch * self.batches + batch) * self.world_size + self.rank) * self.unlabelled_batch
            for number in range(place, place + self.unlabelled_batch):
                turn, index = divmod(number, self.unlabelled)
                if turn not in orders:
                    orders[turn] = _permutation(self.unlabelled, self.seed, _UNLABELLED, turn)
                drawn.append((self.length + orders[turn][index], turn))
        return iter(drawn)


def _permutation(length: int, *numbers: int) -> list[int]:
    generator = torch.Generator().manual_seed(derived_seed(*numbers))
    return torch.randperm(length, generator=generator).tolist()


def _grouped(order: list[int], groups: Sequence[int], batch_size: int) -> list[int]:
    """Reorder images such that each batch is of one group; the remainders of the groups follow.

    The images that fill no batch stay the last ones of the order, so that chance decides which are left out. If the
    remainders were cut, images of a rare group would be left out of every epoch.
    """
    filling = len(order) // batch_size * batch_size
    batches: list[int] = []
    waiting: dict[int, list[int]] = {}
    for index in order[:filling]:
        group = waiting.setdefault(groups[index], [])
        group.append(index)
        if len(group) == batch_size:
            batches += group
            group.clear()
    remainders = [index for number in sorted(waiting) for index in waiting[number]]
    return batches + remainders + order[filling:]


class LoadedImages(Dataset):
    """The images of a split, read, augmented and scaled; indexed by (index, epoch).

    The augmentation of an image depends on (seed, epoch, index) alone, not on the worker or the images loaded before;
    with a number of variants, on the epoch's remainder by it.
    """

    def __init__(
        self,
        data: DetectionData,
        shorter_side: Sequence[int],
        longer_side: int,
        flip: float,
        seed: int,
        labelled: bool = True,
        augmentation: Augmentation = PLAIN,
    ):
        self.data, self.shorter_side, self.longer_side = data, list(shorter_side), longer_side
        self.flip, self.seed, self.labelled, self.augmentation = flip, seed, labelled, augmentation

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: tuple[int, int]) -> "Sample | RunError":
        position, epoch = index
        record = self.data.records[position]
        try:
            values = self.data.pixels_of(record)
        except UnreadableImage as error:
            # Returned, not raised: a worker's exception would reach the user inside the worker's traceback.
            if self.labelled:
                return RunError(f"{error}. To list every such image: understudy check {self.data.source}")
            return RunError(f"{error}. Remove this unlabelled image from its folder.")
        turn = self.augmentation.turn(epoch)
        return self.sample(record, values, torch.Generator().manual_seed(derived_seed(self.seed, turn, position)))

    def sample(self, record: Record, values: Tensor, generator: torch.Generator) -> "Sample":
        """Draw a view of an image, and note what is to be done with its pixels."""
        original_size, wanted = (record.height, record.width), ~record.ignore
        boxes, labels = transforms.clip_boxes(record.boxes[wanted], original_size), record.labels[wanted]
        shorter_side = self.shorter_side[int(torch.randint(len(self.shorter_side), (), generator=generator))]
        flipped = bool(torch.rand((), generator=generator) < self.flip)
        window = self.augmentation.window(original_size, boxes, generator)
        size = transforms.resized_size(original_size, shorter_side, self.longer_side)
        view = View(size, flipped, window, self.augmentation.colours(generator))
        boxes, shown = view.boxes(boxes, original_size)
        boxes = boxes.float()
        solid = shown & (boxes[:, 2:] > boxes[:, :2]).all(1)  # one that is clipped may become empty in float32
        return Sample(Pixels(values, view), boxes[solid], labels[solid], original_size, record.image_id, self.labelled)


class MixedImages(Dataset):
    """Labelled images, followed by unlabelled ones."""

    def __init__(self, labelled: LoadedImages, unlabelled: LoadedImages):
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: tuple[int, int]) -> "Sample | RunError":
        position, turn = index
        if position < len(self.labelled):
            return self.labelled[position, turn]
        return self.unlabelled[position - len(self.labelled), turn]


@dataclass(slots=True)
class Sample:
    """One image before it is put into a batch; see `Batch` for the fields."""

    pixels: Pixels
    boxes: Tensor
    labels: Tensor
    original_size: tuple[int, int]
    image_id: int
    labelled: bool


class _Loader(DataLoader):
    """A loader that raises the first error that its workers return, and says so if one of them dies."""

    def __iter__(self) -> Any:  # an iterator over batches; the base class promises its private iterator type
        try:
            for batch in super().__iter__():
                if isinstance(batch, RunError):
                    self._iterator = None  # ends the workers now; left to the garbage collector it takes five seconds
                    raise batch
                yield batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RunError(
                f"A process that loads images has ended ({str(error).splitlines()[0]}). The machine may have too "
                "little memory, or too little of it in /dev/shm: lower data.workers or batch_size (--workers, "
                "--batch-size of a command)."
            ) from error


def _loader(dataset: Dataset, workers: int, teacher_scale: int = 1, **batches: Any) -> DataLoader:
    return _Loader(
        dataset,
        **batches,
        num_workers=workers,
        collate_fn=partial(collate, teacher_scale=teacher_scale),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # seeds of the workers must not advance the global generator
        worker_init_fn=_leave_signals_to_the_parent,
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches every process of a terminal and a scheduler's signal every process of a job, but the workers are
    # needed until the checkpoint is saved. They end when the parent asks them to, or is gone.
    gc.freeze()  # a collection would write to every object of the parent, and so copy its memory
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)


def collate(samples: "list[Sample | RunError]", teacher_scale: int = 1) -> Batch | RunError:
    """Put images into a batch for a teacher that sees them at a scale, or return the first error among them."""
    loaded = []
    for sample in samples:
        if isinstance(sample, RunError):
            return sample
        loaded.append(sample)
    # A tensor that a worker sends is an open file. Views of one tensor are one file, whatever the size of the batch.
    boxes = torch.cat([sample.boxes for sample in loaded]).split([len(sample.boxes) for sample in loaded])
    labels = torch.cat([sample.labels for sample in loaded]).split([len(sample.labels) for sample in loaded])
    drawn = _packed([sample.pixels for sample in loaded])
    return Batch(
        drawn=drawn,
        targets=[{"boxes": each, "labels": of_each} for each, of_each in zip(boxes, labels, strict=True)],
        image_sizes=[sample.pixels.view.size for sample in loaded],
        original_sizes=[sample.original_size for sample in loaded],
        image_ids=[sample.image_id for sample in loaded],
        labelled=[sample.labelled for sample in loaded],
        teacher_scale=teacher_scale,
        undrawn=drawn if teacher_scale > 1 else [],
    )


def _packed(images: list[Pixels]) -> list[Pixels]:
    """Return images with their bytes in one tensor; with grey of 16 bits among them, as they are."""
    if any(image.values.dtype != torch.uint8 for image in images):
        return images
    parts = torch.cat([image.values.flatten() for image in images]).split([image.values.numel() for image in images])
    return [replace(image, values=part.view_as(image.values)) for image, part in zip(images, parts, strict=True)]
