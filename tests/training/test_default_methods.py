"""The default methods of a run, adapted to its pair."""

from dataclasses import replace

import pytest
from pairs import made_up_specs

import understudy
from understudy.config.keys import DEFAULT_METHODS
from understudy.files import read_rows
from understudy.methods.loading import build_methods
from understudy.training.default_methods import default_methods

FULL = DEFAULT_METHODS["frs"]


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_a_pair_of_one_family_has_all_terms(family):
    student, teacher = made_up_specs(family)
    methods = default_methods(student, teacher)
    assert methods == {"frs": FULL}
    _, weights = build_methods(methods, student, teacher, balance=0.6)
    assert {name: weight.share for name, weight in weights.items()} == pytest.approx(
        {"frs_feature": 0.2, "frs_class": 0.2, "frs_box": 0.2}
    )


def test_cells_are_compared_if_anchors_differ():
    student, teacher = made_up_specs("retinanet")[0], made_up_specs("gfl")[1]
    methods = default_methods(student, teacher)
    assert methods["frs"]["scores"] == "cell"
    build_methods(methods, student, teacher, balance=0.6)


def test_terms_that_cannot_be_computed_are_left_out():
    student, teacher = made_up_specs("fcos")
    methods = default_methods(student, replace(teacher, num_classes=7))
    assert methods["frs"]["class_weight"] == 0.0
    _, weights = build_methods(methods, student, replace(teacher, num_classes=7), balance=0.6)
    assert set(weights) == {"frs_feature"}


def test_published_weights_belong_to_the_published_method():
    assert default_methods(*made_up_specs("fcos"), balanced=False) == {"frs": {}}


def test_a_run_without_methods(tiny, trained, tmp_path):
    run = understudy.distill(
        tiny, teacher=trained, run=tmp_path / "run", **{"schedule.epochs": 1, "methods": DEFAULT_METHODS}
    )
    row = read_rows(run / "losses.csv")[0]
    assert {"frs_feature_weight", "frs_class_weight", "frs_box_weight"} <= row.keys()
    assert "standardise: level" in (run / "config.yaml").read_text()
