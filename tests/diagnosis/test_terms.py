"""Faults planted in methods and weights, and the readings of healthy ones."""

import math
from typing import ClassVar

import pytest
import torch

from understudy import Method
from understudy.balance import Shares
from understudy.diagnosis.terms import (
    Reading,
    capacity_findings,
    frozen_findings,
    share_findings,
    term_findings,
)


class Detached(Method):
    """A term that forgets the student."""

    name = "detached"
    terms = ("feature",)
    weights: ClassVar = {"*": {"feature": 1.0}}
    source = "this test"
    checked = "our reading: a fault"
    reads: ClassVar = {"feature": ("features",)}
    factor: ClassVar = 1.0

    def forward(self, student, teacher, truth, layers=None):
        """Return a number that no weight of the student changes."""
        return {f"{self.name}_feature": self.factor * student.features[0].detach().square().mean()}


class Nothing(Detached):
    """A term of zero."""

    name = "nothing"
    factor: ClassVar = 0.0


class NotANumber(Detached):
    """A term of nan."""

    name = "nan"
    factor: ClassVar = math.nan


def test_a_healthy_pair(probe_of, batch):
    probe = probe_of()
    first = probe.read(batch)
    assert [finding.severity for finding in term_findings(probe, [first])] == ["ok"]
    assert set(first.gradients.norms) == {"frs_feature", "frs_class"}
    assert 0.05 < first.share < 0.9

    losses = probe.train_on(batch, steps=12, seconds=60)
    later = probe.read(batch)
    assert len(losses) == 12 == len(probe.seconds_per_step)
    assert [finding.severity for finding in share_findings(probe, first, later, 12)] == ["ok"]
    assert [finding.severity for finding in capacity_findings(losses, later.share)] == ["ok"]
    assert losses[-1] < losses[0]
    assert [finding.severity for finding in frozen_findings(probe)] == ["ok"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("Detached", "without a gradient with respect to any weight of the student: detached_feature"),
        ("Nothing", "exactly zero on 1 batches: nothing_feature"),
        ("NotANumber", "not finite on the first batches: nan_feature"),
    ],
)
def test_a_term_without_effect(probe_of, batch, method, words):
    probe = probe_of({f"{__name__}:{method}": {}})
    found = list(term_findings(probe, [probe.read(batch)]))
    assert [(finding.severity, finding.what) for finding in found] == [("fatal", words)]


@pytest.mark.parametrize(("factor", "severity"), [(1000, "fatal"), (1, "ok"), (1e-3, "fatal")])
def test_a_weight_a_thousand_times_too_large_or_too_small(probe_of, batch, factor, severity):
    probe = probe_of({"frs": {"feature_weight": 0.001 * factor, "class_weight": 0.02 * factor}})
    reading = probe.read(batch)
    found = list(share_findings(probe, reading, reading, 0))
    assert [finding.severity for finding in found] == [severity]
    if severity == "fatal":
        # With the advised weight the term would be a third of the gradient.
        key, _, value = found[0].remedy.partition(" ")[0].partition("=")
        assert key == "methods.frs_feature_weight"
        gradients = reading.gradients
        scaled = gradients.norms["frs_feature"] * float(value)
        others = gradients.norms["frs_class"] * gradients.weights["frs_class"] + gradients.own
        assert scaled / (scaled + others) == pytest.approx(1 / 3, abs=0.02)


def test_one_term_without_influence(probe_of):
    gradients = Shares(1.0, {"frs_feature": 0.4, "frs_class": 1e-5}, {"frs_feature": 1.0, "frs_class": 1.0}, 0.4)
    reading = Reading({"frs_feature": 1.0, "frs_class": 1.0}, gradients)
    found = next(share_findings(probe_of(), reading, reading, 0))
    assert found.severity == "warning"
    assert found.what == "without influence: frs_class 0.0007% of the gradient"


def test_a_student_that_does_not_learn_one_batch():
    assert next(capacity_findings([2.0] * 20, 0.3)).severity == "warning"
    assert "lower the weights" in next(capacity_findings([2.0] * 20, 0.99)).remedy
    assert next(capacity_findings([2.0, math.nan], 0.3)).severity == "fatal"
    assert next(capacity_findings([2.0, 1.9], 0.3)).severity == "note"
    assert next(capacity_findings([2.0 / (step + 1) for step in range(20)], 0.3)).severity == "ok"


def test_a_teacher_that_is_trained(probe_of):
    probe = probe_of()
    with torch.no_grad():
        next(probe.teacher.parameters()).add_(0.1)
    assert next(frozen_findings(probe)).severity == "fatal"
