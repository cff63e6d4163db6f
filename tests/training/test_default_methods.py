"""The default methods of a run, adapted to its pair."""

from dataclasses import replace

import pytest
from pairs import made_up_specs
from training_runs import assert_same, at_step, crash

import understudy
from understudy.config.methods import DEFAULT_METHODS
from understudy.files import read_rows
from understudy.methods.loading import build_methods, resolve_options
from understudy.training.default_methods import are_default, default_methods


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl"])
def test_a_pair_of_one_family_has_all_terms(family):
    student, teacher = made_up_specs(family)
    methods = default_methods(student, teacher, 0.6)
    assert methods == DEFAULT_METHODS | {"pkd": {"adapt": True, "share": 0.15}}
    _, weights = build_methods(methods, student, teacher, balance=0.6)
    assert {name: weight.share for name, weight in weights.items()} == pytest.approx(
        dict.fromkeys(["pkd_feature", "frs_feature", "frs_class", "frs_box"], 0.15)
    )


def test_a_two_stage_pair_has_features_and_the_second_stage():
    student, teacher = made_up_specs("faster_rcnn")
    methods = default_methods(student, teacher, 0.6)
    _, weights = build_methods(methods, student, teacher, balance=0.6)
    assert {name: weight.share for name, weight in weights.items()} == pytest.approx(
        dict.fromkeys(["pkd_feature", "frs_feature", "second_stage_class", "second_stage_box"], 0.15)
    )
    assert are_default(resolve_options(methods, student, 0.6), 0.6)
    elsewhere = replace(student, strides=(4, 8))  # no level is the same
    assert default_methods(elsewhere, teacher, 0.6) == {"second_stage": {}}


def test_cells_are_compared_if_anchors_differ():
    student, teacher = made_up_specs("retinanet")[0], made_up_specs("gfl")[1]
    methods = default_methods(student, teacher, 0.6)
    assert methods["frs"]["scores"] == "cell"
    build_methods(methods, student, teacher, balance=0.6)


def test_terms_that_cannot_be_computed_are_left_out():
    student, teacher = made_up_specs("fcos")
    teacher = replace(teacher, num_classes=7)
    methods = default_methods(student, teacher, 0.6)
    _, weights = build_methods(methods, student, teacher, balance=0.6)
    assert {name: weight.share for name, weight in weights.items()} == {"pkd_feature": 0.3, "frs_feature": 0.3}
    assert default_methods(student, teacher, None) == {"frs": {"scores": "cell", "class_weight": 0.0}}


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl"])
def test_a_one_stage_student_learns_from_the_second_stage_of_its_teacher(family):
    student, teacher = made_up_specs(family)[0], made_up_specs("faster_rcnn")[1]
    methods = default_methods(student, teacher, 0.6)
    assert methods == {"second_stage": {}}
    _, weights = build_methods(methods, student, teacher, balance=0.6)
    assert {name: each.share for name, each in weights.items()} == {"second_stage_class": 0.3, "second_stage_box": 0.3}
    assert are_default(resolve_options(methods, student, 0.6), 0.6)
    queries = replace(student, dense=False, queries=10)  # which has no anchors with an object
    assert "second_stage" not in default_methods(queries, teacher, 0.6)


def test_a_teacher_without_scores_leaves_features():
    student, teacher = made_up_specs("fcos")
    methods = default_methods(student, replace(teacher, dense=False, queries=True), 0.6)
    assert methods == {"pkd": {"adapt": True}}


def test_published_weights_belong_to_the_published_method():
    assert default_methods(*made_up_specs("fcos"), None) == {"frs": {}}


def test_a_run_without_methods(tiny, trained, tmp_path):
    run = understudy.distill(
        tiny, teacher=trained, run=tmp_path / "run", **{"schedule.epochs": 1, "methods": DEFAULT_METHODS}
    )
    row = read_rows(run / "losses.csv")[0]
    assert {"pkd_feature_weight", "frs_feature_weight", "frs_class_weight", "frs_box_weight"} <= row.keys()
    assert "boxes: decoded" in (run / "config.yaml").read_text()


def test_the_features_of_a_two_stage_teacher_are_kept_and_a_resumed_run_is_the_same(tiny, tmp_path, capsys):
    two_stage = {"detector.name": "faster_rcnn_mobilenet_v2", "detector.settings": {"fc_channels": 16}}
    teacher = understudy.train(tiny, run=tmp_path / "teacher", **two_stage, **{"schedule.epochs": 1})
    capsys.readouterr()
    keys = {"teacher": teacher, "teacher_cache": "memory", "methods": DEFAULT_METHODS}
    whole = understudy.distill(tiny, run=tmp_path / "whole", **keys)
    assert "default methods for this pair: {second_stage: {}}" in capsys.readouterr().err
    with at_step(7, crash), pytest.raises(ZeroDivisionError):
        understudy.distill(tiny, run=tmp_path / "part", **keys)
    assert_same(whole, understudy.resume(tmp_path / "part"))
