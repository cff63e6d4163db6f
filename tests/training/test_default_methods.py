"""The default methods of a run, adapted to its pair."""

from dataclasses import replace

import pytest
from pairs import made_up_specs

import understudy
from understudy.config.methods import DEFAULT_METHODS
from understudy.files import read_rows
from understudy.methods.loading import build_methods
from understudy.training.default_methods import default_methods


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_a_pair_of_one_family_has_all_terms(family):
    student, teacher = made_up_specs(family)
    methods = default_methods(student, teacher, 0.6)
    assert methods == DEFAULT_METHODS | {"pkd": {"adapt": True, "share": 0.15}}
    _, weights = build_methods(methods, student, teacher, balance=0.6)
    assert {name: weight.share for name, weight in weights.items()} == pytest.approx(
        dict.fromkeys(["pkd_feature", "frs_feature", "frs_class", "frs_box"], 0.15)
    )


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
