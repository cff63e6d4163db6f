"""The command that finds what is wrong with a pair, or with a finished run."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.app import (
    OVERRIDABLE,
    AsJson,
    ConfigFile,
    RecipeName,
    app,
    example,
    not_an_option,
    show,
    show_result,
    with_recipe,
)
from understudy.errors import UserError
from understudy.text import listed


@app.command(
    context_settings=OVERRIDABLE,
    epilog=example(
        "understudy doctor data=photos teacher=runs/teacher \\",
        "    detector=gfl_resnet18 --method frs --plain runs/plain",
        "understudy doctor runs/student runs/plain",
    ),
)
def doctor(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE | RUN [PLAIN]",
            show_default=False,
            help="Config keys as of `understudy distill`; or a run folder, and that of a plain student.",
            callback=not_an_option,
        ),
    ] = None,
    config: ConfigFile = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", metavar="NAME", help="Method to use; may be repeated, as in `distill`."),
    ] = None,
    recipe: RecipeName = None,
    plain: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The student trained without a teacher: run folder or checkpoint."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="100", help="Validation images for the teacher's AP."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="30", help="Steps of training on one batch.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong before training, or why a run did not help.

    With the keys of `distill` it examines teacher, student, methods and data in
    a minute or two; nothing is written. With a run folder it explains the log.
    The exit code is 1 if the run would be, or was, worthless.
    """
    given = arguments or []
    runs = [argument for argument in given if "=" not in argument or Path(argument).is_dir()]
    planned = config or method or recipe or len(runs) < len(given) or not given
    # At once: to import PyTorch takes seconds.
    print("Examining the pair ..." if planned else "Reading the log ...", file=sys.stderr, flush=True)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # libraries print progress
        tell = None if as_json else show
        if planned:
            from understudy.config import load_config
            from understudy.diagnosis.before import IMAGES, STEPS, PairConfig, examine

            pair = load_config(PairConfig, config, with_recipe(recipe, given), method or [])
            result = examine(pair, plain, images=images or IMAGES, steps=steps or STEPS, tell=tell)
        else:
            from understudy.diagnosis.afterwards import explain

            if images or steps:
                raise UserError(
                    "--images and --steps have no effect on a run folder, whose log is read: leave them out."
                )
            result = explain(*_one_and_plain(runs, plain), tell=tell)
    show_result(result, as_json)
    if not result.ok:
        raise typer.Exit(1)


def _one_and_plain(runs: list[str], plain: Path | None) -> tuple[Path, Path | None]:
    """Return the run to explain, and the plain one, which may be given as an argument or as an option."""
    given = [Path(run) for run in runs] + ([plain] if plain else [])
    if len(given) > 2:
        raise UserError(
            f"Expected a run, and perhaps one plain run; got {listed(given)}. `understudy compare` takes more."
        )
    return given[0], given[1] if len(given) == 2 else None
