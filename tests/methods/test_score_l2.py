"""ScoreL2 against a slow loop over cells."""

import itertools

import pytest
from pairs import run
from predictions import spec, truth, waves
from references import sigmoid, waved
from torch import nn

from understudy.methods import METHODS


def test_cells_are_weighted_by_score_and_the_sum_divided_by_channels():
    method, own, theirs, terms = run("score_l2")
    expected = 0.0
    for level, (mine, other, logits) in enumerate(zip(own.features, theirs.features, theirs.class_logits, strict=True)):
        projected, above, below = method.projectors[level](mine), 0.0, 0.0
        for n, y, x in itertools.product(*map(range, logits.shape[:3])):
            score = max(sigmoid(value) for value in logits[n, y, x].flatten().tolist())
            above += score * (projected[n, :, y, x] - other[n, :, y, x]).square().sum().item()
            below += score
        expected += above / below / other.shape[1]
    assert terms["score_l2_feature"].item() == pytest.approx(expected, rel=1e-5)
    assert [type(layer) for layer in method.projectors[0]] == [nn.Conv2d, nn.ReLU, nn.Conv2d]


def test_the_value_of_ultralytics_code():
    """The value is that of ultralytics 8.4.190, DistillationModel.loss_sl2, summed over the levels."""
    student, teacher = spec("little"), spec("big")
    method = waved(METHODS["score_l2"](student, teacher))
    terms = method(waves(student, 0.1), waves(teacher, 0.9), truth())
    assert terms["score_l2_feature"].item() == pytest.approx(7.1047177678, rel=1e-6)
