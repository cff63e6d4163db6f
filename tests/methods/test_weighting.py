"""Weights that grow over the first steps."""

import torch

from understudy.methods.weighting import TermWeight, weighted_sum


def test_ramps_grow_linearly_and_stay():
    weight = TermWeight(0.5, 10)
    assert [weight.at(step) for step in (0, 5, 10, 1000)] == [0, 0.25, 0.5, 0.5]
    assert TermWeight(0.5).at(0) == 0.5
    terms = {"classification": torch.tensor(1.0), "frs_feature": torch.tensor(4.0)}
    assert weighted_sum(terms, {"frs_feature": weight}, 5).item() == 2.0
