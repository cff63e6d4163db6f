"""The two kinds of failure a user meets; anything else that reaches the terminal is a fault of ours."""

from collections.abc import Iterable
from typing import Self


class UserError(ValueError):
    """Something given to understudy is wrong: the message says what was expected, what came, and what to do.

    The command line prints the message without a traceback and exits with 2.
    """

    @classmethod
    def listing(cls, summary: str, faults: Iterable[str]) -> Self:
        """One error that names every fault at once, a line each, below a one-line summary."""
        return cls("\n".join([summary, *(f"  - {fault}" for fault in faults)]))


class RunError(RuntimeError):
    """A run that started well cannot go on (a full disk, a loss that is not a number, a term that reaches nothing).

    The command line prints the message without a traceback and exits with 1.
    """
