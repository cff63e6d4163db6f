"""Runs of a report: read from their folders, and their losses."""

import numpy as np
import pytest
from run_folders import STUDENT, TEACHER, make_run

from understudy.compare.table import summarise
from understudy.errors import UserError
from understudy.report.views import shown_runs, view_run, view_runs


def test_run_folders_are_read_under_the_names_of_the_comparison(tmp_path):
    star = make_run(tmp_path / "star", 0.5, detector=TEACHER)
    plain = [make_run(tmp_path / f"plain-{seed}", 0.2, seed=seed) for seed in (1, 2)]
    (plain[0] / "losses.csv").write_text("epoch,step,lr,total,frs_feature\n0,10,0.1,2.5,\n0,20,0.1,2.0,0.5\n")
    table = summarise([*plain, star, make_run(tmp_path / "frs", 0.3, teacher=star)], measure_speed=False)
    runs = view_runs(table)
    assert [run.name for run in runs] == ["teacher", "plain, seed 1", "plain, seed 2", "frs"]
    assert [run.group for run in runs] == ["teacher", "plain", "plain", "frs"]
    assert [run.role for run in runs] == ["teacher", "plain", "plain", "distilled"]
    assert [run.name for run in shown_runs(table, runs)] == ["teacher", "plain, seed 1", "frs"]
    assert runs[1].config["seed"] == 1
    assert runs[1].loss_terms == ["total", "frs_feature"]
    assert runs[1].result["per_class"] == {"cat": 0.2}
    np.testing.assert_array_equal(runs[1].losses["frs_feature"], [np.nan, 0.5])
    assert runs[2].losses == runs[2].environment == {}


def test_the_best_distilled_row_is_shown_beside_the_plain_run_of_its_seed(tmp_path):
    star = make_run(tmp_path / "star", 0.5, detector=TEACHER)
    plain = [make_run(tmp_path / f"plain-{seed}", 0.2, seed=seed) for seed in (1, 2)]
    taught = {"detector": STUDENT, "teacher": star, "seed": 2}
    worse = make_run(tmp_path / "hint", 0.3, methods={"hint": {}}, **taught)
    better = make_run(tmp_path / "frs", 0.4, methods={"frs": {}}, **taught)
    table = summarise([star, *plain, worse, better], measure_speed=False)
    assert [run.name for run in shown_runs(table, view_runs(table))] == ["teacher", "plain, seed 2", "frs"]
    alone = summarise(plain, measure_speed=False)
    assert [run.name for run in shown_runs(alone, view_runs(alone))] == ["plain, seed 1"]


def test_rows_of_one_name_are_told_apart_by_their_detectors(tmp_path):
    runs = [make_run(tmp_path / "a", 0.2), make_run(tmp_path / "b", 0.3, detector=TEACHER)]
    names = [f"plain, {detector['name']}" for detector in (STUDENT, TEACHER)]
    assert [run.group for run in view_runs(summarise(runs, measure_speed=False))] == names


def test_losses_of_a_distilled_run_raw_and_weighted(run_view):
    losses = {
        "epoch": np.array([0.5, 1.0, 1.5, 2.0]),
        "step": np.arange(4.0),
        "total": np.arange(4.0),
        "classification": np.array([4.0, 2, 2, 1]),
        "frs_feature": np.array([np.nan, 300, 200, 100]),
        "distillation_share": np.array([0.5, np.nan, np.nan, np.nan]),
        "frs_feature_share": np.array([0.5, np.nan, np.nan, np.nan]),
        "frs_feature_weight": np.array([0, 0.01, 0.02, 0.02]),
    }
    run = run_view("frs", "distilled", 0.4, losses=losses)
    assert run.loss_terms == ["total", "classification", "frs_feature"]
    assert [(term.name, term.first, term.last, term.weight) for term in run.terms] == [
        ("classification", 3.0, 1.5, None),
        ("frs_feature", 300.0, 150.0, 0.02),
    ]
    assert [term.weighted for term in run.terms] == [1.5, 3.0]
    del losses["frs_feature_weight"]
    assert run_view("plain", "plain", 0.3, losses=losses).terms == []


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        view_run(tmp_path, name="x", group="x", role="plain")
