"""PKD against torch's own correlation, and the levels and channels that it needs."""

from dataclasses import replace

import pytest
import torch
from pairs import BIG, LITTLE, run
from predictions import spec, truth, waves

from understudy.errors import UserError
from understudy.functional import correlation_loss
from understudy.methods.pkd import PKD


def test_it_is_one_minus_the_correlation_of_every_channel():
    _, own, theirs, terms = run("pkd", student=BIG)
    expected = 0.0
    for mine, other in zip(own.features, theirs.features, strict=True):
        n, channels = mine[:, 0].numel(), mine.shape[1]
        correlations = [
            torch.stack([mine[:, c].flatten(), other[:, c].flatten()]).corrcoef()[0, 1] for c in range(channels)
        ]
        expected += (n - 1) / n * (1 - sum(correlations).item() / channels)
    assert terms["pkd_feature"].item() == pytest.approx(expected, rel=1e-4)
    first = run("pkd", student=BIG, levels=1)[3]["pkd_feature"]
    torch.testing.assert_close(first, correlation_loss(own.features[0], theirs.features[0]))


def test_the_value_of_another_projects_code():
    """The value is that of open-mmlab/mmrazor @ 90c7af1, PKDLoss, by the authors of PKD."""
    student, teacher = (spec(name, family="retinanet", channels=(6, 6)) for name in ("little", "big"))
    terms = PKD(student, teacher)(waves(student, 0.1), waves(teacher, 0.9), truth())
    assert terms["pkd_feature"].item() == pytest.approx(0.5921532117, rel=1e-6)


def test_it_needs_equal_channels_of_the_levels_it_compares():
    with pytest.raises(UserError, match=r"little has the channels \(6, 6\), the teacher big has the channels \(8, 8\)"):
        PKD(LITTLE, BIG)
    coarse = replace(LITTLE, channels=(8, 6))
    with pytest.raises(UserError, match=r"pkd\.adapt=true adds a convolution for each level"):
        PKD(coarse, BIG)
    PKD(coarse, BIG, levels=1)


def test_an_adapter_maps_the_channels_where_they_differ():
    method, own, theirs, terms = run("pkd", adapt=True)
    levels = zip(method.adapters, own.features, theirs.features, strict=True)
    expected = sum(correlation_loss(adapter(mine), other) for adapter, mine, other in levels)
    torch.testing.assert_close(terms["pkd_feature"], expected)
    terms["pkd_feature"].backward()
    assert all(adapter.weight.grad.abs().sum() > 0 for adapter in method.adapters)
    assert not list(PKD(BIG, BIG, adapt=True).parameters())
