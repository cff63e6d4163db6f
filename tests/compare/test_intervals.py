"""Intervals of paired differences, against tables of Student's t and by simulation."""

import math
import random

import pytest

from understudy.compare.intervals import interval, seeds_to_tell, t_quantile

TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 29: 2.0452, 30: 2.0423}


@pytest.mark.parametrize(("freedom", "expected"), TABLE.items())
def test_quantiles_are_those_of_the_printed_table(freedom, expected):
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_intervals_hold_the_truth_in_95_of_100_cases(count):
    draws = random.Random(count)
    held = sum(
        found.low <= 0.3 <= found.high
        for found in (interval([draws.gauss(0.3, 2.0) for _ in range(count)]) for _ in range(1000))
    )
    assert 935 <= held <= 965  # two standard deviations of the simulation


def test_one_seed_has_no_interval():
    found = interval([0.02])
    assert (found.mean, found.is_known, found.excludes_zero, found.to_list()) == (0.02, False, False, None)


def test_number_of_seeds_that_would_tell():
    differences = [0.01, 0.02, 0.03]
    count = seeds_to_tell(differences)
    assert count == 4  # 3.182 * 0.01 / 2 = 0.0159 < 0.02, and with three 4.303 * 0.01 / sqrt(3) = 0.0248
    assert seeds_to_tell([0.02]) is None
    assert seeds_to_tell([0.01, -0.01]) is None
    assert math.isclose(interval(differences).mean, 0.02)
