"""Methods that compare predictions anchor by anchor: no objects, equal detectors, and pairs that are refused."""

import math

import pytest
import torch
from predictions import SEEDS, pair_of, record, spec, truth

from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.loading import build_methods
from understudy.outputs import Truth

EVERY = {
    "rank_mimicking": {"location_weight": 1},
    "pfi": {"feature_weight": 1},
    "soft_labels": {},
    "ld": {},
    "bckd": {},
}


@pytest.mark.parametrize("name", EVERY)
def test_without_objects_terms_are_zeros_that_stay_connected(name):
    student, teacher, own, theirs = pair_of("distributions")
    (method,), _ = build_methods({name: EVERY[name]}, student, teacher)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    terms = method(own, theirs, Truth([empty] * 2, torch.full((2, 120), -1)))
    assert len(terms) == len(method.terms)
    for term in terms.values():
        assert term.requires_grad
        assert term.dtype == torch.float32
        assert term.item() == 0 or name == "pfi"
    sum(terms.values()).backward()
    grads = [level.grad for level in (*own.class_logits, *own.box_raw) if level.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_reaches_the_teacher_and_none_is_left_where_both_are_equal(name):
    student, teacher, own, theirs = pair_of("distributions")
    (method,), _ = build_methods({name: EVERY[name]}, student, teacher)
    sum(method(own, theirs, truth()).values()).backward()
    assert any(level.grad is not None and level.grad.abs().sum() > 0 for level in own.class_logits)
    assert all(level.grad is None for level in (*theirs.features, *theirs.class_logits, *theirs.box_raw))
    own = record(student, SEEDS[1])
    sum(method(own, theirs, truth()).values()).backward()
    for level in (*own.class_logits, *own.box_raw):
        assert level.grad is None or level.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_all_reasons_of_a_refusal_come_at_once(name):
    student = spec("little", "distributions")
    other = spec("big", "distributions", num_anchors=9, objectness=True, strides=(8, 32))
    with pytest.raises(UserError) as failure:
        build_methods({name: EVERY[name]}, student, other)
    for part in ("little", "big", "2 anchors per cell", "9 anchors per cell", "3 classes", "objectness", "(8, 32)"):
        assert part in str(failure.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rank_mimicking", "soft_labels", "ld"])
def test_a_temperature_is_above_zero(name, temperature):
    student, teacher, *_ = pair_of("distributions")
    with pytest.raises(UserError, match=rf"methods.{name}.temperature: expected a (finite )?number above 0, got"):
        METHODS[name](student, teacher, temperature=temperature)
