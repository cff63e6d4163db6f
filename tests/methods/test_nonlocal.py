"""NonLocal, whose block and norm are written out once more."""

import math

import pytest
import torch
from pairs import run
from torch import nn

from understudy.methods.nonlocal_ import NonLocalBlock


def test_a_block_begins_as_the_identity_and_pools_keys_and_values():
    torch.manual_seed(0)
    features = torch.randn(2, 8, 12, 20)
    for level, (inner, pooling) in enumerate([(2, 8), (2, 4), (4, 2), (4, 2), (4, 2)]):
        block = NonLocalBlock(8, level)
        assert block.query.out_channels == inner
        assert torch.equal(block(features), features)
        nn.init.normal_(block.out.weight)
        pool = nn.MaxPool2d(pooling, ceil_mode=True)
        q, k, v = (
            block.query(features).flatten(2),
            pool(block.key(features)).flatten(2),
            pool(block.value(features)).flatten(2),
        )
        gathered = torch.einsum("ncp,ncq,ndq->ndp", q, k, v) / k.shape[2]
        expected = features + block.out(gathered.view(2, inner, 12, 20))
        torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-5)
    assert NonLocalBlock(2, 0)(features[:, :2, :1, :1]).shape == (2, 2, 1, 1)  # smaller than the pooling


def test_it_is_the_norm_over_the_batch_and_trains_both_sides():
    method, own, theirs, terms = run("nonlocal")
    expected = 0.0
    for level, adapter in enumerate(method.relation.adapters):
        difference = adapter(own.features[level]) - theirs.features[level]  # the blocks begin as the identity
        expected += math.sqrt(sum(value * value for value in difference.flatten().tolist()))
    assert terms["nonlocal_relation"].item() == pytest.approx(expected, rel=1e-5)
    terms["nonlocal_relation"].backward()
    assert all(block.out.weight.grad.abs().sum() > 0 for block in method.relation.teacher)
    assert all(features.grad is None for features in theirs.features)
