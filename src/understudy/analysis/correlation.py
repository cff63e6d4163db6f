"""Correlation of two lists of values."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def kendall(one: Array, other: Array) -> float:
    """Compute Kendall's tau-b of two rankings (P,): nan if all values of one are equal.

    Kendall, Biometrika 1945: concordant minus discordant pairs, divided by the geometric mean of the numbers of pairs
    that are not tied in each.

    Examples:
        >>> round(kendall(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])), 4)
        0.3333
    """
    signs, others = (np.sign(values[:, None] - values) for values in (one, other))
    norm = math.sqrt(float((signs**2).sum() * (others**2).sum()))
    return float((signs * others).sum()) / norm if norm else math.nan


def spearman(one: Array, other: Array) -> float:
    """Compute Spearman's rank correlation of two rankings (P,): Pearson's of the ranks, ties with their mean rank.

    Examples:
        >>> round(spearman(np.array([1.0, 2, 3]), np.array([1.0, 30, 20])), 4)
        0.5
    """
    return pearson(ranks(one), ranks(other))


def pearson(one: Array, other: Array) -> float:
    """Compute Pearson's correlation of two lists of values (P,); nan if all values of one are equal."""
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm else math.nan


def ranks(values: Array) -> Array:
    """Rank values (P,) from 1; equal values share the mean of their ranks.

    Examples:
        >>> ranks(np.array([5.0, 1.0, 5.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]
