"""The teacher's outputs are kept from one epoch to the next: the same losses, to the precision that is stored."""

import os
from pathlib import Path

import pytest
import torch
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.checkpoints import load_checkpoint
from understudy.data import Batch
from understudy.data.transforms import pad_to_batch
from understudy.detectors import Detector, build_detector
from understudy.errors import UserError
from understudy.files import read_rows
from understudy.outputs import Needs
from understudy.training import defaults, teacher_cache
from understudy.training.fingerprints import detector_digest
from understudy.training.teacher_cache import Store, TeacherCache

KEYS = {"data.flip": 0.0, "batch_size": 4, "log_every": 1}
KEYS |= {"optimizer.name": "sgd", "optimizer.lr": 1e-4, "detector.norm": "frozen"}


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The numbers of images of the teacher's passes in steps."""
    images, forward = [], Detector.forward

    def counted(self, batch, *arguments, needs=None, **more):
        if needs is not None and len(batch) > 1:  # with one, the size of an entry is measured
            images.append(len(batch))
        return forward(self, batch, *arguments, needs=needs, **more)

    monkeypatch.setattr(Detector, "forward", counted)
    return images


@pytest.fixture(scope="module")
def uncached(tiny, trained, tmp_path_factory):
    """A run without a cache."""
    run = tmp_path_factory.mktemp("runs") / "off"
    return understudy.distill(tiny, run=run, teacher=trained, teacher_cache="off", **KEYS)


def losses(run) -> list[list[float]]:
    names = ("pkd_feature", "frs_class", "total")
    return [[float(row[name]) for name in names] for row in read_rows(run / "losses.csv")]


@pytest.mark.parametrize("where", ["auto", "folder"])
def test_later_epochs_run_no_teacher(where, uncached, passes, tiny, trained, tmp_path):
    keys = {"teacher": trained, "teacher_cache": tmp_path / "cache" if where == "folder" else where, **KEYS}
    run = understudy.distill(tiny, run=tmp_path / "run", **keys)
    assert passes == [4] * 2  # the first epoch
    torch.testing.assert_close(losses(run), losses(uncached), rtol=2e-3, atol=1e-6)
    if where == "auto":
        return
    passes.clear()
    assert_same(understudy.distill(tiny, run=tmp_path / "again", **keys), run)
    assert passes == []
    with at_step(3, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=tmp_path / "stopped", **keys)
    assert_same(understudy.resume(tmp_path / "stopped"), run)
    for file in (tmp_path / "cache").iterdir():  # damaged entries are computed again
        file.write_bytes(file.read_bytes()[:100])
    passes.clear()
    run = understudy.distill(tiny, run=tmp_path / "damaged", **keys)
    assert sum(passes) == 8
    torch.testing.assert_close(losses(run), losses(uncached), rtol=2e-3, atol=1e-6)


def test_flipped_images_are_entries_of_their_own(passes, tiny, trained, tmp_path):
    understudy.distill(tiny, run=tmp_path / "run", teacher=trained, teacher_cache="memory", **{"data.flip": 0.5})
    assert 8 < sum(passes) <= 16


def test_variants_of_images_are_entries_of_their_own(passes, tiny, trained, tmp_path):
    """Two epochs fill the cache with two variants of each image; it is not used again before the third."""
    keys = {"data.variants": 2, "data.colour": 1.0, "data.scale": 2.0, "data.shorter_side": [64, 96], "batch_size": 4}
    keys |= {"data.longer_side": 96, "schedule.epochs": 4, "evaluate_every": 4}
    understudy.distill(tiny, run=tmp_path / "run", teacher=trained, **keys)
    assert 16 <= sum(passes) < 4 * 8


@pytest.mark.parametrize(
    ("keys", "variants"),
    [
        ({}, 2),
        ({"schedule.epochs": 7}, None),
        ({"data.scale": 1}, None),
        ({"data.variants": None}, None),
        ({"data.variants": 3}, 3),
        ({"methods": "crosskd"}, None),
        ({"teacher_cache": "off"}, None),
        ({"teacher_cache_gb": 4e-5}, None),
    ],
    ids=["long", "short", "without variation", "new ones", "given", "layers", "off", "no room"],
)
def test_in_a_long_run_each_variant_comes_four_times(keys, variants, passes, tiny, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "OFTEN", 8)
    given = {**tiny, **KEYS, "teacher": trained, "data.scale": 2.0, "schedule.epochs": 8, "evaluate_every": 8}
    assert understudy.suggest({**given, **keys}).config.data.variants == variants
    if not keys:
        passes.clear()
        understudy.distill(given, run=tmp_path / "run")
        assert sum(passes) == 2 * 8


