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
