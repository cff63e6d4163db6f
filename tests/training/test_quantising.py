"""A run whose student is quantised in its last part: resumed, evaluated and saved as such, with plain weights."""

from dataclasses import replace

import pytest
import torch
from training_runs import as_bytes, assert_same, at_step, ctrl_c

import understudy
from understudy.checkpoints import load_checkpoint
from understudy.errors import UserError
from understudy.evaluation import evaluate
from understudy.evaluation.detections import detect_all
from understudy.files import read_rows
from understudy.quantisation import quantised_layers
from understudy.training import validation

KEYS = {"quantise": True, "quantise_from": 0.5, "teacher_check": 0}
PLAIN = {key: KEYS[key] for key in ("quantise", "quantise_from")}


@pytest.fixture(scope="module")
def quantised(tiny, trained, tmp_path_factory):
    return understudy.distill(tiny, teacher=trained, run=tmp_path_factory.mktemp("runs") / "quantised", **KEYS)


def state(run) -> dict:
    last = torch.load(run / "last.ckpt", weights_only=True)
    return {"ranges": last["understudy"]["quantisation"], "state": as_bytes(last["quantiser"]["reach"])}


@pytest.mark.slow  # four runs
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, trained, quantised, tmp_path, capfd):
    run = tmp_path / "run"
    with at_step(3, ctrl_c), pytest.raises(KeyboardInterrupt):  # before the student is quantised
        understudy.distill(tiny, teacher=trained, run=run, **KEYS)
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):  # and after
        understudy.resume(run)
    assert_same(understudy.resume(run), quantised)
    assert state(run) == state(quantised)
    assert capfd.readouterr().err.count("from step 4, the student computes with INT8 weights and inputs in 67 ") == 1


def test_before_it_begins_the_run_is_that_without_it(distilled, quantised):
    plain, own = (read_rows(run / "losses.csv") for run in (distilled, quantised))
    assert plain[0] == own[0]
    assert plain[-1]["total"] != own[-1]["total"]


def test_the_checkpoint_is_plain_and_has_the_ranges_that_its_ap_was_measured_with(scenes, quantised, distilled):
    checkpoint, other = load_checkpoint(quantised), load_checkpoint(distilled)
    assert list(checkpoint.detector.state_dict()) == list(other.detector.state_dict())
    assert "quantisation" not in other.meta
    ranges = checkpoint.meta["quantisation"]
    assert ranges.keys() == quantised_layers(checkpoint.detector.network).keys()
    row = next(row for row in read_rows(quantised / "metrics.csv") if float(row["epoch"]) == checkpoint.meta["epoch"])
    data = understudy.open_data(scenes, "val")
    batches = validation.evaluation_loader(data, batch_size=2, shorter_side=64, longer_side=64, workers=0)
    plain = validation.score(data, detect_all(checkpoint.detector, batches, "cpu", data.category_ids)).coco["AP"]
    assert evaluate(quantised, scenes).coco["AP"] == pytest.approx(float(row["AP"]), abs=1e-6)
    assert plain != pytest.approx(float(row["AP"]), abs=1e-6)
    assert '"quantised": true' in (quantised / "result.json").read_text()


def test_the_best_checkpoint_is_a_quantised_one_and_patience_waits_for_it(tiny, tmp_path, monkeypatch):
    aps, original = iter([0.9, 0.8, 0.1, 0.2]), validation.score

    def score(*args):
        found = original(*args)
        return replace(found, coco={**found.coco, "AP": next(aps)})

    monkeypatch.setattr(validation, "score", score)
    keys = {"schedule.epochs": 4, "schedule.patience": 1, "data.limit": 4, "quantise_from": 0.7, "ema": "off"}
    run = understudy.train(tiny, run=tmp_path / "run", **{**PLAIN, **keys})
    assert [float(row["AP"]) for row in read_rows(run / "metrics.csv")] == [0.9, 0.8, 0.1, 0.2]
    assert load_checkpoint(run).meta["epoch"] == 4


def test_compiled_layers_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="quantise=true does not work with compile=true"):
        understudy.train(tiny, run=tmp_path / "run", compile=True, **PLAIN)
    assert not (tmp_path / "run").exists()


def test_the_start_of_a_quantisation_that_is_off_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"^quantise_from=0.5 has no effect without quantise=true"):
        understudy.train(tiny, run=tmp_path / "run", quantise_from=0.5)
    keys = {"quantise_from": 0.5, "schedule.name": "cosine", "schedule.drops": [0.5]}
    with pytest.raises(UserError, match=r"(?s)schedule.drops has no effect.*quantise_from=0.5 has no effect"):
        understudy.train(tiny, run=tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()
