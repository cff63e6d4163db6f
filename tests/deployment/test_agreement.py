"""What counts as the same detection, and what as a tie."""

import torch
from exported_files import facts

from understudy.deployment.agreement import Agreement


def found(*rows: tuple[float, float, int]) -> dict[str, torch.Tensor]:
    """Detections by left side, score and label."""
    boxes = torch.tensor([[left, 0.0, left + 10, 10.0] for left, _, _ in rows]).view(-1, 4)
    return {
        "boxes": boxes,
        "scores": torch.tensor([score for _, score, _ in rows]),
        "labels": torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    }


def compared(expected, other, **limits) -> Agreement:
    agreement = Agreement()
    agreement.add(expected, other, facts(**limits))
    return agreement


def test_small_differences_are_the_same_and_are_measured():
    agreement = compared(found((0, 0.9, 1), (20, 0.5, 0)), found((20.02, 0.50005, 0), (0, 0.9, 1)))
    assert (agreement.detections, agreement.same, agreement.ties, agreement.others) == (2, 2, 0, 0)
    assert 0.019 < agreement.pixels < 0.021
    assert 4e-5 < agreement.score < 6e-5
    assert agreement.holds


def test_another_label_box_or_score_is_not():
    for other in ((0, 0.9, 2), (1, 0.9, 1), (0, 0.8, 1)):
        agreement = compared(found((0, 0.9, 1)), found(other))
        assert agreement.same == 0, other
        assert agreement.holds == (other[0] == 1), other  # another box of the same class and score: a tie
    assert "2 differ otherwise" in str(compared(found((0, 0.9, 1)), found((0, 0.8, 1))))


def test_one_that_is_missing():
    assert not compared(found((0, 0.9, 1), (20, 0.5, 0)), found((0, 0.9, 1))).holds
    assert compared(found((0, 0.9, 1), (20, 0.05005, 0)), found((0, 0.9, 1))).ties == 1  # at the threshold
    full = compared(found((0, 0.9, 1), (20, 0.5, 0)), found((0, 0.9, 1), (50, 0.49995, 2)), detections=2)
    assert (full.ties, full.others) == (2, 0)  # which of the two is the last is decided by rounding


def test_nothing_to_compare_is_said():
    assert str(compared(found(), found())) == "no detections in 1 image"
    assert not compared(found(), found((0, 0.9, 1))).holds
