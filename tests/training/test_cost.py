"""The estimate of time and memory: scaled to the run, close to what a step takes, and without a trace in the run."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_same

import understudy
from understudy.config import DistillConfig, TrainConfig, load_config, with_values
from understudy.data import open_data
from understudy.errors import RunError, UserError
from understudy.studies.timing import peak_memory
from understudy.training import cost
from understudy.training.assembly import build_networks, make_loader
from understudy.training.cost import ACTIVATIONS, LONG, RESERVE, Sample, cost_of, how_to_shorten, measure_step
from understudy.training.machine import Machine, Memory
from understudy.training.sources import Sources
from understudy.training.trainer import make_trainer

SAMPLE = Sample(training=1e-6, inference=1e-7, loading=0.01, saved=1000.0, trained=1000, others=500, process=10**6)
HALF = "32", "bf16"
HOST = Machine(torch.device("cpu"), 1, 2, Memory(10**12, 10**11))


@pytest.fixture
def opened(tiny, tmp_path):
    """Opens the images of a tiny run, whose keys may be changed."""

    def opened(**keys: Any) -> tuple[Any, Sources, Any]:
        cls = DistillConfig if "teacher" in keys else TrainConfig
        config = load_config(cls, tiny, {**keys, "run": tmp_path / "run"})
        return config, Sources.of(config), make_trainer(config, tmp_path / "run")

    return opened


def test_a_step_is_scaled_to_the_images_of_the_run(opened):
    config, sources, _ = opened()
    pixels = 2 * 64 * 64
    found = cost_of(config, SAMPLE, sources, HOST)
    assert (found.steps, found.evaluations) == (2 * 4, 2)
    assert found.seconds_per_step == pytest.approx(pixels * 1e-6 + 2 * 0.01)
    assert found.seconds_per_evaluation == pytest.approx(4 * (64 * 64 * 1e-7 + 0.01))
    assert found.seconds == pytest.approx(8 * found.seconds_per_step + 2 * found.seconds_per_evaluation)
    files = 2 * 64 * 64 * 3
    # AdamW: weights, gradients and two states
    step = 4 * 1000 + 500 + pixels * 24 + files + pixels * 1000 * ACTIVATIONS["cpu"]
    assert found.more == pytest.approx(RESERVE * step, abs=2)
    assert found.bytes == found.more + 10**6
    assert found.fits


def test_workers_load_while_the_steps_run(opened):
    config, sources, _ = opened()
    with_workers = with_values(config, {"data.workers": 4})
    assert cost_of(with_workers, SAMPLE, sources, HOST).seconds_per_step == pytest.approx(2 * 64 * 64 * 1e-6)
    slow = replace(SAMPLE, loading=1.0)
    assert cost_of(with_workers, slow, sources, HOST).seconds_per_step == pytest.approx(0.5)


def test_images_of_several_shapes_are_padded_together(opened, scenes):
    config, sources, _ = opened(**{"data.shorter_side": 64, "data.longer_side": 128, "batch_size": 8})
    data = open_data(scenes)
    data.records.images[0, 1] = 128  # one image is twice as wide as high
    mixed = replace(sources, train=data)
    plain, wide = (cost_of(config, SAMPLE, each, HOST) for each in (sources, mixed))
    assert wide.more > 1.9 * plain.more - 10_000
    assert plain.seconds_per_step < wide.seconds_per_step < 2 * plain.seconds_per_step


@pytest.mark.parametrize(
    ("given", "seconds", "ways"),
    [
        ((), 1, ()),
        ((), LONG, ("data.shorter_side=160 takes about a quarter of the time", "schedule.epochs=50 takes half of it")),
        (("schedule.epochs",), LONG, ("data.shorter_side=160 takes about a quarter of the time",)),
        (("data.shorter_side",), LONG, ("schedule.epochs=50 takes half of the time",)),
        (("data.shorter_side", "schedule.epochs"), LONG, ()),
    ],
)
def test_a_long_run_names_the_keys_left_open_that_shorten_it(opened, given, seconds, ways):
    config, sources, _ = opened(**{"schedule.epochs": 100, "data.shorter_side": 320})
    found = replace(cost_of(config, SAMPLE, sources, HOST), steps=1, seconds_per_step=seconds, evaluations=0)
    told = how_to_shorten(config, found, {"data.shorter_side", "schedule.epochs"} - set(given))
    assert [way for way in told.removeprefix("To shorten it: ").partition(";")[0].split(", ") if way] == list(ways)


def test_the_images_of_a_student_follow_its_teacher_and_small_ones_stay(opened, trained):
    student, *_ = opened(teacher=trained, **{"schedule.epochs": 100, "data.shorter_side": 320})
    small, sources, _ = opened(**{"schedule.epochs": 1, "data.shorter_side": 300})
    long = replace(cost_of(small, SAMPLE, sources, HOST), steps=1, seconds_per_step=2 * LONG)
    chosen = {"data.shorter_side", "schedule.epochs"}
    assert how_to_shorten(student, long, chosen).startswith("To shorten it: schedule.epochs=50 takes half of the time;")
    assert how_to_shorten(small, long, chosen) == ""


@pytest.mark.parametrize("teacher", [False, True])
def test_the_memory_is_that_of_a_step(opened, trained, teacher):
    """The profiler of PyTorch counts every allocation of the run's own step; the estimate adds a margin."""
    keys: dict[str, Any] = {"teacher": trained, "methods": "hint"} if teacher else {}
    config, sources, trainer = opened(**keys, **{"detector.width_mult": 1.0})
    sample = measure_step(config, sources, trainer)
    assert isinstance(sample, Sample)
    networks = build_networks(config, sources.train, new=False)
    learner = networks.learner.train()
    batch = next(iter(make_loader(config, sources.train, None))).to("cpu")
    frozen = networks.teacher.detector if networks.teacher else None

    def step() -> None:
        with torch.no_grad():
            outputs = frozen(batch.images, batch.image_sizes, needs=learner.needs) if frozen else None
        terms = learner(batch.images, batch.targets, outputs, batch.image_sizes, batch.labelled, teacher=frozen)
        torch.stack(list(terms.values())).sum().backward()

    step()  # the gradients are allocated
    peak = peak_memory(step, torch.device("cpu"))
    estimate = 2 * 64 * 64 * sample.saved * ACTIVATIONS["cpu"]
    assert 0.8 * peak < estimate < 1.6 * peak
    weights = sum(each.nbytes for each in learner.parameters() if each.requires_grad)
    assert sample.trained == weights
    assert (sample.others > weights / 10) is teacher
    assert 0 < sample.inference < sample.training


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_their_copies_do_not_grow_with_the_images(trained, dtype):
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1), torch.nn.Flatten(), torch.nn.Linear(8 * 6, 48))
    network.requires_grad_(trained)
    images = torch.rand(48, 4, 2, 3, requires_grad=True)  # flat, they have the shape of the linear layer's weight
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), cost._counting_saved(network) as saved:
        network(images).sum()
    features = 48 * 8 * 6 if trained else 0  # which the gradient of the linear layer's weight needs
    assert sum(saved.values()) == (images.numel() + features) * dtype.itemsize


