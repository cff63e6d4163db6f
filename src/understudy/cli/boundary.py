"""What the command line says when a command fails: a message and an exit code, never a traceback on the terminal."""

import errno
import platform
import shlex
import sys
import traceback
from datetime import datetime
from pathlib import Path

from understudy.errors import MethodError, RunError, UserError, is_out_of_memory

BUG = 70
"""Exit code of a bug in understudy (EX_SOFTWARE)."""

_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
"""Errors of the system that no other argument avoids; all others come from a wrong path."""

NO_MEMORY = (
    "The machine has too little memory for this. Use fewer images at once (batch_size, --batch-size, --batch), smaller "
    "ones (data.shorter_side, --size), fewer processes that load them (data.workers, --workers), or a smaller detector."
)


def failure(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of a command that raised an exception.

    The traceback of an exception that is neither a user's error nor the system's goes to a file.
    """
    if isinstance(error, UserError):
        return f"Error: {error}", 2
    if isinstance(error, MethodError):
        return f"Error: {error}\n{''.join(traceback.format_exception(error.__cause__))}", 1
    if isinstance(error, RunError):
        return f"Error: {error}", 1
    if is_out_of_memory(error):
        return f"Error: {NO_MEMORY}", 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"Error: {where}{error.strerror or error}.", 1 if error.errno in _OF_THE_MACHINE else 2
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"Internal error: {summary}. This is a bug in understudy; please report it with {_written(error)}", BUG


def _written(error: Exception) -> str:
    """Write the traceback to a new file, in the current folder if possible, and return its path."""
    import tempfile  # here, so that `--help` is fast
    from importlib.metadata import version

    report = "\n".join(
        [
            f"understudy {version('understudy')}, Python {platform.python_version()}, {platform.platform()}",
            shlex.join(["understudy", *sys.argv[1:]]),
            "",
            *traceback.format_exception(error),
        ]
    )
    name = f"understudy-crash-{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            with (folder / name).open("x", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(report)
            return str(folder / name)
        except OSError:
            continue
    return f"this traceback, which could not be written to a file:\n{report}"
