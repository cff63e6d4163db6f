"""Whether a run had converged."""

import pytest

from understudy.compare.convergence import Course, has_converged, still_rises


def test_the_last_fifth_is_compared_with_all_before():
    course = Course.of([(2, 0.1), (4, 0.3), (6, 0.2), (8, 0.31), (10, 0.32)])
    assert course is not None
    assert (course.before, course.best) == (0.3, 0.32)
    assert course.rise == pytest.approx(0.02)
    fallen = Course.of([(4, 0.3), (8, 0.25), (10, 0.2)])
    assert fallen is not None
    assert fallen.rise == 0


def test_without_evaluations_in_both_parts_nothing_is_known():
    assert Course.of([]) is None
    assert Course.of([(10, 0.3)]) is None


@pytest.mark.parametrize(
    ("rise", "best", "converged", "rises"),
    [
        (0.004, 0.45, True, False),
        (0.006, 0.45, False, False),
        (0.01, 0.45, False, True),
        (0.004, 0.03, False, False),
        (0.0005, 0.03, True, False),
        (0.0, 0.0, False, False),
    ],
)
def test_small_in_ap_and_relative_to_it(rise, best, converged, rises):
    assert (has_converged(rise, best), still_rises(rise, best)) == (converged, rises)
