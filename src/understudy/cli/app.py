"""The application that the commands register with, and the parts that they share."""

import contextlib
import json
import sys
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from understudy.errors import MethodError, RunError, UserError

if TYPE_CHECKING:
    from rich.console import RenderableType


class Commands(TyperGroup):
    """Prints a user's error or a failed run as a message and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            message, code = f"Error: {error}", 2
        except MethodError as error:
            message, code = f"Error: {error}\n{''.join(format_exception(error.__cause__))}", 1
        except RunError as error:
            message, code = f"Error: {error}", 1
        except KeyboardInterrupt as stop:
            message, code = str(stop) or "Interrupted.", getattr(stop, "exit_code", 130)
        with contextlib.suppress(OSError):  # the terminal has been closed
            print(message, file=sys.stderr, flush=True)
        raise typer.Exit(code)


app = typer.Typer(
    name="understudy",
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,  # plain text: no boxes that garble long messages, readable when piped
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nGet started:\n  understudy demo",
)

OVERRIDABLE = {"ignore_unknown_options": True}  # so that `--lr=0.1` gets a message of ours


def example(*lines: str) -> str:
    """Write an epilog of commands to copy."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def not_an_option(ctx: typer.Context, arguments: list[str] | None) -> list[str] | None:
    """Refuse a misspelt option and suggest the right one; load_config refuses all others."""
    from understudy.text import closest

    options = [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
    for argument in arguments or []:
        close = closest(argument.partition("=")[0], options, cutoff=0.8)
        if argument.startswith("-") and close:
            raise UserError(f'"{argument}": no such option; did you mean {close}?')
    return arguments


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        show_default=False,
        help="Config keys, e.g. optimizer.lr=0.02; `understudy config` lists them.",
        callback=not_an_option,
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML config to start from.")]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME", help="Recipe to start from; `understudy recipes` lists them."),
]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Run folder or checkpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only, with numbers from 0 to 1.")]


def with_recipe(recipe: str | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides with the recipe as the key that it stands for."""
    return [*(overrides or []), *([f"recipe={recipe}"] if recipe is not None else [])]


class Result(Protocol):
    """A result that is shown as a table or as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return its values for JSON."""
        ...

    def __rich__(self) -> "RenderableType":
        """Return its table."""
        ...


def show(renderable: "RenderableType") -> None:
    """Print a table, in colour on a terminal and as plain text of 80 columns otherwise."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def show_result(result: Result, as_json: bool) -> None:
    """Print a result as JSON only, or as a table."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        show(result)


def print_folder(run: Path) -> None:
    """Print the folder of a finished run, in one process only."""
    from understudy.training.launching import is_first_process

    if is_first_process():
        print(f"Run folder: {run}")
