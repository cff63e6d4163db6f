"""Losses between class scores: values worked out by an independent script."""

import pytest
import torch
from references import wave

from understudy.functional import gap_weighted_loss, log_softmax_of_groups, prediction_guided_loss, rank_loss

STUDENT, TEACHER = wave((2, 3, 2, 3), 0.9, 0.4, 1.0), wave((2, 3, 2, 3), 0.7, 0.1, 1.5)
LOGITS, TARGET = (
    level.permute(0, 2, 3, 1).unsqueeze(3)
    for level in (wave((2, 4, 2, 3), 0.6, -0.3, 2.0), wave((2, 4, 2, 3), 0.5, 0.2, 3.0))
)


@pytest.mark.parametrize(
    ("score", "options", "value"),
    [
        ("logit", {"power": 2}, 113.662019),
        ("logit", {}, 8.198111),
        ("logit", {"power": 1, "normaliser": "norm"}, 3.077635),
        ("sigmoid", {"power": 2}, 0.115093723),
        ("sigmoid", {}, 0.263421793),
        ("sigmoid", {"power": 1, "normaliser": "norm"}, 0.097934384),
    ],
)
def test_prediction_guided_loss(score, options, value):
    """The means with power 1 are also what open-mmlab/mmrazor @ 4a47267d computes; the others are our own."""
    loss = prediction_guided_loss(STUDENT, TEACHER, LOGITS, TARGET, score=score, **options)
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "temperature", "value"), [(False, 1, 0.023863952), (True, 1, 0.654885344), (False, 0.1, 1.838261795)]
)
def test_rank_loss(logits, temperature, value):
    teacher, student = (torch.tensor(scores, dtype=torch.float64) for scores in ((0.9, 0.6, 0.3), (0.5, 0.7, 0.2)))
    if logits:
        teacher, student = teacher.logit(), student.logit()
    objects = torch.zeros(3, dtype=torch.int64)
    loss = rank_loss(student, teacher, objects, [1], temperature)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert rank_loss(teacher + 3, teacher, objects, [1], temperature).abs() < 1e-12
    # A second object and a second image without anchors: half of it twice.
    assert rank_loss(student, teacher, objects, [2, 0], temperature).item() == pytest.approx(loss.item() / 4)


def test_gap_weighted_loss():
    assert gap_weighted_loss(LOGITS, TARGET).sum().item() == pytest.approx(25.468501344, abs=1e-6)


def test_softmax_of_groups():
    values, group = torch.tensor([1.0, 400, -3, 2, 401, 7]), torch.tensor([0, 2, 0, 0, 2, 3])
    found = log_softmax_of_groups(values, group, 5)
    for number in (0, 2, 3):
        torch.testing.assert_close(found[group == number], values[group == number].log_softmax(0))
