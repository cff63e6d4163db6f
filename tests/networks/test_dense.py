"""The parts that dense heads share."""

import pytest
import torch
from dense_detectors import every_variant, photos, untrained
from torch import nn

from understudy.networks.dense import tower, usual_groups
from understudy.networks.fcos import MMDetFCOSHead
from understudy.networks.gfl_head import GFLHead
from understudy.outputs import flatten_levels


@pytest.mark.parametrize(("groups", "bias"), [(4, False), (4, True), (None, True)])
def test_a_tower_is_a_stack_of_convolutions(groups, bias):
    torch.manual_seed(0)
    found = tower(8, 2, groups, bias)
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(8, 8, 3, padding=1, bias=bias) for _ in range(2)]
    state = found.state_dict()
    parts = ["0.weight", *["0.bias"] * bias, *["1.weight", "1.bias"] * (groups is not None)]
    assert list(state) == [f"{number}.{part}" for number in range(2) for part in parts]
    for number, convolution in enumerate(convolutions):
        assert torch.equal(state[f"{number}.0.weight"], convolution.weight)
    wanted = maps = torch.rand(1, 8, 5, 5)
    for convolution in convolutions:
        wanted = convolution(wanted)
        wanted = (wanted if groups is None else nn.functional.group_norm(wanted, groups)).relu()
    torch.testing.assert_close(found(maps), wanted)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (128, 32), (96, 24), (24, 6), (12, 3), (4, 1), (2, 1)])
def test_a_group_has_four_channels_or_more(channels, groups):
    assert usual_groups(channels) == groups


@every_variant
def test_scores_begin_at_one_percent(variant):
    with torch.no_grad():
        scores = flatten_levels(untrained(variant).eval()(photos()[1]).class_logits).sigmoid()
    assert scores.median().item() == pytest.approx(0.01, rel=0.1)
    assert 0.005 < scores.min() < scores.max() < 0.02


@pytest.mark.parametrize("head", [MMDetFCOSHead(4, 2, groups=1), GFLHead(4, 2, groups=1)])
def test_a_head_with_scales_needs_one_for_each_level(head):
    features = [torch.rand(1, 4, 2, 2)] * 5
    outputs = head(features)
    assert all(value.shape[:2] == (1, 20) for value in outputs.values())
    (gradient,) = torch.autograd.grad(outputs["bbox_regression"].square().sum(), head.regression_head.scales)
    assert (gradient.abs() > 0).all()
    with pytest.raises(ValueError, match="head expects 5 levels, one for each scale, got 4"):
        head(features[:4])
