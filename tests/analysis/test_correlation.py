"""Correlations, against slow loops written from their definitions."""

import math

import numpy as np
import pytest

from understudy.analysis.correlation import kendall, pearson, ranks, spearman


def slow_kendall(one, other) -> float:
    """Tau-b: concordant minus discordant pairs over the geometric mean of the pairs without ties in each."""
    agree = untied = others_untied = 0
    for i in range(len(one)):
        for j in range(i):
            first, second = np.sign(one[i] - one[j]), np.sign(other[i] - other[j])
            agree += first * second
            untied += first != 0
            others_untied += second != 0
    return agree / math.sqrt(untied * others_untied)


def slow_ranks(values) -> list[float]:
    """One more than the number of smaller values, plus half the number of other equal ones."""
    return [1 + sum(other < value for other in values) + (sum(o == value for o in values) - 1) / 2 for value in values]


def slow_pearson(one, other) -> float:
    mean, others_mean = sum(one) / len(one), sum(other) / len(other)
    product = sum((a - mean) * (b - others_mean) for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum((a - mean) ** 2 for a in one) * sum((b - others_mean) ** 2 for b in other))


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_slow_loops(ties):
    rng = np.random.default_rng(0)
    one = rng.normal(size=25)
    other = one + rng.normal(size=25)
    if ties:
        one, other = np.round(one), np.round(other)
    assert kendall(one, other) == pytest.approx(slow_kendall(one, other))
    assert pearson(one, other) == pytest.approx(slow_pearson(one, other))
    assert ranks(one).tolist() == slow_ranks(one)
    assert spearman(one, other) == pytest.approx(slow_pearson(slow_ranks(one), slow_ranks(other)))


def test_equal_and_reversed_rankings_and_constants():
    values = np.array([3.0, 1.0, 2.0])
    for correlation in (kendall, spearman, pearson):
        assert correlation(values, values) == pytest.approx(1)
        assert correlation(values, -values) == pytest.approx(-1)
        assert math.isnan(correlation(values, np.ones(3)))
    assert kendall(values, values**3) == spearman(values, values**3) == pytest.approx(1)
