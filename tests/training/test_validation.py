"""Evaluations during a run: metrics.csv by epoch, and the result of the best one."""

import json
import math
import shutil

import pytest
from run_folders import make_run
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.compare.table import summarise
from understudy.files import read_rows
from understudy.training.validation import evaluations_without_gain


def test_metrics_by_epoch_and_the_result_of_the_best(distilled):
    metrics = read_rows(distilled / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in metrics] == [("1", "4"), ("2", "8")]
    assert list(metrics[0]) == ["epoch", "step", "AP", "AP50", "AP75", "seconds"]
    best = max(metrics, key=lambda row: float(row["AP"]))
    result = json.loads((distilled / "result.json").read_text())
    assert result["coco"]["AP"] == pytest.approx(float(best["AP"]))
    assert result["epoch"] == int(best["epoch"])
    assert result["parameters"] > 1e5


def test_evaluations_every_few_epochs_and_at_the_end(tiny, tmp_path):
    run = understudy.train(tiny, run=tmp_path / "run", evaluate_every=2, batch_size=8, **{"schedule.epochs": 3})
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["2", "3"]


def test_an_ap_of_zero_is_remarked_on_once_and_is_not_the_best_so_far(tiny, scenes, tmp_path, capsys):
    keys = {"optimizer.lr": 1e-12, "batch_size": 8, "schedule.epochs": 4}
    run = understudy.train(tiny, run=tmp_path / "run", **keys)
    assert {float(row["AP"]) for row in read_rows(run / "metrics.csv")} == {0.0}
    err = capsys.readouterr().err
    assert "best so far" not in err
    assert (run / "best.ckpt").is_file()
    remarks = [line for line in err.splitlines() if "Possible causes" in line]
    assert len(remarks) == 1
    assert remarks[0].startswith("AP was 0.0 in all 3 evaluations so far. Possible causes: too few steps yet, a learn")
    assert "(optimizer.lr=1e-12), objects that are too small at data.shorter_side=64 " in remarks[0]
    assert remarks[0].endswith(f"(run `understudy check {scenes}`).")


def test_the_only_evaluation_of_a_run(tiny, tmp_path, capsys):
    understudy.train(tiny, run=tmp_path / "run", batch_size=8, **{"optimizer.lr": 1e-12, "schedule.epochs": 1})
    assert "AP was 0.0 in the only evaluation. Possible causes" in capsys.readouterr().err


# --- early stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aps", "since"),
    [([0.2], 0), ([0.1, 0.3], 0), ([0.1, 0.3, 0.3, 0.2], 2), ([math.nan, 0.0], 0), ([0.0, math.nan], 1)],
)
def test_evaluations_without_a_higher_ap_are_counted(aps, since):
    assert evaluations_without_gain(aps) == since


@pytest.fixture(scope="module")
def stale(tiny) -> dict:
    """Keys of a run whose AP is 0 in its two evaluations, after which it stops."""
    return {**tiny, "batch_size": 4, "optimizer.lr": 1e-12, "schedule.epochs": 4, "schedule.patience": 1}


@pytest.fixture(scope="module")
def stopped_early(stale, tmp_path_factory):
    return understudy.train(stale, run=tmp_path_factory.mktemp("runs") / "stale")


def test_a_run_stops_when_ap_does_not_rise(stopped_early):
    assert [row["epoch"] for row in read_rows(stopped_early / "metrics.csv")] == ["1", "2"]
    stop = {"epoch": 2, "of": 4, "patience": 1}
    for file in ("result.json", "environment.json"):
        assert json.loads((stopped_early / file).read_text())["stopped_early"] == stop
    (row,) = summarise([stopped_early], measure_speed=False).rows
    assert row.runs[0].stopped_after == 2


@pytest.mark.parametrize("during", ["step", "evaluation", "result"])
def test_a_run_that_is_interrupted_stops_at_the_same_epoch(stale, stopped_early, during, tmp_path, capsys):
    if during == "result":  # killed after its last evaluation
        shutil.copytree(stopped_early, tmp_path / "run")
        (tmp_path / "run" / "result.json").unlink()
    else:
        with at_step(3 if during == "step" else 4, ctrl_c, during), pytest.raises(KeyboardInterrupt):
            understudy.train(stale, run=tmp_path / "run")
    assert_same(understudy.resume(tmp_path / "run"), stopped_early)
    assert "stopped early after epoch 2 of 4: AP has not risen in 1 evaluations" in capsys.readouterr().err


def test_early_stops_are_named_beside_a_run_that_did_not_stop(stopped_early, tmp_path):
    table = summarise([stopped_early, make_run(tmp_path / "other", 0.3)], measure_speed=False)
    assert any("stopped early (schedule.patience=1), after epoch 2 of 4." in note for note in table.notes)
    assert any("trained epochs (12 and 2)" in note for note in table.notes)