def test_half_precision_saves_half_as_much(opened):
    whole, half = (measure_step(*opened(precision=precision, **{"detector.width_mult": 1.0})) for precision in HALF)
    assert half.saved == pytest.approx(whole.saved / 2, rel=0.1)
    config, sources, _ = opened()
    memory = [cost_of(with_values(config, {"precision": each}), SAMPLE, sources, HOST).more for each in HALF]
    assert memory[1] - memory[0] == pytest.approx(RESERVE * SAMPLE.trained / 2, abs=2), "the copies of the weights"


def test_large_images_are_measured_smaller(opened, monkeypatch):
    config, sources, trainer = opened(**{"detector.width_mult": 0.35})
    random_numbers = torch.get_rng_state()
    whole = measure_step(config, sources, trainer)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    monkeypatch.setattr(cost, "PIXELS", 32 * 32)
    small = measure_step(config, sources, trainer)
    assert isinstance(whole, Sample)
    assert isinstance(small, Sample)
    assert small.saved == pytest.approx(whole.saved, rel=0.35), "per pixel"


def test_a_run_with_an_estimate_is_the_run_without(tiny, trained, distilled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("understudy.training.defaults.measure_step", measure_step)
    estimated = understudy.distill(tiny, run=tmp_path / "estimated", teacher=trained)
    said = capsys.readouterr().err
    assert "Estimate: about " in said
    assert "(8 steps of " in said
    assert_same(estimated, distilled)


def test_an_image_that_cannot_be_read_prevents_it(opened, scenes, tmp_path):
    copy = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    for image in (copy / "images").iterdir():
        image.write_bytes(b"")
    config, sources, trainer = opened(**{"data.path": copy})
    assert isinstance(measure_step(config, sources, trainer), RunError)


def test_a_pair_that_does_not_fit_is_refused_before_anything_is_downloaded(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.training.defaults.measure_step", measure_step)
    keys = {"detector.backbone_weights": "IMAGENET1K_V1", "detector.width_mult": 1.0, "detector.neck_channels": 8}
    with pytest.raises(UserError, match="pkd"):
        understudy.distill(tiny, run=tmp_path / "run", teacher=trained, methods="pkd", **keys)
