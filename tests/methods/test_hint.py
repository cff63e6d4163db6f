"""Hint against a slow loop, and adapters that several methods share."""

import itertools
from dataclasses import replace

import pytest
from pairs import BIG, LITTLE, run
from predictions import spec, truth, waves
from references import waved
from torch import nn

from understudy.methods import METHODS


def test_it_is_the_mean_square_of_every_level_summed():
    method, own, theirs, terms = run("hint")
    expected = 0.0
    for adapter, mine, other in zip(method.adapters, own.features, theirs.features, strict=True):
        weight, bias = adapter.weight[:, :, 0, 0], adapter.bias
        total = 0.0
        for n, y, x in itertools.product(*(range(mine.shape[axis]) for axis in (0, 2, 3))):
            total += sum(((weight @ mine[n, :, y, x] + bias - other[n, :, y, x]) ** 2).tolist())
        expected += total / other.numel()
    assert terms["hint_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_the_value_of_another_projects_code():
    """The value is that of open-mmlab/mmrazor @ 90c7af1, L2Loss per element and not normalised, summed over levels."""
    student, teacher = spec("little"), spec("big", channels=(6, 6))
    terms = waved(METHODS["hint"](student, teacher))(waves(student, 0.1), waves(teacher, 0.9), truth())
    assert terms["hint_feature"].item() == pytest.approx(2.0144797166, rel=1e-6)


@pytest.mark.parametrize("name", ["hint", "cwd", "mgd", "fgd"])
def test_adapters_are_built_only_where_channels_differ(name):
    method = run(name, student=replace(LITTLE, channels=(6, 8)))[0]
    assert [type(adapter) for adapter in method.adapters] == [nn.Conv2d, nn.Identity]


@pytest.mark.parametrize("name", ["pairwise", "pkd"])
def test_methods_without_adapters_have_no_parameters(name):
    assert not list(run(name, student=BIG)[0].parameters())
