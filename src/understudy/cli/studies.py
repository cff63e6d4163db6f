"""The command that compares methods over seeds."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.app import (
    OVERRIDABLE,
    AsJson,
    ConfigFile,
    Overrides,
    RecipeName,
    app,
    example,
    loading,
    show_result,
    with_recipe,
)
from understudy.errors import UserError


@app.command(
    context_settings=OVERRIDABLE,
    epilog=example(
        "understudy study runs/study data=photos detector=gfl_resnet18 \\",
        '    teacher=runs/teacher --row frs --row "rank_mimicking + pfi" --together',
        "understudy study runs/study                  # go on after an interruption",
        'understudy study runs/study --row "light: frs feature_weight=0.001"',
    ),
)
def study(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder, or a study to go on with or extend.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    recipe: RecipeName = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help='Row of the table: "[NAME:] METHOD [OPTION=VALUE]... [+ METHOD ...] [KEY=VALUE]..."; may be repeated. '
            "default is what distill does without a method; the plain student, none, is always there.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", show_default=False, help="Seeds of each row; default: 0,1,2.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", show_default=False, help="Steps per run; default: schedule.epochs.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="N", show_default=False, help="Minutes per run instead, by measured time per step."),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Teacher, if there are several; may be repeated. For one: teacher=PATH"),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Train the runs of a seed side by side, with one pass of the teacher.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Processes that train at once.")] = 1,
    longer: Annotated[
        bool | None,
        typer.Option(
            "--longer/--no-longer",
            show_default=False,
            help="Add the plain student trained for as long in time; by default yes.",
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed runs again.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with other data, teacher or version than at the start.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Your own method of a study that goes on, package.module:Class."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds, with intervals.

    Trains each row once per seed, with the same initialisation and batches for all
    rows of a seed, and says which differences can be told from noise. Writes
    results.json, results.csv, runs.csv and report.html to FOLDER.
    """
    extends = row is not None or seeds is not None
    begins = bool(overrides or config or recipe or steps is not None or minutes is not None or teacher)
    loading()
    from understudy.methods.loading import is_own
    from understudy.studies.folder import StudyFolder
    from understudy.studies.plan import Plan
    from understudy.studies.rows import read_row
    from understudy.studies.running import run_study

    own = sorted({name for text in row or [] for name in read_row(text).methods if is_own(name)})
    numbers = _seeds(seeds) if seeds is not None else [0, 1, 2]
    place = StudyFolder(folder)
    plan: Plan | None = None
    if begins or (extends and not place.plan.exists()):
        plan = Plan.of(
            config,
            with_recipe(recipe, overrides),
            rows=row or [],
            seeds=numbers,
            teachers=teacher or [],
            steps=steps,
            minutes=minutes,
            longer=longer is not False,
        )
    elif extends or (longer is not None and place.plan.exists()):
        stored = Plan.load(place.plan)
        plan = stored.with_more([read_row(text) for text in row or []], numbers if seeds is not None else [])
        plan = plan if longer is None else replace(plan, longer=longer and plan.minutes is None)
    with redirect_stdout(sys.stderr):  # libraries print progress
        result = run_study(
            folder,
            plan,
            together=together,
            jobs=jobs,
            retry=retry,
            accept_changes=accept_changes,
            trusted=[*(trust or []), *own],
        )
    show_result(result, as_json)
    if not as_json:
        print(f"\nResults: {place.results}")


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds: expected integers from 0 on, separated by commas, e.g. 0,1,2; got {text}")
    return list(map(int, parts))
