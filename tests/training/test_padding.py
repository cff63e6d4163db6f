"""Sizes to which images are padded together, against batches that a run would draw."""

from dataclasses import replace

import pytest
import torch

from understudy.config import DataConfig
from understudy.data import open_data
from understudy.data.batching import groups_of
from understudy.data.loading import EpochSampler
from understudy.data.transforms import padded_size, resized_size
from understudy.training.padding import kept_sizes, padded_pixels

EPOCHS, BATCH = 12, 4


@pytest.fixture
def mixed(scenes):
    """The sizes of 96 images: a third high, two thirds wide, of several shapes."""
    data = open_data(scenes)
    images = torch.tensor([[number, 200, 96 + 16 * (number % 7)] for number in range(96)])
    images[::3, 1:] = torch.tensor([120, 200])
    return replace(data, records=replace(data.records, images=images))


@pytest.mark.parametrize("grouped", [False, True, "size"])
def test_each_size_of_an_image_is_counted_once(mixed, grouped):
    config = DataConfig(path="unused", shorter_side=[64], longer_side=128, group_by_aspect=grouped)
    sizes = [(height, width) for width, height in mixed.records.images[:, 1:].tolist()]
    resized = [resized_size(size, 64, 128) for size in sizes]
    sampler = EpochSampler(len(sizes), BATCH, seed=1, groups=groups_of(mixed.records.images[:, 1:], grouped, 64, 128))
    seen = set()
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        order = [index for index, _ in sampler]
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            padded = padded_size([max(sides) for sides in zip(*(resized[index] for index in batch), strict=True)])
            seen |= {(index, *padded) for index in batch}
    counted = sum(height * width for _, height, width in seen) / len(sizes)
    found = kept_sizes(config, mixed, BATCH, EPOCHS)
    assert found == pytest.approx((len(seen) / len(sizes), counted), rel=0.15)
    in_a_batch = padded_pixels(config, mixed, BATCH, grouped=grouped)[0]
    assert (counted > 1.2 * in_a_batch) is (grouped != "size")  # which leaves most images one size


def test_groups_of_one_padded_size_have_the_least_padding(mixed):
    config = DataConfig(path="unused", shorter_side=[64], longer_side=128)
    alone, _ = padded_pixels(config, mixed, 1)
    mixed_batches, oriented, sized = (
        padded_pixels(config, mixed, BATCH, grouped=grouped)[0] for grouped in (False, True, "size")
    )
    assert alone <= sized < 0.95 * oriented < 0.9 * mixed_batches


def test_an_epoch_of_one_batch_is_not_better_grouped(mixed):
    """Of its three high images, those that fill no batch are left out with and without groups."""
    config = DataConfig(path="unused", shorter_side=[64], longer_side=128)
    few = replace(mixed, records=replace(mixed.records, images=mixed.records.images[[0, 3, 6, *range(1, 28, 3)]]))
    assert padded_pixels(config, few, 9, grouped=True) == padded_pixels(config, few, 9)


def test_images_of_one_shape_have_one_size(scenes):
    config = DataConfig(path="unused", shorter_side=[64], longer_side=64, group_by_aspect=False)
    assert kept_sizes(config, open_data(scenes), BATCH, EPOCHS) == (1, 64 * 64)
    assert padded_pixels(config, open_data(scenes), BATCH) == (64 * 64, 64 * 64)
