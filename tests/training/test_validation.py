"""Evaluations during a run: metrics.csv by epoch, and the result of the best one."""

import json

import pytest

import understudy
from understudy.files import read_rows


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
