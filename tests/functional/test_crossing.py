"""Aligned maps and centre-ness."""

import math
from dataclasses import replace

import pytest
import torch
from references import wave
from torch import Tensor

from understudy.functional import align_scale, total_centerness, true_centerness
from understudy.outputs import Truth


def test_an_aligned_map_has_its_known_distance_from_the_teachers():
    own, theirs = wave((2, 3, 2, 3), 0.9, 0.4, 1.0), wave((2, 3, 2, 3), 0.7, 0.1, 1.5)
    assert (own - theirs).square().mean().item() == pytest.approx(1.495001047, abs=1e-6)
    # jbwang1997/CrossKD @ 87e156a, align_scale
    assert (align_scale(own, theirs) - theirs).square().mean().item() == pytest.approx(1.687453246856, abs=1e-9)


def test_an_aligned_map_has_the_teachers_statistics_and_the_students_pattern():
    own, theirs = torch.randn(2, 3, 4, 5).double(), 3 * torch.randn(2, 3, 4, 5).double() + 1
    aligned = align_scale(own, theirs)
    for statistic in (Tensor.mean, Tensor.std):
        torch.testing.assert_close(statistic(aligned, (0, 2, 3)), statistic(theirs, (0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(align_scale(5 * own - 2, theirs), aligned, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"student \(2, 3, 4, 5\), teacher \(2, 2, 4, 5\)"):
        align_scale(own, theirs[:, :2])


def test_a_map_of_one_cell_or_without_spread_becomes_the_teachers_mean():
    for own in (torch.randn(1, 3, 1, 1), torch.ones(2, 3, 2, 2)):
        own.requires_grad_()
        theirs = torch.randn(own.shape)
        aligned = align_scale(own, theirs)
        torch.testing.assert_close(aligned, theirs.mean((0, 2, 3), keepdim=True).expand_as(aligned))
        aligned.square().sum().backward()
        assert own.grad.isfinite().all()


def test_centerness_is_one_in_the_middle_and_zero_at_the_border_or_outside():
    box = torch.tensor([[0.0, 0, 8, 4]]).expand(4, 4)
    points = torch.tensor([[4.0, 2], [2, 2], [8, 2], [20, 2]])
    found = true_centerness(torch.cat([points - 3, points + 3], dim=1), box)
    torch.testing.assert_close(found, torch.tensor([1, math.sqrt(2 / 6), 0, 0]))


def test_the_sum_of_centerness_is_that_of_the_anchors_with_an_object():
    anchors = [torch.tensor([[[[0.0, 0, 8, 8]], [[8, 0, 16, 8]]]]), torch.tensor([[[[0.0, 0, 16, 16]]]])]
    targets = [{"boxes": torch.tensor([[0.0, 0, 8, 8], [6, 0, 18, 16]])}, {"boxes": torch.zeros(0, 4)}]
    truth = Truth(targets, torch.tensor([[0, 1, -2], [-1, -1, -1]]))
    expected = 1 + math.sqrt(6 / 6 * 4 / 12)
    assert total_centerness(anchors, truth).item() == pytest.approx(expected)
    assert total_centerness(anchors, replace(truth, gt_index=torch.full((2, 3), -1))).item() == 0
