"""MGD against its steps written out, and the levels that MGD, PKD and FGD compare."""

from dataclasses import replace

import predictions
import pytest
import torch
from pairs import BIG, LITTLE, OF_FAMILY, record, run, truth
from predictions import spec, waves
from references import wave, waved

from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.loading import build_methods

TWO_STAGE = {"family": "faster_rcnn", **OF_FAMILY["faster_rcnn"]}


def test_the_teachers_features_are_generated_from_the_shown_cells():
    method, own, theirs, terms = run("mgd")
    torch.manual_seed(1)
    expected = 0.0
    for level, (mine, other) in enumerate(zip(own.features, theirs.features, strict=True)):
        shown = torch.rand(2, 1, *mine.shape[2:])
        first, second = method.generators[level][0], method.generators[level][2]
        adapted = method.adapters[level](mine)
        masked = torch.stack([torch.where(shown[n] < 0.65, torch.zeros(()), adapted[n]) for n in range(2)])
        generated = second(first(masked).clamp(min=0))
        expected += sum(((generated - other) ** 2).flatten().tolist()) / 2
    assert terms["mgd_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_the_values_of_the_authors_code(monkeypatch):
    """The value is that of yzd-v/MGD @ 2c9da0b, FeatureLoss, with weight 1, summed over levels.

    It hides cells above 1 - 0.65; so its random numbers were one minus these.
    """
    student, teacher = spec("little", family="retinanet"), spec("big", family="retinanet", channels=(6, 6))
    method = waved(METHODS["mgd"](student, teacher))
    monkeypatch.setattr("torch.rand", lambda *shape, **_: wave(shape, 1.1, 0.2, 0.5) + 0.5)
    terms = method(waves(student, 0.1), waves(teacher, 0.9), predictions.truth())
    assert terms["mgd_feature"].item() == pytest.approx(31195.1260659394, rel=1e-6)


def test_the_hidden_share_depends_on_the_family_and_levels_can_be_fewer():
    assert run("mgd")[0].hidden == 0.65
    assert run("mgd", replace(LITTLE, **TWO_STAGE), replace(BIG, **TWO_STAGE))[0].hidden == 0.45
    assert run("mgd", hidden=0.2)[0].hidden == 0.2
    method, *_, terms = run("mgd", levels=1)
    assert len(method.generators) == 1
    assert 0 < terms["mgd_feature"] < run("mgd")[3]["mgd_feature"]


# --- levels of objects: for MGD, PKD and FGD --------------------------------------------------------------------------

COMMON = {
    "one-stage": ((8, 16, 32, 64, 128), {"mgd": 5, "pkd": 4, "fgd": 5}),
    "two-stage": ((4, 8, 16, 32, 64), {"mgd": 4, "pkd": 4, "fgd": 4}),
    "mixed": ((8, 16, 32, 64), {"mgd": 3, "pkd": 3, "fgd": 3}),
}


@pytest.mark.parametrize("name", ["mgd", "pkd", "fgd"])
@pytest.mark.parametrize("kind", COMMON)
def test_a_level_that_only_a_first_stage_reads_is_not_compared(name, kind):
    """Unless an option names it; whichever of the two is the two-stage detector."""
    strides, expected = COMMON[kind]
    one_stage = replace(BIG, channels=(8,) * len(strides), strides=strides)
    two_stage = replace(one_stage, **TWO_STAGE)
    families = {"one-stage": [(one_stage,) * 2], "two-stage": [(two_stage,) * 2]}
    for student, teacher in families.get(kind, [(one_stage, two_stage), (two_stage, one_stage)]):
        own, theirs = (
            replace(record(LITTLE, 1), features=[torch.randn(2, 8, 4, 4).requires_grad_() for _ in strides])
            for _ in range(2)
        )
        for options in ({}, {"levels": 1}, {"levels": len(strides)}) if name != "fgd" else ({},):
            method = METHODS[name](student, teacher, **options)
            sum(method(own, theirs, truth(LITTLE)).values()).backward()
            reached = [level.grad is not None for level in own.features]
            assert reached == [place < options.get("levels", expected[name]) for place in range(len(strides))]
            for level in own.features:
                level.grad = None


@pytest.mark.parametrize("name", ["mgd", "pkd", "fgd"])
def test_a_pair_that_shares_only_the_level_of_a_first_stage_is_refused(name):
    student, teacher = (replace(BIG, strides=(64,), channels=(8,), name=each) for each in ("little", "big"))
    method, weights = METHODS[name], {f"{term}_weight": 1.0 for term in METHODS[name].terms}
    method(student, teacher)
    two_stage = {"two_stage": True, "family": "faster_rcnn"}
    for both in (
        (replace(student, **two_stage), teacher),
        (student, replace(teacher, **two_stage)),
        (replace(student, **two_stage), replace(teacher, **two_stage)),
    ):
        for build in (method, lambda *specs: build_methods({name: weights}, *specs)):
            with pytest.raises(UserError, match=r"the student little and the teacher big .*\(64,\) in common"):
                build(*both)
        if name != "fgd":
            method(*both, levels=1)