def test_a_folder_that_is_no_cache_is_refused_at_the_start(passes, tiny, trained, tmp_path, monkeypatch):
    keys = {**tiny, "run": tmp_path / "run", "teacher": trained, **KEYS}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"teacher_cache=.*photos: expected a new .*; this one contains notes.txt"):
        understudy.distill(keys, teacher_cache=tmp_path / "photos")
    with pytest.raises(UserError, match=r"teacher_cache=.*: .*notes.txt is a file, not a folder"):
        understudy.distill(keys, teacher_cache=tmp_path / "photos" / "notes.txt" / "cache")
    access = os.access
    closed = lambda path, mode: access(path, mode) and (mode == os.F_OK or Path(path) != tmp_path)  # noqa: E731
    monkeypatch.setattr(os, "access", closed)
    with pytest.raises(UserError, match=rf"no permission to write to {tmp_path}. Give another folder"):
        understudy.distill(keys, teacher_cache=tmp_path / "new" / "cache")
    assert not (tmp_path / "run").exists()


def test_another_teacher_or_another_part_shares_no_entry(passes, tiny, trained, distilled, tmp_path):
    keys = {**KEYS, "teacher_cache": tmp_path / "cache", "schedule.epochs": 1}
    for number, changed in enumerate([{}, {"teacher": distilled}, {"methods": "hint"}]):
        understudy.distill(tiny, run=tmp_path / str(number), **{"teacher": trained, **keys, **changed})
    assert sum(passes) == 3 * 8


def test_a_full_cache_is_said_and_the_run_goes_on(passes, uncached, tiny, trained, tmp_path, capsys):
    keys = {"teacher": trained, "teacher_cache": "memory", "teacher_cache_gb": 3.1e-5, **KEYS}
    run = understudy.distill(tiny, run=tmp_path / "run", **keys)
    assert capsys.readouterr().err.count("The teacher cache is full (3.1e-05 GiB): other images") == 1
    assert passes == [4] * 3  # all images of the first epoch, and the batch with the last of them
    torch.testing.assert_close(losses(run), losses(uncached), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"methods": "crosskd"}, "crosskd reads the layers of the teacher, not only its outputs"),
        (
            {"data.shorter_side": [64, 96]},
            r"data.shorter_side=\[64, 96\]: each epoch has other pixels; .*variants=4",
        ),
        ({"data.colour": 0.5}, r"data.colour=0.5: each epoch has other pixels"),
        ({"data.scale": 1.5}, r"data.scale=1.5: each epoch has other pixels; .* or leave it out"),
        ({"data.scale": 2, "data.colour": 1}, r"data.colour=1.0, data.scale=2.0: each epoch has .* or leave them out"),
    ],
    ids=["layers", "sizes", "colour", "scale", "both"],
)
def test_a_cache_without_use_is_refused_and_auto_leaves_it_out(keys, reason, passes, tiny, trained, tmp_path):
    keys = {**tiny, "teacher": trained, "schedule.epochs": 1, **keys}
    with pytest.raises(UserError, match=rf"teacher_cache=memory has no use, set teacher_cache=off:\n  - {reason}"):
        understudy.distill(keys, run=tmp_path / "run", teacher_cache="memory")
    assert not (tmp_path / "run").exists()
    understudy.distill(keys, run=tmp_path / "run", teacher_cache="auto")
    assert len(passes) == 4


@pytest.mark.parametrize("memory", [False, True], ids=["limit", "memory"])
def test_by_default_the_outputs_are_kept_if_they_fit(memory, passes, tiny, trained, tmp_path, capsys, monkeypatch):
    keys = {"teacher": trained, "teacher_check": 0, "schedule.epochs": 1, **KEYS}
    taken = "the teacher's outputs of 8 images take about 0.03 MiB"
    understudy.distill(tiny, run=tmp_path / "fits", **keys)
    assert f"teacher_cache=auto: in memory, {taken}\n" in capsys.readouterr().err
    if memory:
        monkeypatch.setattr(teacher_cache, "_memory", lambda: 4 * 2e-5 * 2**30)
    else:
        keys["teacher_cache_gb"] = 2e-5
    understudy.distill(tiny, run=tmp_path / "off", **keys)
    assert f"teacher_cache=auto: off, {taken}, more than the 0.02 MiB" in capsys.readouterr().err


