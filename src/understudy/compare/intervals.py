"""Paired differences over seeds, with their confidence intervals: Student's t, without another library."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Confidence level of every interval."""

MOST_SEEDS = 100
"""More seeds than this are not advised: the difference is too small to matter."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval; -inf for a single value.
        high: upper end; inf for a single value.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval is on one side of zero."""
        return self.low > 0 or self.high < 0

    @property
    def is_known(self) -> bool:
        """Whether there are ends: two values or more."""
        return math.isfinite(self.low)

    def to_list(self) -> list[float] | None:
        """Return both ends; None for a single value."""
        return [self.low, self.high] if self.is_known else None


def interval(differences: Sequence[float]) -> Interval:
    """Return the mean of paired differences and its interval by Student's t distribution.

    >>> found = interval([0.01, 0.02, 0.03])
    >>> round(found.low, 4), round(found.high, 4)
    (-0.0048, 0.0448)

    Args:
        differences: one for each seed; the pairs share initialisation and batches.
    """
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = t_quantile((1 + LEVEL) / 2, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def seeds_to_tell(differences: Sequence[float]) -> int | None:
    """Return how many seeds an interval needs to exclude zero if mean and spread stay as they are.

    Returns:
        The number of seeds in all; None if one seed shows no spread, or if it is more than :data:`MOST_SEEDS`.
    """
    if len(differences) < 2:
        return None
    mean, spread = abs(statistics.fmean(differences)), statistics.stdev(differences)
    for count in range(2, MOST_SEEDS + 1):
        if t_quantile((1 + LEVEL) / 2, count - 1) * spread / math.sqrt(count) < mean:
            return count
    return None


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution.

    >>> round(t_quantile(0.975, 2), 3), round(t_quantile(0.975, 30), 3)
    (4.303, 2.042)

    Args:
        probability: 0.5..1, exclusive.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection over the angle atan(t / sqrt(freedom)), to the precision of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _central(angle: float, freedom: int) -> float:
    """Return P(abs(t) < sqrt(freedom) tan(angle)), a finite series (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for number in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (number + 1) / (number + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
