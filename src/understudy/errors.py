"""The two errors that understudy raises on purpose, and the recognition of failed allocations.

Apart from these and the system's own errors (``OSError``), any exception is a bug in understudy.
"""

from collections.abc import Iterable
from typing import Self


class UserError(ValueError):
    """Wrong input: the message contains the fault, the expected input and the remedy.

    The command line prints the message without a traceback and exits with 2.
    """

    @classmethod
    def listing(cls, summary: str, faults: Iterable[str]) -> Self:
        """Make one error from several faults.

        >>> print(UserError.listing("Invalid config:", ["run: missing", "seed: expected an integer, got x"]))
        Invalid config:
          - run: missing
          - seed: expected an integer, got x

        Args:
            summary: the first line of the message.
            faults: the other lines, one fault each.
        """
        return cls("\n".join([summary, *(f"  - {fault}" for fault in faults)]))


class RunError(RuntimeError):
    """A run that cannot continue (a full disk, a loss that is nan, a term without a gradient).

    The command line prints the message without a traceback and exits with 1.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: Python's, NumPy's, or PyTorch's on the CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
