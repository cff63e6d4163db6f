"""What the sections of ``performance.py`` share: rows of a table, and CPU time measured in turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measurement and its target.

    Attributes:
        what: what was measured.
        found: the figure.
        limit: that it should not exceed, or reach if `at_least`.
        unit: written after both.
        at_least: more is better.
        note: where the time goes, how it was measured.
    """

    what: str
    found: float
    limit: float | None = None
    unit: str = "x"
    at_least: bool = False
    note: str = ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return the cells of the table: what, found, target, reached, note."""
        if self.limit is None:
            return self.what, f"{self.found:.3g} {self.unit}", "-", "-", self.note
        reached = self.found >= self.limit if self.at_least else self.found <= self.limit
        target = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return self.what, f"{self.found:.3g} {self.unit}", target, "yes" if reached else "**no**", self.note


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """Return the CPU time of the first over that of the second: the median of rounds in which both take turns."""
    ratios = []
    for number in range(rounds):
        order: Sequence[Callable[[], object]] = (first, second) if number % 2 else (second, first)
        spent = {}
        for call in order:
            start = time.process_time()
            call()
            spent[call] = time.process_time() - start
        ratios.append(spent[first] / spent[second])
    return statistics.median(ratios)
