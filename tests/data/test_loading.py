"""Batches: the pixels and boxes in them, the same for the same seed, each image exactly once, and clear failures."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from understudy.data import (
    Batch,
    DetectionData,
    Record,
    evaluation_loader,
    load_image,
    training_loader,
    transforms,
)
from understudy.data.batching import Grouping
from understudy.data.loading import LoadedImages
from understudy.data.transforms import padded_size, resized_size
from understudy.errors import RunError, UserError

OPTIONS = {"batch_size": 2, "shorter_side": [32, 48], "longer_side": 70, "flip": 0.5, "seed": 3}


def epochs(data: DetectionData, count: int = 2, **options) -> list[Batch]:
    loader = training_loader(data, **(OPTIONS | options))
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.image_ids == b.image_ids
        and torch.equal(a.images, b.images)
        and all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_batches_are_padded_and_hold_what_is_to_be_learned(data: DetectionData) -> None:
    for batch in epochs(data):
        assert batch.images.dtype == torch.float32
        assert 0 <= batch.images.min() < batch.images.max() <= 1
        assert batch.images.shape[-2] % 32 == batch.images.shape[-1] % 32 == 0
        for image, (height, width), target in zip(batch.images, batch.image_sizes, batch.targets, strict=True):
            assert image[:, height:].abs().sum() == image[:, :, width:].abs().sum() == 0
            assert len(target["boxes"]) == 1  # the crowd is left out
            x1, y1, x2, y2 = target["boxes"][0]
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height


def test_images_and_boxes_are_resized_as_torchvision_does(data: DetectionData) -> None:
    transform = GeneralizedRCNNTransform(48, 70, image_mean=[0, 0, 0], image_std=[1, 1, 1]).eval()
    loader = evaluation_loader(data, batch_size=3, shorter_side=48, longer_side=70)
    by_id = {record.image_id: record for record in data.records}
    for batch in loader:
        records = [by_id[image_id] for image_id in batch.image_ids]
        images = [load_image(record.path) for record in records]
        targets = [{"boxes": record.boxes[:1].clamp(min=0)} for record in records]
        expected, expected_targets = transform(images, targets)
        assert torch.equal(batch.images, expected.tensors)
        assert batch.image_sizes == expected.image_sizes
        assert batch.original_sizes == [(record.height, record.width) for record in records]
        for mine, theirs in zip(batch.targets, expected_targets, strict=True):
            torch.testing.assert_close(mine["boxes"], theirs["boxes"].float())


def test_a_flip_mirrors_pixels_and_boxes(data: DetectionData) -> None:
    options = {"count": 1, "shorter_side": [48]}
    for plain, flipped in zip(epochs(data, flip=0.0, **options), epochs(data, flip=1.0, **options), strict=True):
        width = plain.image_sizes[0][1]
        assert torch.equal(plain.images[0, :, :, :width].flip(-1), flipped.images[0, :, :, :width])
        x1, y1, x2, y2 = plain.targets[0]["boxes"][0].tolist()
        assert flipped.targets[0]["boxes"][0].tolist() == pytest.approx([width - x2, y1, width - x1, y2])


def test_scales_and_flips_vary(data: DetectionData) -> None:
    batches = epochs(data, count=6, batch_size=1)
    scales = {round(b.image_sizes[0][0] / b.original_sizes[0][0], 2) for b in batches}
    mirrored = {float(b.targets[0]["boxes"][0, 0]) == 0 for b in batches}  # the box at the left border
    assert len(scales) > 7
    assert mirrored == {True, False}


def test_the_seed_alone_decides_the_batches(data: DetectionData) -> None:
    once = epochs(data)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert equal(once, epochs(data))
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers move
    assert not equal(once, epochs(data, seed=4))
    assert once[0].image_ids != once[3].image_ids  # the next epoch has another order


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_the_same_batches(data: DetectionData, method: str, workers: int) -> None:
    loader = training_loader(data, **OPTIONS, workers=workers)
    loader.multiprocessing_context = method
    batches = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    assert equal(batches, epochs(data))


def test_an_epoch_goes_on_where_it_was_left(data: DetectionData) -> None:
    whole = epochs(data, count=1)
    loader = training_loader(data, **OPTIONS)
    loader.sampler.start = 2
    assert len(loader) == 3
    assert equal(list(loader), whole[2:])
    assert equal(list(loader), whole)  # only once


def test_ranks_share_an_epoch(data: DetectionData) -> None:
    of_rank = [
        [i for batch in training_loader(data, **OPTIONS, rank=rank, world_size=2) for i in batch.image_ids]
        for rank in (0, 1)
    ]
    assert len(of_rank[0]) == len(of_rank[1]) == 2
    assert not set(of_rank[0]) & set(of_rank[1])


# --- groups of images by their aspect ratio ---------------------------------------------------------------------------


def shapes(count: int, high: int) -> DetectionData:
    """Images without files: square, wide, ... and the last ones higher than wide."""
    sizes = [(60, 50 + 10 * (i % 2)) for i in range(count - high)] + [(50, 60)] * high
    records = [Record.without_objects(i, Path(f"{i}.png"), size) for i, size in enumerate(sizes)]
    return DetectionData(("thing",), (1,), tuple(records), "coco", Path("none"), "train")


@pytest.mark.parametrize(("ranks", "more"), [(1, 0), (2, 0), (3, 0), (2, 3)])
def test_groups_keep_the_images_and_the_number_of_batches(ranks: int, more: int) -> None:
    options = OPTIONS | {"batch_size": 4, "world_size": ranks}
    options |= {"unlabelled": shapes(7, 3), "unlabelled_batch": more} if more else {}
    data, steps = shapes(61, 23), 61 // ranks // 4
    for epoch in range(3):
        used = []
        for rank in range(ranks):
            plain, loader = (training_loader(data, **options, rank=rank, group_by_aspect=on) for on in (False, True))
            for each in (plain, loader):
                each.sampler.set_epoch(epoch)
            own, drawn = ([batch for batch, _ in each.sampler] for each in (plain, loader))
            assert len(loader) == len(plain) == steps
            batches = [drawn[start : start + 4] for start in range(0, steps * (4 + more), 4 + more)]
            kinds = [{data.records[index].height > data.records[index].width for index in batch} for batch in batches]
            assert all(len(kind) == 1 for kind in kinds[:-1])  # at most the last is mixed
            assert {True} in kinds
            assert {False} in kinds
            assert sorted(own[: steps * (4 + more)]) == sorted(drawn[: steps * (4 + more)])
            assert own[steps * (4 + more) :] == drawn[steps * (4 + more) :], "the same ones fill no batch"
            assert own != drawn
            used += [index for batch in batches for index in batch]
        assert len(used) == len(set(used)) == steps * 4 * ranks


def test_groups_of_one_padded_size() -> None:
    options = OPTIONS | {"batch_size": 4, "shorter_side": [32], "longer_side": 96}
    sizes = [(50, 60), (40, 50), (50, 100), (60, 50), (100, 50)]  # 32 x 64 and 64 x 32
    records = tuple(Record.without_objects(i, Path(f"{i}.png"), sizes[i % 5]) for i in range(41))
    data = DetectionData(("thing",), (1,), records, "coco", Path("none"), "train")
    padded = [padded_size(resized_size((record.height, record.width), 32, 96)) for record in records]
    assert len(set(padded)) == 2
    for epoch in range(3):
        loader = training_loader(data, **options, group_by_aspect="size")
        loader.sampler.set_epoch(epoch)
        drawn = [index for index, _ in loader.sampler]
        batches = [drawn[start : start + 4] for start in range(0, 40, 4)]
        assert [len({padded[index] for index in batch}) for batch in batches[:-1]] == [1] * 9
        assert sorted(drawn) == list(range(41))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("grouped", [True, "size"])
def test_images_of_a_rare_shape_are_seen_as_often_as_others(grouped: Grouping, ranks: int) -> None:
    """Three of 53 are high: they never fill a batch, and in each epoch some images are left out."""
    data, epochs, seen = shapes(53, 3), 40, Counter[int]()
    for rank in range(ranks):
        options = OPTIONS | {"batch_size": 16 // ranks, "rank": rank, "world_size": ranks}
        sampler = training_loader(data, **options, group_by_aspect=grouped).sampler
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            seen.update([index for index, _ in sampler][: 48 // ranks])
    assert all(seen[index] > 0.7 * epochs for index in range(53))


@pytest.mark.parametrize("grouped", [True, "size"])
def test_a_grouped_epoch_goes_on_where_it_was_left(data: DetectionData, grouped: Grouping) -> None:
    whole = epochs(data, group_by_aspect=grouped)
    assert not equal(whole, epochs(data))
    loader = training_loader(data, **OPTIONS, group_by_aspect=grouped, workers=1)
    loader.sampler.set_epoch(1)
    loader.sampler.start = 1
    assert equal(list(loader), whole[4:])


def test_groups_save_padding(data: DetectionData) -> None:
    options = {"count": 6, "longer_side": 500}
    plain, grouped = epochs(data, **options), epochs(data, **options, group_by_aspect=True)
    assert sum(batch.images.numel() for batch in grouped) < sum(batch.images.numel() for batch in plain)


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_evaluation_sees_every_image_once(data: DetectionData, world_size: int) -> None:
    seen = [
        image_id
        for rank in range(world_size)
        for batch in evaluation_loader(
            data, batch_size=2, shorter_side=32, longer_side=70, rank=rank, world_size=world_size
        )
        for image_id in batch.image_ids
    ]
    assert sorted(seen) == [record.image_id for record in data.records]


def test_a_batch_of_an_evaluation_pads_each_image_as_alone(data: DetectionData) -> None:
    options = {"shorter_side": 64, "longer_side": 100}
    alone = list(evaluation_loader(data, batch_size=1, **options))
    assert [batch.image_ids for batch in alone] == [[record.image_id] for record in data.records]
    images = {batch.image_ids[0]: batch.images[0] for batch in alone}
    batches = list(evaluation_loader(data, batch_size=3, **options))
    assert len(batches) < len(data)
    for batch in batches:
        for image_id, image in zip(batch.image_ids, batch.images, strict=True):
            assert torch.equal(image, images[image_id])


def test_fewer_images_than_a_batch(data: DetectionData) -> None:
    with pytest.raises(UserError, match="7 images in split 'train', fewer than one batch of 4 for each of 2 processes"):
        training_loader(data, **(OPTIONS | {"batch_size": 4}), world_size=2)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def shrink(file: Path) -> None:
    Image.new("RGB", (5, 5)).save(file)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (Path.unlink, "does not exist"),
        (truncate, "truncated or damaged"),
        (shrink, "5x5 pixels; its annotation states"),
    ],
)
def test_a_bad_image_stops_the_run_by_name(data: DetectionData, damage: Callable, expected: str, workers: int) -> None:
    damage(data.records[4].path)
    with pytest.raises(RunError, match=expected) as error:
        list(training_loader(data, **OPTIONS, workers=workers))
    assert "4.png" in str(error.value)
    assert "understudy check" in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_16_bits_are_in_a_batch_with_others(data: DetectionData, workers: int) -> None:
    record = data.records[1]
    grey = np.linspace(0, 65535, record.width * record.height).astype(np.uint16).reshape(record.height, record.width)
    Image.fromarray(grey).save(record.path)
    for batch_size in (7, 1):
        loader = evaluation_loader(data, batch_size=batch_size, shorter_side=48, longer_side=70, workers=workers)
        batch = next(batch for batch in loader if record.image_id in batch.image_ids)
        assert (len(batch.image_ids) > 1) == (batch_size > 1)
        place = batch.image_ids.index(record.image_id)
        height, width = batch.image_sizes[place]
        expected = transforms.resize(load_image(record.path), (height, width))
        for images in (batch.images, batch.to("cpu").images):
            assert torch.equal(images[place, :, :height, :width], expected)


def test_a_batch_moves_with_all_its_tensors(data: DetectionData) -> None:
    batch = epochs(data, count=1)[0].to("meta")
    assert {tensor.device.type for t in batch.targets for tensor in t.values()} | {batch.images.device.type} == {"meta"}


# --- images without labels --------------------------------------------------------------------------------------------


def drawn(batches: list[Batch], labelled: bool) -> list[int]:
    return [i for b in batches for i, known in zip(b.image_ids, b.labelled, strict=True) if known is labelled]


def test_unlabelled_images_come_after_the_labelled_of_every_batch(data: DetectionData, more: DetectionData) -> None:
    plain = epochs(data)
    mixed = epochs(data, unlabelled=more, unlabelled_batch=1)
    assert len(mixed) == len(plain) == 6
    for one, both in zip(plain, mixed, strict=True):
        assert both.labelled == [True, True, False]
        assert both.image_ids[:2] == one.image_ids
        assert both.image_sizes[:2] == one.image_sizes
        assert len(both.targets[2]["boxes"]) == len(both.targets[2]["labels"]) == 0
        assert one.labelled == [True, True]
    loader = training_loader(data, **OPTIONS, unlabelled=more, unlabelled_batch=3)
    assert len(loader) == 3  # an epoch is one of labelled images


@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (2, 1), (1, 2), (7, 1)])
def test_every_unlabelled_image_is_seen_before_any_is_seen_again(data, more, size: int, ranks: int) -> None:
    options = {"count": 5, "unlabelled": more, "unlabelled_batch": size, "world_size": ranks, "batch_size": 1}
    of_rank = [epochs(data, rank=rank, **options) for rank in range(ranks)]
    seen = [i for step in zip(*of_rank, strict=True) for batch in step for i in drawn([batch], labelled=False)]
    turns = [seen[i : i + 5] for i in range(0, len(seen) - 4, 5)]
    assert len(turns) >= 6
    assert all(sorted(turn) == [1, 2, 3, 4, 5] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1  # in another order


def test_two_ranks_share_the_unlabelled_images_as_one_would_see_them(data, more) -> None:
    options = {"unlabelled": more, "batch_size": 1}
    ranks = [epochs(data, rank=rank, world_size=2, unlabelled_batch=2, **options) for rank in (0, 1)]
    whole = epochs(data, **options | {"batch_size": 2}, unlabelled_batch=4)
    for one, *parts in zip(whole, *ranks, strict=True):
        assert drawn([one], labelled=False) == drawn(parts, labelled=False)
        assert drawn([one], labelled=True) == drawn(parts, labelled=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixed_epoch_goes_on_where_it_was_left(data, more, workers: int) -> None:
    options = {"unlabelled": more, "unlabelled_batch": 2}
    whole = epochs(data, count=3, **options)
    loader = training_loader(data, **OPTIONS, **options, workers=workers)
    loader.sampler.set_epoch(1)
    loader.sampler.start = 2
    rest = list(loader)
    loader.sampler.set_epoch(2)
    assert equal(rest + list(loader), whole[5:])


@pytest.mark.filterwarnings("error")
def test_a_truncated_unlabelled_image_stops_the_run(data: DetectionData, more: DetectionData) -> None:
    file = more.records[1].path
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"b\.JPG .*Remove this unlabelled image from its folder"):
        epochs(data, unlabelled=more, unlabelled_batch=5)


@pytest.mark.filterwarnings("error")
def test_a_process_that_dies_is_said(data: DetectionData, monkeypatch) -> None:
    monkeypatch.setattr(LoadedImages, "sample", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    loader = evaluation_loader(data, batch_size=2, shorter_side=32, longer_side=70, workers=1)
    with pytest.raises(RunError, match=r"A process that loads images has ended .*lower data.workers or batch_size"):
        list(loader)
