"""NonLocal, whose block and norm are written out once more."""

import math

import predictions
import pytest
import torch
from pairs import home, run
from predictions import spec, waves
from references import waved
from torch import nn

from understudy.methods import METHODS
from understudy.methods.nonlocal_ import NonLocalBlock


def test_a_block_begins_as_the_identity_and_pools_keys_and_values():
    torch.manual_seed(0)
    features = torch.randn(2, 8, 12, 20)
    for level, (inner, pooling) in enumerate([(2, 8), (2, 4), (4, 2), (4, 2), (4, 2)]):
        block = NonLocalBlock(8, level)
        assert block.query.out_channels == inner
        assert torch.equal(block(features), features)
        nn.init.normal_(block.norm.weight)
        nn.init.normal_(block.norm.bias)
        pool = nn.MaxPool2d(pooling)  # incomplete windows at the borders are left out
        q, k, v = (
            block.query(features).flatten(2),
            pool(block.key(features)).flatten(2),
            pool(block.value(features)).flatten(2),
        )
        gathered = torch.einsum("ncp,ncq,ndq->ndp", q, k, v) / k.shape[2]
        raw = block.out(gathered.view(2, inner, 12, 20))
        mean, deviation = raw.mean((0, 2, 3)), (raw.var((0, 2, 3), correction=0) + 1e-5).sqrt()
        scaled = (raw - mean[:, None, None]) / deviation[:, None, None]
        expected = features + scaled * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
        torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-5)
    assert NonLocalBlock(2, 0)(features[:, :2, :1, :1]).shape == (2, 2, 1, 1)  # smaller than the pooling


def test_a_batch_of_a_single_cell_is_normalised_by_the_running_statistics():
    torch.manual_seed(0)
    features, block = torch.randn(1, 8, 1, 1), NonLocalBlock(8, 4)
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.running_mean)
    found = block(features)
    assert block.norm.num_batches_tracked == 0
    torch.testing.assert_close(found, block.eval()(features))


@pytest.mark.parametrize("name", ["nonlocal", "fkd"])
def test_norms_are_scaled_to_the_images_of_a_process_of_the_authors(name):
    pair = home(name)
    inputs = pair.inputs()
    two, twice = inputs.terms(pair.made()), inputs.of_images([0, 1, 0, 1])
    assert inputs.terms(pair.made(images_per_process=None)) == two
    for images, factor in ((2, 1), (3, math.sqrt(1.5)), (None, math.sqrt(2))):
        for term, value in twice.terms(pair.made(images_per_process=images)).items():
            assert value.item() == pytest.approx(factor * two[term].item(), rel=1e-5), (images, term)


def test_the_value_of_another_projects_code():
    """The value is that of open-mmlab/mmrazor @ 90c7af1, FBKDLoss, with the NonLocal2d of open-mmlab/mmcv @ a8073c74b.

    That block pools by 2. (mmrazor's own subclass pools by 2 and once more.)
    """
    student, teacher = (spec(name, family="retinanet", channels=(8, 8)) for name in ("little", "big"))
    method = waved(METHODS["nonlocal"](student, teacher))
    for block in (*method.relation.student, *method.relation.teacher):
        block.pooling = 2
    terms = method(waves(student, 0.1), waves(teacher, 0.9), predictions.truth())
    assert terms["nonlocal_relation"].item() == pytest.approx(119.8989036657, rel=1e-6)


def test_it_is_the_norm_over_the_batch_and_trains_both_sides():
    method, own, theirs, terms = run("nonlocal")
    expected = 0.0
    for level, adapter in enumerate(method.relation.adapters):
        difference = adapter(own.features[level]) - theirs.features[level]  # the blocks begin as the identity
        expected += math.sqrt(sum(value * value for value in difference.flatten().tolist()))
    assert terms["nonlocal_relation"].item() == pytest.approx(expected, rel=1e-5)
    terms["nonlocal_relation"].backward()
    assert all(block.norm.weight.grad.abs().sum() > 0 for block in method.relation.teacher)
    assert all(features.grad is None for features in theirs.features)
