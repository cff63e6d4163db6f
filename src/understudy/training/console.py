"""The console that training runs write their progress and notes to."""

import contextlib
from contextvars import ContextVar

from rich.console import Console

from understudy.text import printable

PREFIX: ContextVar[str] = ContextVar("PREFIX", default="")
"""Begins every line of a run that shares the console with others."""

CONSOLE = Console(stderr=True, highlight=False, markup=False)
"""Standard error; :func:`say` and the progress bar share it, so that lines appear above the bar."""


def say(text: str) -> None:
    """Print a line on standard error, above the progress bar if there is one."""
    with contextlib.suppress(OSError):  # the terminal has been closed; the run need not end with it
        CONSOLE.print(printable(PREFIX.get() + text), soft_wrap=True)
