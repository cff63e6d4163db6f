"""What a config leaves open: chosen from data, teacher and machine, written into the run, and never against a value."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from data_sets import squares
from training_runs import at_step, ctrl_c

import understudy
from understudy.config import LEFT_OPEN, DistillConfig, TrainConfig, has, load_config, open_keys, value_of, with_values
from understudy.data import DetectionData
from understudy.errors import Stopped, UserError
from understudy.training import defaults
from understudy.training.cost import Sample
from understudy.training.defaults import RULES, Derived, derive
from understudy.training.machine import Machine, Memory
from understudy.training.sources import Sources

SAMPLE = Sample(training=1e-6, inference=1e-7, loading=0.001, saved=2000.0, trained=2**24, others=0, process=2**28)
"""A step that saves 2000 bytes for each pixel."""


def machine(device: str = "cpu", processes: int = 1, cores: int = 2, gib: float = 64.0) -> Machine:
    memory = Memory(int(gib * 2**30), int(gib * 2**30))
    return Machine(torch.device(device), processes, cores, memory)


@pytest.fixture
def chosen(monkeypatch) -> Callable[..., Derived]:
    """Completes a config for images of 320 x 240 pixels on some machine."""

    def chosen(*arguments: str, on: Machine | None = None, data: DetectionData | None = None) -> Derived:
        monkeypatch.setattr(defaults, "measure_step", lambda *_: SAMPLE)
        monkeypatch.setattr(defaults.Machine, "of", lambda *_: on or machine())
        data = data or of_images(300)
        config = load_config(TrainConfig, None, ["run=r", "data=d", *arguments])
        trainer: Any = type("Trainer", (), {"strategy": type("S", (), {"root_device": None})})
        trainer.world_size = trainer.num_devices = 1
        return derive(config, Sources(data, data, None, ()), trainer)

    return chosen


def of_images(count: int) -> DetectionData:
    """So many images of 320 x 240 pixels with a box of 40 pixels each."""
    data = squares(40.0, count=1, size=(320, 240))
    return replace(data, records=data.records.take([0] * count))


def values(derived: Derived) -> dict[str, Any]:
    return {key: value_of(derived.config, key) for key in LEFT_OPEN if has(derived.config, key)}


def test_there_is_a_rule_for_each_key_in_the_same_order():
    assert list(RULES) == list(LEFT_OPEN)


def test_what_is_chosen_for_some_photos(chosen):
    derived = chosen("detector=retinanet_resnet18")
    assert values(derived) == {
        "data.shorter_side": [240],
        "data.longer_side": 400,
        "schedule.epochs": 92,
        "data.colour": 0.5,
        "data.scale": 1.5,
        "evaluate_every": 5,
        "detector.backbone_weights": "IMAGENET1K_V1",
        "detector.head_norm": "group",
        "detector.anchor_scale": None,
        "class_balance": False,
        "data.workers": 0,
        "batch_size": 16,
        "data.group_by_aspect": False,
        "data.unlabelled_batch": None,
        "detector.norm": "batch",
        "data.variants": None,
    }
    assert open_keys(derived.config) == []
    assert "  schedule.epochs=92: 24,000 images, and 12 times each of 300" in derived.notes
    assert derived.cost is not None
    assert derived.cost.steps == 92 * 18
    assert derived.estimate[0].startswith("Estimate: about ")


def test_values_of_the_user_are_kept(chosen):
    given = {
        "data.shorter_side": "[64, 96]",
        "data.longer_side": "96",
        "schedule.epochs": "3",
        "data.colour": "0.1",
        "data.scale": "1",
        "evaluate_every": "2",
        "detector.backbone_weights": "null",
        "detector.head_norm": "null",
        "detector.anchor_scale": "null",
        "class_balance": "true",
        "data.workers": "1",
        "batch_size": "5",
        "data.group_by_aspect": "true",
        "detector.norm": "eval",
        "data.variants": "null",
    }
    config = load_config(TrainConfig, None, ["run=r", "data=d", *(f"{key}={text}" for key, text in given.items())])
    derived = chosen(*(f"{key}={text}" for key, text in given.items()))
    assert derived.config == config
    assert derived.choices == ()
    assert derived.notes == ()


@pytest.mark.parametrize(
    ("images", "epochs", "varied"), [(1, 24, True), (2000, 30, True), (2001, 30, False), (9, 23, False)]
)
def test_few_images_that_are_seen_often_are_varied(chosen, images, epochs, varied):
    derived = chosen(f"schedule.epochs={epochs}", data=of_images(images))
    assert (derived.config.data.colour, derived.config.data.scale) == ((0.5, 1.5) if varied else (0.0, 1.0))
    lines = [f"  data.{key}: few images, each is seen {epochs} times" for key in ("colour=0.5", "scale=1.5")]
    assert [line in derived.notes for line in lines] == [varied, varied]


@pytest.mark.parametrize(
    ("counts", "detector", "frequent"),
    [
        ((17, 2, 1), "retinanet_resnet18", "85% of the objects are of one of 3 classes, class_0"),
        ((17, 2, 1), "faster_rcnn_resnet18", None),
        ((1, 5, 1), "gfl_resnet18", "71% of the objects are of one of 3 classes, class_1"),
        ((13, 6, 1), "fcos_resnet18", None),
        ((2, 4), "fcos_resnet18", "67% of the objects are of one of 2 classes, class_1"),
        ((20,), "fcos_resnet18", None),
    ],
)
def test_classes_are_balanced_if_one_has_most_of_the_objects(chosen, counts, detector, frequent):
    data = of_images(sum(counts))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels.repeat_interleave(len(data.records.labels) // len(labels))
    data = replace(
        data,
        classes=tuple(f"class_{number}" for number in range(len(counts))),
        category_ids=tuple(range(len(counts))),
        records=replace(data.records, labels=labels),
    )
    derived = chosen(f"detector={detector}", data=data)
    assert derived.config.class_balance is (frequent is not None)
    assert (f"  class_balance=true: {frequent}" in derived.notes) == (frequent is not None)


@pytest.mark.parametrize(
    ("images", "epochs", "every"), [(1, 1000, 50), (24, 1000, 50), (300, 92, 5), (1000, 36, 2), (118_000, 12, 1)]
)
def test_the_length_follows_from_the_number_of_images(chosen, images, epochs, every):
    derived = chosen("detector=fcos_resnet18", data=of_images(images))
    assert (derived.config.schedule.epochs, derived.config.evaluate_every) == (epochs, every)


def test_the_papers_schedules_keep_their_length(chosen):
    assert chosen("schedule=2x").config.schedule.epochs == 24


@pytest.mark.parametrize(
    ("detector", "weights", "reason"),
    [
        (["detector=retinanet_resnet18"], "IMAGENET1K_V1", "torchvision's, of ImageNet; downloaded once, 45 MB"),
        (["detector=fcos_mobilenet_v2", "detector.width_mult=0.5"], None, "for width_mult=1 only"),
        (["detector=gfl_resnext152_32x8d"], None, "no weights of resnext152_32x8d"),
        (["detector=tinyyolo_d33"], None, "no weights of this backbone"),
    ],
)
def test_the_first_weights_are_those_that_torchvision_has(chosen, detector, weights, reason, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    derived = chosen(*detector)
    assert derived.config.detector.backbone_weights == weights
    assert reason in next(choice.reason for choice in derived.choices if choice.key == "detector.backbone_weights")


@pytest.mark.parametrize(("high", "wide", "grouped"), [((240, 320), (320, 240), True), ((240, 250), (250, 240), False)])
def test_images_are_grouped_by_orientation_where_that_saves_padding(chosen, high, wide, grouped):
    data = of_images(400)
    data.records.images[:, 1:] = torch.tensor([high, wide, wide, wide] * 100)
    found = chosen("detector=retinanet_resnet18", data=data)
    assert found.config.data.group_by_aspect is grouped
    assert chosen("detector=retinanet_resnet18", "batch_size=1", data=data).config.data.group_by_aspect is False
    assert ("mixed batches would be padded to 2" in str(found.notes)) is grouped
    other = chosen("detector=retinanet_resnet18", f"data.group_by_aspect={str(not grouped).lower()}", data=data)
    assert found.cost
    assert other.cost
    assert (found.cost.seconds_per_step < other.cost.seconds_per_step) is grouped


@pytest.mark.parametrize(("images", "grouped"), [(512, "size"), (240, True)])
def test_images_are_grouped_by_padded_size_where_most_of_them_fill_batches(chosen, images, grouped):
    data = of_images(images)
    data.records.images[:, 1:] = torch.tensor([(320, 240), (400, 240), (240, 320), (240, 400)]).repeat(images // 4, 1)
    for on, expected in ((machine(), grouped), (machine(processes=3), True)):
        found = chosen("detector=retinanet_resnet18", "batch_size=16", data=data, on=on)
        assert found.config.data.group_by_aspect == expected


@pytest.mark.parametrize(
    ("arguments", "norm"),
    [
        (["detector=retinanet_resnet18"], "group"),
        (["detector=retinanet_resnet18", "detector.conventions=mmdet"], None),
        (["detector=fcos_resnet18"], None),
        (["detector=faster_rcnn_resnet18"], None),
        (["detector=tinyyolo_d33"], None),
    ],
)
def test_a_retinanet_has_groupnorm_in_its_head(chosen, arguments, norm):
    assert chosen(*arguments).config.detector.head_norm == norm


@pytest.mark.parametrize(
    ("source", "norm"),
    [
        ({"name": "retinanet_resnet50", "head_norm": None}, None),
        ({"name": "retinanet_resnet50", "head_norm": "group"}, "group"),
        ({"name": "fcos_resnet50", "head_norm": None}, "group"),
    ],
)
def test_a_head_that_starts_with_other_weights_has_their_norm(chosen, source, norm, monkeypatch):
    monkeypatch.setattr(defaults, "read_metadata", lambda _: {"build": source})
    assert chosen("detector=retinanet_resnet18", "init=other.ckpt").config.detector.head_norm == norm


@pytest.mark.parametrize(("cores", "device", "workers"), [(1, "cpu", 0), (2, "cpu", 0), (8, "cpu", 2), (64, "cpu", 4)])
def test_workers_leave_the_cores_of_a_cpu_to_the_steps(chosen, cores, device, workers):
    assert chosen(on=machine(device, cores=cores)).config.data.workers == workers


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (4, 3), (64, 8)])
def test_workers_feed_a_gpu(chosen, cores, workers):
    assert chosen(on=machine("cuda", cores=cores)).config.data.workers == workers


def test_the_batch_is_as_large_as_memory_and_images_permit(chosen):
    """An image of 320 x 240 is padded to 81,920 pixels, which save 0.15 GiB."""
    assert chosen("detector=fcos_resnet18", on=machine(gib=8)).config.batch_size == 16
    small = chosen("detector=fcos_resnet18", on=machine(gib=4))
    assert small.config.batch_size == 8
    assert any("batch_size=8: 16 would need about 3." in note for note in small.notes)
    assert chosen("detector=fcos_resnet18", data=of_images(11)).config.batch_size == 8
    assert chosen("detector=fcos_resnet18", data=of_images(1)).config.batch_size == 1
    with pytest.raises(UserError, match=r"does not fit into the memory with batch_size=1: it needs about .* GiB"):
        chosen("detector=fcos_resnet18", on=machine(gib=0.5))


def test_the_free_memory_is_read_before_a_step_is_measured(tiny, monkeypatch):
    """Also of a complete config, which no rule completes."""
    done: list[str] = []
    look = Machine.of
    monkeypatch.setattr(defaults.Machine, "of", lambda *given: (done.append("machine"), look(*given))[1])
    monkeypatch.setattr(defaults, "measure_step", lambda *_: (done.append("step"), SAMPLE)[1])
    complete = understudy.suggest(tiny).config
    done.clear()
    assert open_keys(complete) == []
    understudy.suggest(complete)
    assert done == ["machine", "step"]


def test_a_batch_of_the_user_that_does_not_fit_is_warned_of(chosen):
    derived = chosen("batch_size=64", "detector=fcos_resnet18", on=machine(gib=8))
    assert derived.config.batch_size == 64
    assert derived.estimate[1].startswith("The run needs about ")
    assert "the system may end it without a message. Lower batch_size (now 64) or data.short" in derived.estimate[1]


@pytest.mark.parametrize(("processes", "size"), [(2, 8), (3, 5), (5, 3), (6, 3), (7, 2), (8, 2), (12, 1), (32, 1)])
def test_a_step_has_as_many_images_on_several_processes(chosen, processes, size):
    found = chosen(on=machine(processes=processes))
    assert found.config.batch_size == size
    told = f"{size * processes} images per step over {processes} processes; the learning rate refers to 16 images"
    assert f"  batch_size={size}: {told} per step" in found.notes


def test_few_images_limit_the_step_of_several_processes(chosen):
    found = chosen(on=machine(processes=3), data=of_images(14))
    assert "  batch_size=4: 12 images per step over 3 processes; training images: 14" in found.notes


def test_batch_normalisation_trains_unless_there_are_few_images_of_a_pretrained_backbone(chosen):
    assert chosen("detector.backbone_weights=w.pt", "batch_size=4").config.detector.norm == "batch"
    few = chosen("detector.backbone_weights=w.pt", "batch_size=3")
    assert few.config.detector.norm == "frozen"
    assert any("fewer than 4 images per process" in note for note in few.notes)
    assert chosen("detector.backbone_weights=null", "batch_size=1").config.detector.norm == "batch"


def test_small_objects_get_small_anchors(chosen):
    data = squares(14.0)
    assert chosen("detector=retinanet_resnet18", data=data).config.detector.anchor_scale == 2.0
    assert chosen("detector=fcos_resnet18", data=data).config.detector.anchor_scale is None
    wrong = chosen("detector=retinanet_resnet18", "detector.settings={wings: 1}", data=data)
    assert wrong.config.detector.anchor_scale is None, "the detector itself is refused later"


@pytest.mark.parametrize(
    ("source", "scale"),
    [
        ({"name": "retinanet_resnet50"}, None),
        ({"name": "retinanet_resnet50", "anchor_scale": 3.0}, 3.0),
        ({"name": "faster_rcnn_resnet50", "anchor_scale": 3.0}, 2.0),
    ],
)
def test_a_head_that_starts_with_other_weights_has_their_anchors(chosen, source, scale, monkeypatch):
    monkeypatch.setattr(defaults, "read_metadata", lambda _: {"build": source})
    found = chosen("detector=retinanet_resnet18", "init=other.ckpt", data=squares(14.0))
    assert found.config.detector.anchor_scale == scale
    told = "  detector.anchor_scale=3.0: that of other.ckpt, whose weights the head starts with"
    assert (told in found.notes) is (scale == 3.0)


SIZE = {"data.shorter_side": [240], "data.longer_side": 400}


@pytest.mark.parametrize(
    ("scale", "method", "chosen", "reason"),
    [
        (None, "frs", None, "that of the teacher, which is of the same family; 2 fits better: IoU of the boxes"),
        (2.0, "frs", 2.0, "that of the teacher, which is of the same family"),
        (3.0, "", 3.0, "that of the teacher, which is of the same family"),
        (
            None,
            "",
            2.0,
            "whose anchors fit the boxes worse, and the default methods do not need them; IoU of the boxes",
        ),
        (
            6.0,
            "",
            2.0,
            "whose anchors fit the boxes worse, and the default methods do not need them; IoU of the boxes",
        ),
    ],
)
def test_anchors_of_a_teacher_that_fit_clearly_worse(scale, method, chosen, reason, monkeypatch):
    """The default methods do without them, others are told."""
    build = {"name": "retinanet_resnet50", "anchor_scale": scale}
    monkeypatch.setattr(defaults, "read_metadata", lambda _: {"build": build})
    data, keys = squares(14.0), ["run=r", "data=d", "teacher=t", "detector=retinanet_resnet18"]
    config = load_config(DistillConfig, None, keys, [method] if method else [])
    facts = cast("Any", SimpleNamespace(sources=Sources(data, data, None, ())))
    found = defaults._anchor_scale(with_values(config, SIZE), facts)
    assert found.value == chosen
    assert reason in found.reason
    alone = load_config(TrainConfig, None, ["run=r", "data=d", "detector=retinanet_resnet18"])
    if "cells" in reason:
        assert chosen == defaults._anchor_scale(with_values(alone, SIZE), facts).value, "as the plain student has them"
    assert ("cells" in found.reason, "fits better" in found.reason) == ("cells" in reason, "fits better" in reason)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(tiny) -> dict[str, Any]:
    """Keys of a tiny run that leave open all that can be left open."""
    return {key: value for key, value in tiny.items() if key not in LEFT_OPEN} | {"schedule": "cosine"}


@pytest.fixture(scope="module")
def brief() -> Any:
    """Few epochs where the images are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MOST_EPOCHS", 2)
        yield


