"""The application that the commands register with, and the parts that they share."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from typer._click.exceptions import ClickException
from typer.core import TyperGroup

from understudy.cli.boundary import failure
from understudy.errors import UserError
from understudy.text import printable

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from understudy.data import Limits
    from understudy.figures import Captioned


class Commands(TyperGroup):
    """Prints a failure of any command as a message and exits with its code; see :mod:`.boundary`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, ClickException, BrokenPipeError):
            raise  # Typer's own: help texts, wrong options, a closed pipe
        except KeyboardInterrupt as stop:
            message, code = str(stop) or "Interrupted.", getattr(stop, "exit_code", 130)
        except Exception as error:
            message, code = failure(error)
        with contextlib.suppress(OSError):  # the terminal has been closed
            print(printable(message), file=sys.stderr, flush=True)
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
RunnablePath = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Run folder, checkpoint, or exported file (.onnx, .xml).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only, with numbers from 0 to 1.")]

Force = Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")]


def with_recipe(recipe: str | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides with the recipe as the key that it stands for."""
    return [*(overrides or []), *([f"recipe={recipe}"] if recipe is not None else [])]


AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Allow the data set to use files outside its folder, e.g. by links.")
]
MaxPixels = Annotated[
    int | None, typer.Option(metavar="N", min=1, show_default=False, help="Maximum number of pixels of an image file.")
]


def limits_given(allow_outside: bool, max_pixels: int | None) -> "Limits | None":
    """Return the limits that the options set; None if none of them is given."""
    from understudy.data import LIMITS, Limits

    return Limits(max_pixels or LIMITS.max_pixels, allow_outside) if allow_outside or max_pixels else None


Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Also write figures (PNG, SVG), numbers (JSON) and a page here."
    ),
]
ReplaceFiles = Annotated[bool, typer.Option("--force", help="Replace files of an earlier analysis.")]


class Result(Protocol):
    """A result that is shown as a table or as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return its values for JSON."""
        ...

    def __rich__(self) -> "RenderableType":
        """Return its table."""
        ...


class Drawn(Result, Protocol):
    """A result with figures."""

    def figures(self) -> "dict[str, Captioned]":
        """Return the figures by name."""
        ...

    def __rich__(self) -> "Group":
        """Return what the terminal shows: tables, and lines."""
        ...


def loading() -> None:
    """Say on stderr that a command has begun, before it imports PyTorch for the first time, which takes seconds."""
    if "torch" not in sys.modules and os.environ.get("LOCAL_RANK", "0") == "0":
        print("Loading PyTorch ...", file=sys.stderr, flush=True)


def show(renderable: "RenderableType") -> None:
    """Print a table, in colour on a terminal and as plain text of 80 columns otherwise."""
    from rich.console import Console
    from rich.segment import Segments

    console = Console(highlight=False, markup=False)
    shown = (part if part.control else part._replace(text=printable(part.text)) for part in console.render(renderable))
    console.print(Segments(shown), end="")


def show_result(result: Result, as_json: bool) -> None:
    """Print a result as JSON only, or as a table."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        show(result)


def report_drawn(
    compute: Callable[[], Drawn],
    names: tuple[str, ...],
    output: Path | None,
    force: bool,
    as_json: bool,
    json_name: str | None = None,
) -> None:
    """Compute a result, print it, and write its figures, and its page and JSON file under the first name or its own."""
    name = json_name or names[0]
    if output:
        from understudy import figures
        from understudy.files import write_atomically
        from understudy.report.result import report_on_result

        figures.refuse_existing(output, [f"{name}.json", f"{name}.html", *figures.file_names(names)], force=force)
    with redirect_stdout(sys.stderr):  # libraries print progress
        result = compute()
    show_result(result, as_json)
    if output:
        drawn = result.figures()
        report_on_result(output / f"{name}.html", name.capitalize(), result.__rich__().renderables, drawn)
        written = figures.write_figures(output, drawn)
        write_atomically(output / f"{name}.json", (json.dumps(result.to_dict(), indent=2) + "\n").encode())
        if not as_json:
            print(f"\nFigures: {', '.join(str(file) for file in written if file.suffix == '.png')}")
            print(f"Page: {output / f'{name}.html'}")


def print_folder(run: Path) -> None:
    """Print the folder of a finished run, in one process only."""
    from understudy.training.launching import is_first_process

    if is_first_process():
        print(f"Run folder: {run}")