def test_the_size_of_an_entry_is_measured_on_a_small_image(confident):
    teacher = load_checkpoint(confident("fcos_mobilenet_v2")).detector.requires_grad_(False)
    needs = Needs(frozenset({"features", "class_logits"}))
    with torch.no_grad():
        outputs = teacher(torch.zeros(1, 3, 256, 384), needs=needs)
    held = sum(level.numel() for level in (*outputs.features, *outputs.class_logits)) * 2
    assert held == pytest.approx(teacher_cache._bytes_per_pixel(teacher, needs) * 256 * 384)


def test_values_beyond_float16_are_kept_in_bfloat16(confident):
    teacher = load_checkpoint(confident("fcos_mobilenet_v2")).detector.requires_grad_(False)
    with torch.no_grad():
        for layer in teacher.network.backbone.fpn.layer_blocks:
            layer[0].weight *= 1e7
    needs = Needs(frozenset({"features", "class_logits"}))
    cache = TeacherCache(teacher, needs, Store(None, 2**30), "32")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, [{}, {}], [(64, 64), (60, 50)], [(64, 64), (60, 50)], [1, 2], [True, True])
    with torch.no_grad():
        expected = teacher(images, batch.image_sizes, needs=needs)
    assert max(float(level.abs().max()) for level in expected.features) > 65504
    for _ in range(2):
        cache.prepare(batch)
        found = cache.outputs(batch, 0)
        for part in ("features", "class_logits", "anchors"):
            for own, other in zip(getattr(found, part), getattr(expected, part), strict=True):
                torch.testing.assert_close(own, other, rtol=4e-3, atol=4e-3)
        assert (found.size, found.image_sizes) == (expected.size, expected.image_sizes)
    assert cache.runs == 1


def test_an_entry_serves_all_batches_that_are_padded_alike(confident):
    teacher = load_checkpoint(confident("fcos_mobilenet_v2")).detector.requires_grad_(False)
    cache = TeacherCache(teacher, Needs(frozenset({"features"})), Store(None, 2**30), "32")
    first = torch.rand(3, 64, 60, generator=torch.Generator().manual_seed(0))

    def beside(width: int) -> list[torch.Tensor]:
        sizes = [(64, 60), (64, width)]
        batch = Batch(pad_to_batch([first, torch.ones(3, *sizes[1])]), [{}, {}], sizes, sizes, [1, 2], [True, True])
        cache.prepare(batch)
        return [level[0] for level in cache.outputs(batch, 0).features]

    found = beside(70)
    assert (cache.runs, len(cache.store.entries)) == (1, 3)  # two images, and the anchors
    assert all(map(torch.equal, beside(90), found))  # 96 pixels, as before
    assert (cache.runs, len(cache.store.entries)) == (2, 4)
    assert beside(100)[0].shape != found[0].shape
    assert len(cache.store.entries) == 7


def test_the_same_weights_with_other_pixels_or_anchors_share_no_entry(confident):
    def digest(**options) -> str:
        torch.manual_seed(0)
        return detector_digest(build_detector("retinanet_resnet18", 2, neck_channels=16, width_mult=0.25, **options))

    usual = digest()
    others = [digest(image_mean=[0.5] * 3), digest(anchor_scale=2.0), digest(conventions="mmdet")]
    assert digest() == usual
    assert len({usual, *others}) == 4


def test_two_processes_may_write_the_same_entry_and_a_failure_ends_no_run(tmp_path, monkeypatch, capsys):
    entry = {"values": torch.zeros(3), "layout": [("features", "", (3,))]}
    folder = tmp_path / "cache"
    stores = [Store(folder, 2**20), Store(folder, 2**20)]
    replace = Path.replace

    def between(draft, target):  # the other process writes while this one has a draft
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr("os.getpid", lambda: -1)
        stores[1].put("key", entry, 12)
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", between)
    stores[0].put("key", entry, 12)
    assert [store.bytes for store in stores] == [12, 12]
    assert [file.name for file in folder.iterdir()] == ["key.pt"]
    found = stores[0].get("key")
    assert found is not None
    assert torch.equal(found["values"], entry["values"])

    (tmp_path / "file").write_text("")
    unwritable = Store(tmp_path / "file" / "cache", 2**20)
    for key in ("a", "b"):
        unwritable.put(key, entry, 12)
        assert unwritable.get(key) is None
    assert capsys.readouterr().err.count("The teacher cache takes no more images.") == 1
