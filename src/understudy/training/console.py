"""The console that training runs write their progress and notes to."""

from rich.console import Console

from understudy.text import printable

CONSOLE = Console(stderr=True, highlight=False, markup=False)
"""Standard error; :func:`say` and the progress bar share it, so that lines appear above the bar."""


def say(text: str) -> None:
    """Print a line on standard error, above the progress bar if there is one."""
    CONSOLE.print(printable(text), soft_wrap=True)
