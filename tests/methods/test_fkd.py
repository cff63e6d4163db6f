"""FKD's terms against slow loops."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from pairs import BIG, LITTLE, OF_FAMILY, record, run, truth
from predictions import spec, waves
from references import softmax, waved

from understudy.methods import METHODS
from understudy.methods.loading import build_methods

TWO_STAGE = {"family": "faster_rcnn", **OF_FAMILY["faster_rcnn"]}


@pytest.mark.parametrize(("spec", "temperature", "by_channel"), [({}, 0.1, True), (TWO_STAGE, 0.5, False)])
def test_feature_under_the_attention_of_both(spec, temperature, by_channel):
    student, teacher = replace(LITTLE, channels=BIG.channels, **spec), replace(BIG, **spec)
    method, own, theirs, terms = run("fkd", student, teacher)
    assert (method.temperature, method.weigh_channels) == (temperature, by_channel)
    expected = 0.0
    for adapter, mine, other in zip(method.adapters["feature"], own.features, theirs.features, strict=True):
        adapted, total = adapter(mine), 0.0
        count, channels, height, width = mine.shape
        for n in range(count):
            maps = [features[n].detach().double() for features in (mine, other)]
            cells = [
                softmax([m[:, y, x].abs().mean().item() for y in range(height) for x in range(width)], temperature)
                for m in maps
            ]
            depth = [softmax([m[c].abs().mean().item() for c in range(channels)], temperature) for m in maps]
            for c, y, x in itertools.product(range(channels), range(height), range(width)):
                weight = height * width * (cells[0][y * width + x] + cells[1][y * width + x]) / 2
                weight *= channels * (depth[0][c] + depth[1][c]) / 2 if by_channel else 1
                total += weight * (other[n, c, y, x] - adapted[n, c, y, x]).item() ** 2
        expected += math.sqrt(total)
    assert terms["fkd_feature"].item() == pytest.approx(expected, rel=1e-4)


def test_channel_and_spatial():
    method, own, theirs, terms = run("fkd")
    channel = spatial = 0.0
    for level, (mine, other) in enumerate(zip(own.features, theirs.features, strict=True)):
        linear, conv = method.adapters["channel"][level], method.adapters["spatial"][level]
        total = 0.0
        for n in range(2):
            mean = torch.stack([mine[n, c].mean() for c in range(mine.shape[1])])
            other_mean = torch.stack([other[n, c].mean() for c in range(other.shape[1])])
            total += (linear.weight[:, :, 0, 0] @ mean + linear.bias - other_mean).square().sum().item()
        channel += math.sqrt(total)
        total = 0.0
        for n, y, x in itertools.product(range(2), range(mine.shape[2]), range(mine.shape[3])):
            value = conv.bias.item()
            for v, u in itertools.product(range(3), range(3)):
                if 0 <= y + v - 1 < mine.shape[2] and 0 <= x + u - 1 < mine.shape[3]:
                    value += (conv.weight[0, 0, v, u] * mine[n, :, y + v - 1, x + u - 1].mean()).item()
            total += (value - other[n, :, y, x].mean().item()) ** 2
        spatial += math.sqrt(total)
    assert terms["fkd_channel"].item() == pytest.approx(channel, rel=1e-4)
    assert terms["fkd_spatial"].item() == pytest.approx(spatial, rel=1e-4)


@pytest.mark.parametrize(("family", "feature"), [(TWO_STAGE, 43.1306271153), ({"family": "retinanet"}, 42.9521917824)])
def test_the_values_of_another_projects_code(family, feature):
    """The values are those of open-mmlab/mmrazor @ 90c7af1, FBKDLoss and FBKDStudentConnector, summed over levels.

    Its loss leaves out the attention to channels; for one stage its mask_l2_loss was given the product of both.
    """
    student, teacher = (spec(name, channels=(8, 8), **family) for name in ("little", "big"))
    method = waved(METHODS["fkd"](student, teacher, terms=("feature", "channel", "spatial")))
    terms = method(waves(student, 0.1), waves(teacher, 0.9), truth(student))
    expected = {"fkd_feature": feature, "fkd_channel": 5.1508675686, "fkd_spatial": 10.1094034030}
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-6)


def test_relation_is_nonlocal():
    options = {"fkd": {"feature_weight": 0, "channel_weight": 0, "spatial_weight": 0}, "nonlocal": {}}
    (fkd, alone), weights = build_methods(options, LITTLE, BIG)
    assert weights["fkd_relation"] == weights["nonlocal_relation"]
    assert [key for key, _ in fkd.named_parameters()] == [key for key, _ in alone.named_parameters()]
    alone.load_state_dict(fkd.state_dict())
    records = record(LITTLE, 1), record(BIG, 2), truth(LITTLE)
    assert list(fkd(*records)) == ["fkd_relation"]
    assert torch.equal(fkd(*records)["fkd_relation"], alone(*records)["nonlocal_relation"])
