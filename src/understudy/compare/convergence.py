"""Whether a run had converged: what its last fifth brought in AP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

LAST = 0.2
"""Part of a run, at its end, in which AP should no longer rise."""

RISE, OF_ITS_BEST = 0.005, 0.02
"""Limits of the rise of AP in that part: AP (0..1), and relative to the best AP.

Below both, a run has converged; above both, it clearly has not, and is worth a warning.
"""


@dataclass(frozen=True, slots=True)
class Course:
    """The course of AP in a run.

    Attributes:
        before: best AP before the last part of the run, 0..1.
        best: best AP of the whole run.
    """

    before: float
    best: float

    @classmethod
    def of(cls, evaluations: Sequence[tuple[float, float]]) -> Self | None:
        """Read the course from evaluations.

        Args:
            evaluations: step or epoch, and AP, of each.

        Returns:
            The course; None if there is no evaluation before the last part, or none in it.
        """
        end = (1 - LAST) * max((time for time, _ in evaluations), default=0.0)
        before = [ap for time, ap in evaluations if time < end]
        after = [ap for time, ap in evaluations if time >= end]
        return cls(max(before), max([*before, *after])) if before and after else None

    @property
    def rise(self) -> float:
        """What the last part brought in AP."""
        return self.best - self.before


def has_converged(rise: float, best: float) -> bool:
    """Return whether a rise of AP in the last part of a run, to its best AP, is small enough.

    >>> has_converged(0.004, best=0.45), has_converged(0.004, best=0.03)
    (True, False)
    """
    return rise < min(RISE, OF_ITS_BEST * best)


def still_rises(rise: float, best: float) -> bool:
    """Return whether a rise of AP in the last part of a run is beyond doubt.

    >>> still_rises(0.006, best=0.45), still_rises(0.02, best=0.45)
    (False, True)
    """
    return rise > max(RISE, OF_ITS_BEST * best)