def test_a_run_says_writes_and_keeps_what_was_chosen(few, brief, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with at_step(1, ctrl_c), pytest.raises(Stopped):
        understudy.train(few, run=run)
    said = capsys.readouterr().err
    assert "  data.shorter_side=[64]: the images have 64 x 64 pixels (median)\n" in said
    assert "  detector.backbone_weights=null: random initialisation, torchvision has weights of mob" in said
    written = load_config(TrainConfig, run / "config.yaml")
    assert open_keys(written) == []
    assert (written.batch_size, written.schedule.epochs, written.detector.norm) == (8, 2, "batch")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert understudy.train(few, run=run) == run, "the job is requeued, and leaves the same keys open"
    assert "Chosen for" not in capsys.readouterr().err
    assert load_config(TrainConfig, run / "config.yaml") == written
    assert (run / "result.json").exists()


def test_a_student_has_the_image_size_and_the_anchors_of_its_teacher(tiny, few, scenes, tmp_path):
    retinanet = {"detector.name": "retinanet_mobilenet_v2", "schedule.epochs": 1}
    keys = {**retinanet, "detector.anchor_scale": 3.0, "data.shorter_side": [96], "data.longer_side": 96}
    teacher = understudy.train(tiny, run=tmp_path / "teacher", **keys)
    config = understudy.suggest(few, teacher=teacher, **retinanet).config
    assert (config.data.shorter_side, config.data.longer_side, config.detector.anchor_scale) == ([96], 96, 3.0)
    larger = understudy.suggest(few, teacher=teacher, **retinanet, **{"data.shorter_side": [120]}).config
    assert larger.data.longer_side == 200, "another size than the teacher's"
    moved = shutil.copytree(scenes, tmp_path / "moved")
    other = understudy.suggest(few, teacher=teacher, **{"data.path": moved}).config
    assert other.data.shorter_side == [64], "other photos have their own size"
    assert other.detector.anchor_scale is None, "an FCOS has no anchors"


def test_weights_that_cannot_be_downloaded_are_one_message(few, tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError) as stop:
        understudy.train(few, run=tmp_path / "run", **{"detector.width_mult": 1.0})
    message = str(stop.value)
    assert "could not download IMAGENET1K_V1 for mobilenet_v2 (OSError: Network is unreachable)" in message
    assert "Fetch https://download.pytorch.org/models/mobilenet_v2-" in message
    assert f"copy it to {tmp_path / 'checkpoints'}, or set detector.backbone_weights=FILE, or null for rand" in message
    assert not (tmp_path / "run").exists()


def test_an_unlabelled_batch_is_as_large_as_the_labelled_one(few, trained, unlabelled):
    found = understudy.suggest(few, teacher=trained, **{"data.unlabelled": unlabelled}).config
    assert (found.batch_size, found.data.unlabelled_batch) == (8, 8)


def test_an_old_config_file_still_means_what_it_says():
    file = Path(understudy.__file__).parent / "demo_teacher" / "config.yaml"
    old = load_config(TrainConfig, file)
    assert open_keys(old) == ["class_balance", "data.group_by_aspect", "data.variants"]  # younger than the file
    assert old.data.workers == 0
