"""The command line: each command parses its arguments and calls one function of the package.

Commands import the package when they run, so that ``--help`` is fast.
"""

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from understudy.cli.app import app

# isort: off
from understudy.cli import training, doctor, studies, results, analyse, checkpoints, listings, recipes  # noqa: F401 - in the order of `--help`


@app.callback(invoke_without_command=True)
def _understudy(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False
) -> None:
    """Distil object detectors: train a small student with a large teacher."""
    if version:
        from importlib.metadata import version as installed

        print(installed("understudy"))
    elif ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Codes: 0 success, 1 failed run, 2 wrong input, 70 a bug in understudy, 130 interrupted.
    """
    if "" not in sys.path:
        sys.path.append("")  # the current folder, for a user's methods; last, so that it hides no other module
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8, and lone surrogates
    if any("\0" in argument for argument in arguments):  # only from Python: a shell cannot pass it
        print("Error: an argument contains a null character, which no file name can.", file=sys.stderr)
        sys.exit(2)
    app(arguments, prog_name="understudy")
