"""What holds for detectors of every kind: frozen batch normalisation, and the layout of a record."""

import pytest
import torch

from understudy.detectors import build_detector
from understudy.outputs import flatten_levels, unflatten_levels


def test_unflatten_undoes_flatten_and_is_a_view():
    levels = [(4, 6), (2, 3), (1, 2)]
    flat = torch.arange(2 * (24 + 6 + 2) * 3 * 5.0).reshape(2, -1, 5)
    parts = unflatten_levels(flat, levels, 3)
    assert all(part.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for part in parts)
    assert torch.equal(flatten_levels(parts), flat)
    with pytest.raises(ValueError, match="expected 64 anchors"):
        unflatten_levels(flat, levels, 2)


def test_frozen_stages_keep_weights_and_statistics():
    detector = build_detector("fcos_mobilenet_v2", 2, neck_channels=32, width_mult=0.35, frozen_stages=1).train()
    body = detector.network.backbone.body
    assert not any(parameter.requires_grad for parameter in body["3"].parameters())
    assert all(parameter.requires_grad for parameter in body["4"].parameters())
    before = body["0"][1].running_mean.clone()
    detector(torch.rand(2, 3, 64, 64))
    assert torch.equal(body["0"][1].running_mean, before)
    assert body["4"].training
