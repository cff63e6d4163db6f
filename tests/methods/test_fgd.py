"""FGD against slow loops written from its equations."""

import itertools
import math
from dataclasses import replace

import predictions
import pytest
import torch
from pairs import BIG, made_up_specs, record, truth
from references import cells, waved
from torch import Tensor, nn

from understudy.functional import area_weights
from understudy.methods.fgd import FGD


def slow_attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    (images, channels, height, width), size = features.shape, features.abs()
    spatial, channel = torch.zeros(images, height, width), torch.zeros(images, channels)
    for n in range(images):
        exponents = {(y, x): math.exp(size[n, :, y, x].mean().item() / temperature) for y, x in cells(height, width)}
        for (y, x), value in exponents.items():
            spatial[n, y, x] = height * width * value / sum(exponents.values())
        exponents = [math.exp(size[n, c].mean().item() / temperature) for c in range(channels)]
        channel[n] = channels * torch.tensor(exponents) / sum(exponents)
    return spatial, channel


def slow_context(features: Tensor, block: nn.Module) -> Tensor:
    shares = torch.einsum("nchw,c->nhw", features, block.attention.weight[0, :, 0, 0]) + block.attention.bias
    shares = shares.exp() / shares.exp().sum((1, 2), keepdim=True)
    hidden = (features * shares[:, None]).sum((2, 3))
    narrow, norm, _, wide = block.transform
    hidden = hidden @ narrow.weight[:, :, 0, 0].T + narrow.bias
    spread = (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = (hidden - hidden.mean(1, keepdim=True)) / spread * norm.weight.flatten() + norm.bias.flatten()
    return features + (hidden.clamp(min=0) @ wide.weight[:, :, 0, 0].T + wide.bias)[:, :, None, None]


def test_against_loops():
    method = FGD(BIG, BIG)
    assert not list(method.adapters.parameters())  # channels agree
    torch.manual_seed(0)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    student, teacher, whole = record(BIG, 1), record(BIG, 2), truth(BIG)
    expected = dict.fromkeys(FGD.terms, 0.0)
    for level, (own, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
        own, theirs = own.detach(), theirs.detach()
        kinds = area_weights(whole, (own.shape[2], own.shape[3]), student.image_sizes)
        spatial, channel = slow_attention(theirs, 0.5)
        for n, c, (y, x) in itertools.product(range(2), range(8), cells(*own.shape[2:])):
            square = (own[n, c, y, x] - theirs[n, c, y, x]).item() ** 2 * (spatial[n, y, x] * channel[n, c]).item() / 2
            for kind, weight in zip(("foreground", "background"), kinds, strict=True):
                expected[kind] += weight[n, y, x].item() * square
        for one, other in zip(slow_attention(own, 0.5), (spatial, channel), strict=True):
            expected["attention"] += (one - other).abs().sum().item() / 2
        with torch.no_grad():
            both = slow_context(own, method.student_context[level]), slow_context(theirs, method.teacher_context[level])
        expected["relation"] += (both[0] - both[1]).square().sum().item() / 2
    terms = method(student, teacher, whole)
    for kind, value in expected.items():
        assert terms[f"fgd_{kind}"].item() == pytest.approx(value, rel=1e-4), kind


def test_the_values_of_the_authors_code():
    """The values are those of yzd-v/FGD @ c03a6cf, FeatureLoss, one term at a time, summed over the levels."""
    student = predictions.spec("little", family="retinanet")
    teacher = predictions.spec("big", family="retinanet", channels=(6, 6))
    own, theirs = predictions.waves(student, 0.1), predictions.waves(teacher, 0.9)
    terms = waved(FGD(student, teacher))(own, theirs, predictions.truth())
    expected = {
        "fgd_foreground": 12.3299207479,
        "fgd_background": 5.8966307849,
        "fgd_attention": 10.3038471032,
        "fgd_relation": 1448.5574382084,
    }
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-6)


def test_the_temperature_depends_on_the_family_and_the_blocks_begin_as_the_identity():
    made = {family: FGD(*made_up_specs(family)) for family in ("retinanet", "fcos", "faster_rcnn")}
    assert [method.temperature for method in made.values()] == [0.5, 0.8, 0.5]
    assert FGD(*made_up_specs("fcos"), temperature=1.5).temperature == 1.5
    features = torch.rand(2, 8, 3, 4)
    assert torch.equal(made["fcos"].student_context[0](features), features)


def test_boxes_are_stretched_from_the_image_without_its_padding_where_that_is_known():
    method, teacher, student = FGD(BIG, BIG), record(BIG, 2), record(BIG, 1)
    whole = replace(student, image_sizes=((48, 64),) * 2)
    unknown = replace(student, image_sizes=None)
    values = [method(each, teacher, truth(BIG))["fgd_foreground"].item() for each in (student, whole, unknown)]
    assert values[1] == values[2]
    assert values[0] != values[1]


def test_cells_of_objects_are_not_computed_for_terms_that_do_not_need_them(monkeypatch):
    def refused(*_):
        raise AssertionError("area_weights was called")

    monkeypatch.setattr("understudy.methods.fgd.area_weights", refused)
    method = FGD(BIG, BIG, terms=("attention", "relation"))
    assert set(method(record(BIG, 1), record(BIG, 2), truth(BIG))) == {"fgd_attention", "fgd_relation"}
    with pytest.raises(AssertionError, match="was called"):
        FGD(BIG, BIG, terms=("background",))(record(BIG, 1), record(BIG, 2), truth(BIG))
