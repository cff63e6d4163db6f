"""Relations between cells, against known values, slow loops and their invariants."""

import itertools

import pytest
import torch
from references import wave
from torch import nn

from understudy import functional

FEATURES = (2, 3, 2, 3)
TEACHER, STUDENT = wave(FEATURES, 0.7, 0.1, 1.5), wave(FEATURES, 0.9, 0.4, 1.0)


def test_known_value_of_pairwise():
    value = functional.pairwise_loss(STUDENT, TEACHER)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(0.117311859, abs=1e-6)


def test_large_maps_are_pooled_and_no_others():
    assert functional.pooled(STUDENT, 6) is STUDENT
    assert functional.pooled(STUDENT, 5).shape[-2:] == (1, 2)
    assert torch.equal(functional.pooled(STUDENT, 1), STUDENT.amax((-2, -1), keepdim=True))
    for height, width, most in itertools.product((1, 5, 17, 40), (1, 7, 30), (1, 9, 100)):
        shape = functional.pooled(torch.zeros(1, 1, height, width), most).shape
        assert shape.numel() <= most
    found = functional.pairwise_loss(STUDENT, TEACHER, 5)
    assert torch.equal(found, functional.pairwise_loss(*map(nn.MaxPool2d(2, ceil_mode=True), (STUDENT, TEACHER))))


def test_pairwise_lets_no_gradient_through_the_lengths():
    features = STUDENT.clone().requires_grad_()
    functional.pairwise_loss(features, TEACHER).backward()
    lengths = STUDENT.norm(dim=1, keepdim=True)
    direct = STUDENT.clone().requires_grad_()
    unit, other = (
        (maps / length).flatten(2) for maps, length in ((direct, lengths), (TEACHER, TEACHER.norm(dim=1)[:, None]))
    )
    alike = [torch.einsum("ncp,ncq->npq", maps, maps) for maps in (unit, other)]
    ((alike[0] - alike[1]) ** 2).mean().backward()
    torch.testing.assert_close(features.grad, direct.grad, rtol=1e-6, atol=1e-9)


def test_pairwise_ignores_the_length_of_features():
    lengths = 1 + wave((2, 1, 2, 3), 0.3, 0, 0.5)
    assert functional.pairwise_loss(lengths * TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-12)


def test_non_local_collects_from_all_cells():
    query, key, value = wave((2, 3, 2, 3), 0.7, 0, 1), wave((2, 3, 1, 2), 0.9, 1, 1), wave((2, 3, 1, 2), 0.3, 2, 1)
    found = functional.non_local(query, key, value)
    for n, c, y, x in itertools.product(*map(range, found.shape)):
        terms = [query[n, :, y, x] @ key[n, :, 0, u] * value[n, c, 0, u] for u in range(2)]
        assert found[n, c, y, x].item() == pytest.approx(sum(terms).item() / 2)


def test_maps_of_other_sizes_are_refused():
    for loss in (functional.joint_distance, functional.pairwise_loss):
        with pytest.raises(ValueError, match="differ in"):
            loss(STUDENT, TEACHER[..., :1])
