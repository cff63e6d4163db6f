"""Softened distributions, and the thresholds of ATSS."""

import pytest
import torch
from predictions import squares
from references import wave
from torchvision.ops import box_iou

from understudy.functional import atss_thresholds, side_divergence, softened_divergence
from understudy.networks.matching import atss


def test_the_divergence_of_sides_has_its_known_value():
    """It is what HikariTJU/LD @ 4287990, knowledge_distillation_kl_div_loss, computes."""
    teacher, student = wave((1, 17), 0.8, 0.0, 2.0), wave((1, 17), 0.5, 0.3, 2.0)
    assert (softened_divergence(student, teacher, 10) / 17).item() == pytest.approx(0.128005989, abs=1e-6)
    four = student.repeat(1, 4), teacher.repeat(1, 4)
    assert side_divergence(*four, 10).item() == pytest.approx(0.128005989, abs=1e-6)
    assert softened_divergence(teacher + 5, teacher, 10).abs().item() < 1e-12


def test_thresholds_are_those_that_atss_matches_by():
    levels = [squares(stride, 8, 64 // stride, 96 // stride).reshape(-1, 4) for stride in (8, 16)]
    flat, box = torch.cat(levels), torch.tensor([[7.0, 11, 71, 60]])
    matched = atss(levels, box) >= 0
    threshold = atss_thresholds(levels, box, torch.ones(1, len(flat), dtype=torch.bool))
    overlaps = box_iou(box, flat)[0]
    assert 0 < matched.sum() < 18
    assert overlaps[matched].min() >= threshold.item() - 1e-6
    centres = (flat[:, :2] + flat[:, 2:]) / 2
    near = (centres - torch.tensor([39.0, 35.5])).norm(dim=1) < 12  # candidates, all inside
    assert overlaps[near & ~matched].max() < threshold.item()
