"""The boxes on which two detectors disagree, and the losses in them, against loops."""

import itertools

import pytest
import torch
from predictions import entropy
from references import iou, sigmoid, wave
from torch import Tensor

from understudy.functional import (
    distance_relation_loss,
    general_instances,
    pooled_regions,
    region_loss,
    response_box_loss,
    response_class_loss,
)


def test_general_instances_against_a_greedy_loop():
    generator = torch.Generator().manual_seed(3)
    corners = 50 * torch.rand(60, 2, generator=generator)
    pair = [torch.cat([corners, corners + 4 + 30 * torch.rand(60, 2, generator=generator)], dim=1) for _ in range(2)]
    own, theirs = torch.rand(60, generator=generator), torch.rand(60, generator=generator)
    found = general_instances(own, theirs, *pair, (64, 70), count=5)
    ranked = []
    for place in range(60):
        left, top, right, bottom = pair[int(theirs[place] > own[place])][place].tolist()
        box = [min(left, 70), min(top, 64), min(right, 70), min(bottom, 64)]
        if box[2] - box[0] > 10 and box[3] - box[1] > 10:
            ranked.append((abs(theirs[place] - own[place]).item(), box))
    kept = []
    for _, box in sorted(ranked, reverse=True):
        if all(iou(box, better) <= 0.3 for better in kept):
            kept.append(box)
    torch.testing.assert_close(found, torch.tensor(kept[:5]))
    assert len(general_instances(own, theirs, pair[0] / 20, pair[1] / 20, (64, 70))) == 0  # all are too small


def test_both_sides_of_a_general_instance_are_longer_than_ten_pixels():
    boxes = torch.tensor([[0.0, 0, 10, 20], [20, 20, 30.5, 31]])
    found = general_instances(torch.ones(2), torch.zeros(2), boxes, boxes, (64, 64))
    assert torch.equal(found, boxes[1:])  # as in daixinghome/Distill_GID_detectron2 @ 9118c54, find_top_rpn_proposals


def slow_region(feature: Tensor, box: list[float], stride: int) -> Tensor:
    """RoIAlign of one box, two samples a side of each of 10 x 10 cells."""
    left, top, right, bottom = (value / stride - 0.5 for value in box)
    height, width = feature.shape[1:]

    def at(y: float, x: float) -> Tensor:
        if not (-1 <= y <= height and -1 <= x <= width):
            return torch.zeros(len(feature))
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        row, column = int(y), int(x)
        below, beside = min(row + 1, height - 1), min(column + 1, width - 1)
        upper = feature[:, row, column] * (1 - x + column) + feature[:, row, beside] * (x - column)
        lower = feature[:, below, column] * (1 - x + column) + feature[:, below, beside] * (x - column)
        return upper * (1 - y + row) + lower * (y - row)

    out = torch.zeros(len(feature), 10, 10)
    for i, j, a, b in itertools.product(range(10), range(10), (0.25, 0.75), (0.25, 0.75)):
        out[:, i, j] += at(top + (i + a) * (bottom - top) / 10, left + (j + b) * (right - left) / 10) / 4
    return out


def test_pooled_regions_against_a_loop_each_from_the_level_of_its_size():
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(2, 3, size, size, generator=generator) for size in (32, 16, 8)]
    some = torch.tensor([[10.0, 20, 60, 90], [3, 5, 250, 240]]), torch.tensor([[0.0, 0, 130, 120]])
    found = pooled_regions(features, some, (8, 16, 32))
    expected = [  # 112 to 224 pixels are on stride 8, the next octave on stride 16
        slow_region(features[0][0], some[0][0].tolist(), 8),
        slow_region(features[0][1], some[1][0].tolist(), 8),
        slow_region(features[1][0], some[0][1].tolist(), 16),
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_pooled_regions_of_no_boxes_stay_connected():
    features = [torch.rand(1, 3, 8, 8, requires_grad=True)]
    none = pooled_regions(features, [torch.zeros(0, 4)], (8,))
    assert none.shape == (0, 3, 10, 10)
    (region_loss(none, none.detach()) + distance_relation_loss(none.flatten(1), none.flatten(1))).backward()
    assert not features[0].grad.any()


def test_distance_relation_has_its_known_value():
    teacher, student = wave((3, 4), 0.7, 0.1, 1.5), wave((3, 4), 0.9, 0.4, 1.0)
    assert distance_relation_loss(student, teacher).item() == pytest.approx(0.006309568, abs=1e-6)
    # Distances relative to their mean do not know the scale, and need three boxes.
    assert distance_relation_loss(7 * student, teacher).item() == pytest.approx(0.006309568, abs=1e-6)
    assert distance_relation_loss(student[:2], teacher[:2]).item() == 0


def test_a_distance_of_zero_counts_in_the_mean_distance():
    """The value is that of daixinghome/Distill_GID_detectron2 @ 9118c54, loss_RkdDistance."""
    student, teacher = (wave((5, 6), rate, start, 1.0)[[0, 0, 1, 2, 3]] for rate, start in ((0.9, 0.4), (0.7, 0.1)))
    assert distance_relation_loss(student, teacher).item() == pytest.approx(0.34518626, rel=1e-5)


def test_distance_relation_of_boxes_that_are_all_the_same_is_finite():
    student = torch.ones(4, 5, requires_grad=True)
    distance_relation_loss(student, torch.rand(4, 5)).backward()
    assert student.grad.isfinite().all()


def test_region_and_response_losses_against_loops():
    student, teacher = wave((2, 3, 2, 2), 0.9, 0.4, 1.0), wave((2, 3, 2, 2), 0.7, 0.1, 1.5)
    squares = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert region_loss(student, teacher).item() == pytest.approx(squares / 8)
    student, teacher = student.flatten(1), teacher.flatten(1)
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    cross = sum(entropy(own, sigmoid(theirs)) for own, theirs in pairs)
    assert response_class_loss(student, teacher).item() == pytest.approx(cross / 2)
    for beta in (0.1, 0.5):
        gaps = [abs(a - b) for a, b in pairs]
        smooth = sum(gap**2 / (2 * beta) if gap < beta else gap - beta / 2 for gap in gaps)
        assert response_box_loss(student, teacher, beta).item() == pytest.approx(smooth / 2)
    close = response_box_loss(torch.tensor([[0.05, 0.2]]), torch.zeros(1, 2))
    assert close.item() == pytest.approx(0.05**2 / 0.2 + 0.2 - 0.05)
    assert response_box_loss(student[:0], teacher[:0]).item() == 0
