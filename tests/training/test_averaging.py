"""The moving average of the weights is evaluated and saved; the training goes on with the weights themselves."""

import math

import pytest
import torch
from training_runs import edited_checkpoint, recorded

import understudy
from understudy.checkpoints import STUDENT, load_checkpoint
from understudy.errors import UserError
from understudy.evaluation import evaluate
from understudy.files import read_rows
from understudy.training.averaging import RAW, decay_at
from understudy.training.folder import RunFolder


def averages(steps: list[dict[str, torch.Tensor]], initial: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The average after all steps, in double precision."""
    found = {name: value.double() for name, value in initial.items()}
    for number, weights in enumerate(steps, start=1):
        decay = min(0.7, (1 + number) / (10 + number))
        found = {name: decay * value + (1 - decay) * weights[name].double() for name, value in found.items()}
    return found


def test_a_run_saves_and_evaluates_the_average(tiny, scenes, tmp_path):
    with recorded() as steps:
        run = understudy.train(tiny, run=tmp_path / "run", ema=0.7)
    last = torch.load(run / "last.ckpt", weights_only=True)
    initial, steps = steps[0], steps[1:]
    assert len(steps) == 8
    expected, counters = averages(steps, initial), 0
    for name, value in last["state_dict"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
            assert torch.equal(last[RAW][name], steps[-1][name])
        else:
            counters += 1
            assert name not in last[RAW]
            assert torch.equal(value, steps[-1][name])
    assert counters > 10
    moved = {name for name, value in last[RAW].items() if not torch.equal(value, last["state_dict"][name])}
    assert any("running_var" in name for name in moved)
    assert any("cls_logits" in name for name in moved)
    rows = read_rows(run / "metrics.csv")
    epoch = round(load_checkpoint(run).meta["epoch"])
    assert evaluate(run, scenes).coco["AP"] == pytest.approx(float(rows[epoch - 1]["AP"]), abs=1e-6)
    best = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    expected = averages(steps[: 4 * epoch], initial)
    name = f"{STUDENT}head.classification_head.cls_logits.weight"
    torch.testing.assert_close(best[name].double(), expected[name], rtol=1e-4, atol=1e-6)


def test_off_saves_the_weights_themselves(tiny, tmp_path):
    with recorded() as steps:
        run = understudy.train(tiny, run=tmp_path / "run", ema="off", **{"schedule.epochs": 1})
    last = torch.load(run / "last.ckpt", weights_only=True)
    assert RAW not in last
    assert all(torch.equal(value, steps[-1][name]) for name, value in last["state_dict"].items())


def test_the_weights_of_the_methods_are_averaged_too_but_frozen_ones_are_not(tiny, trained, tmp_path):
    """The swap test and a resumed run read both from one checkpoint."""
    keys = {
        "methods": "hint",
        "detector.neck_channels": 24,
        "detector.norm": "frozen",
        "detector.frozen_stages": 1,
        "schedule.epochs": 1,
    }
    run = understudy.distill(tiny, teacher=trained, run=tmp_path / "run", **keys)
    last = torch.load(run / "last.ckpt", weights_only=True)
    adapters = [name for name in last[RAW] if name.startswith("learner.methods.")]
    assert adapters
    assert all(not torch.equal(last[RAW][name], last["state_dict"][name]) for name in adapters)
    assert f"{STUDENT}backbone.body.0.0.weight" in last["state_dict"].keys() - last[RAW].keys()


def test_a_checkpoint_without_the_weights_in_training_is_not_resumed(trained, tmp_path):
    run = edited_checkpoint(trained, tmp_path / "run", lambda content: content.pop(RAW))
    with pytest.raises(UserError, match=r"The weights in training in .*last.ckpt do not fit the run \(ema=0.9998\)"):
        understudy.resume(run)


def test_a_run_of_a_version_without_averages_goes_on_without(trained, tmp_path):
    folder = RunFolder(tmp_path)
    text = (trained / "config.yaml").read_text()
    assert "\nema: 0.9998\n" in text
    folder.config.write_text(text.replace("\nema: 0.9998\n", "\n"))
    assert folder.read_config().ema == "off"


def test_the_average_spans_a_ninth_of_a_short_run():
    """The mean age of the averaged weights, over the length of the run."""
    for steps in (100, 1000):
        share, age = 1.0, 0.0
        for step in range(steps, 0, -1):
            decay = decay_at(step, 0.9998)
            age += share * (1 - decay) * (steps - step)
            share *= decay
        assert age / steps == pytest.approx(0.1, abs=0.02)
    assert decay_at(10**6, 0.9998) == 0.9998
    assert math.isclose(decay_at(1, 0.9998), 2 / 11)
