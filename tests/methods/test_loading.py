"""Methods by name or import path, and built with their weights for a pair of detectors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from pairs import BIG, LITTLE, home, made_up_specs, record, truth

from understudy.errors import UserError
from understudy.methods import METHODS, Method
from understudy.methods.loading import build_methods, method_class, method_options
from understudy.methods.weighting import TermWeight

ONE_ANCHOR = replace(BIG, num_anchors=1, name="anchorless")
NO_NUMBERS = math.nan, math.inf, -math.inf


class Own(Method):
    """A method as a user would write it."""

    name = "own"
    terms = ("mean",)
    weights = {"retinanet": {"mean": 2.0}}
    source = "this test"
    reads = {"mean": ("features",)}

    class Options(Method.Options):
        """Its options."""

        power: float = 1.0
        """Exponent of the features."""

    options: Options

    def forward(self, student, teacher, truth, layers=None):
        return {"own_mean": student.features[0].float().pow(self.options.power).mean()}


class Fussy(Own):
    """One that does not serve every pair."""

    name = "fussy"

    @classmethod
    def misfits(cls, student, teacher, options) -> Mapping[str, Sequence[str]]:
        return {"mean": [f"{teacher.name} is not to its taste"] if teacher.num_anchors == 1 else []}


# --- weights ----------------------------------------------------------------------------------------------------------


def a_number(value: float) -> str:
    return "a number" if math.isfinite(value) else "a finite number"


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_every_weight_of_every_method_is_a_number_from_zero_on(weight):
    for name, method in METHODS.items():
        entries = {name: {f"{term}_weight": weight for term in method.all_terms()}}
        with pytest.raises(UserError) as failure:
            build_methods(entries, home(name).student, home(name).teacher)
        for term in method.all_terms():
            assert f"methods.{name}.{term}_weight: expected {a_number(weight)} of at least 0" in str(failure.value)


def test_default_weights_by_family():
    def weights(name: str, family: str) -> list[float]:
        student = replace(LITTLE, channels=BIG.channels, family=family)
        return [weight.weight for weight in build_methods({name: {}}, student, BIG)[1].values()]

    for family in ("retinanet", "fcos", "gfl"):
        assert weights("fkd", family) == [4.2e-4, 2.4e-2, 2.4e-2, 4.2e-4]
        assert weights("nonlocal", family) == [4.2e-4]
        assert weights("mgd", family) == [2e-5]
    assert weights("fkd", "faster_rcnn") == [7e-5, 4e-3, 4e-3, 7e-5]
    assert weights("mgd", "faster_rcnn") == [5e-7]
    assert weights("pkd", "retinanet") == [10.0]
    assert weights("pkd", "fcos") == [2.0]
    for family in ("faster_rcnn", "gfl", "mydetector"):
        assert weights("pkd", family) == [6.0]
        assert weights("cwd", family) == [10.0]  # the same for every family


def test_a_family_without_default_weights_needs_some_but_not_for_optional_terms():
    student = replace(LITTLE, family="mydetector")
    message = (
        "frs has no default weight of 'feature', 'class' for a student of the family mydetector: set methods.frs.f"
    )
    with pytest.raises(UserError, match=message):
        build_methods({"frs": {}}, student, BIG)
    (method,), _ = build_methods({"frs": {"feature_weight": 1, "class_weight": 1}}, student, BIG)
    assert method.terms == ("feature", "class")


def test_a_pair_that_is_not_served_is_refused_before_a_weight_is_asked_for():
    """LD has weights for GFL alone; for a RetinaNet a weight would not help."""
    with pytest.raises(UserError) as failure:
        build_methods({"ld": {}}, LITTLE, BIG)
    message = str(failure.value)
    assert "ld_location, ld_vlr, ld_class: " in message
    assert "the student little" in message
    assert "the teacher big" in message
    assert "available for the student little and the teacher big: frs, " in message
    assert "location_weight" not in message
    gfl = made_up_specs("gfl")
    with pytest.raises(UserError, match=r"set methods.ld.location_weight"):  # here it helps
        build_methods({"ld": {}}, replace(gfl[0], family="mine"), gfl[1])


# --- terms ------------------------------------------------------------------------------------------------------------


def test_a_term_without_weight_is_neither_computed_nor_needs_anything():
    (method,), weights = build_methods({"frs": {"class_weight": 0}}, LITTLE, ONE_ANCHOR)
    assert weights == {"frs_feature": TermWeight(0.005, 500)}
    assert list(method(record(LITTLE, 1), record(ONE_ANCHOR, 2), truth(LITTLE))) == ["frs_feature"]
    (method,), weights = build_methods({"frs": {"feature_weight": 0}}, LITTLE, BIG)
    assert list(weights) == ["frs_class"]
    assert not list(method.parameters())  # no adapter that would never get a gradient
    assert METHODS["frs"].terms == ("feature", "class")
    with pytest.raises(UserError, match="has no effect: feature_weight, class_weight are all 0"):
        build_methods({"frs": {"feature_weight": 0, "class_weight": 0}}, LITTLE, BIG)


def test_a_method_that_is_not_available_names_those_that_are():
    with pytest.raises(UserError) as failure:
        build_methods({"frs": {}, f"{__name__}:Fussy": {}}, LITTLE, ONE_ANCHOR)
    message = str(failure.value)
    assert "frs_class: the student little has 2 anchors per cell, the teacher anchorless has 1" in message
    assert "methods.frs.scores=cell" in message
    assert "the other terms of frs can be used: methods.frs.class_weight=0" in message
    assert "Fussy_mean: anchorless is not to its taste" in message  # all faults at once
    assert "available for the student little and the teacher anchorless: frs (feature only)" in message
    with pytest.raises(UserError, match="threshold"):
        build_methods({"frs": {"threshold": 7}}, LITTLE, BIG)
    with pytest.raises(UserError, match=r"the teacher distant: no method"):
        build_methods({"frs": {}}, LITTLE, replace(BIG, strides=(1, 2), stage_strides=(1, 2), name="distant"))


def test_two_entries_of_one_name_are_refused():
    elsewhere = f"{METHODS['frs'].__module__}:FRS"
    with pytest.raises(UserError, match=f"frs and {elsewhere} have the same name, 'frs'"):
        build_methods({"frs": {}, elsewhere: {}}, LITTLE, BIG)


# --- options and import paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "values", "message"),
    [
        ("pairwise", "max_cells", (0,), "an integer above 0, got 0"),
        ("fkd", "temperature", (0.0, *NO_NUMBERS), "a number above 0 or null, got "),
        ("cwd", "temperature", (-1.0,), "a number above 0, got -1.0"),
        ("pkd", "levels", (0,), "an integer above 0 or null, got 0"),
        ("mgd", "levels", (0,), "an integer above 0 or null, got 0"),
        ("mgd", "hidden", (1.0, -0.1, *NO_NUMBERS), "a number of at least 0 and below 1 or null, got "),
        ("fine_grained", "iou_share", (1.0, -0.1, *NO_NUMBERS), "a number of at least 0 and below 1, got "),
        ("fgd", "temperature", (0.0, *NO_NUMBERS), "a number above 0 or null, got "),
    ],
)
def test_options_out_of_range_are_refused(name, option, values, message):
    for value in values:
        with pytest.raises(UserError) as failure:
            METHODS[name](BIG, BIG, **{option: value})
        wanted = message.replace("a number", a_number(value))
        assert f"methods.{name}.{option}: expected {wanted}" in str(failure.value)


def test_a_method_of_a_user_by_its_import_path():
    path = f"{__name__}:Own"
    assert method_class(path) is Own
    assert set(method_options(path).model_fields) == {"mean_weight", "mean_share", "share", "ramp_steps", "power"}
    (method,), weights = build_methods({path: {"power": 2}}, LITTLE, BIG)
    assert method.options.power == 2.0
    assert weights == {"own_mean": TermWeight(2.0, 0)}
    with pytest.raises(UserError, match=rf"methods.{path}.power: expected a number, got much"):
        build_methods({path: {"power": "much"}}, LITTLE, BIG)
