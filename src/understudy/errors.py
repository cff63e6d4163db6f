"""The errors that understudy raises on purpose, the end of a run by a signal, and failed allocations.

Apart from these and the system's own errors (``OSError``), any exception is a bug.
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


class MethodError(RunError):
    """A distillation method raised an error, which is the ``__cause__``: a bug of the method.

    The command line prints the message, then the traceback of the cause, and exits with 1.
    """


class Stopped(KeyboardInterrupt):
    """A run that a signal has stopped; the message says what was saved, and names the command that continues it.

    The command line prints the message and exits with ``exit_code``.

    Args:
        message: the message.
        number: the signal.

    Attributes:
        exit_code: 128 and the number of the signal, as shells count.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: Python's, NumPy's, or PyTorch's on the CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
