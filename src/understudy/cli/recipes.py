"""The command that shows recipes and checks them."""

from typing import Annotated

import typer

from understudy.cli.app import app, example, loading
from understudy.errors import UserError


@app.command(
    epilog=example(
        "understudy recipes", "understudy recipes frs-retinanet-r50", "understudy recipes check frs-fcos-r50"
    )
)
def recipes(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | check [NAME]...]", show_default=False, help="Recipe to explain, or check and recipes."
        ),
    ] = None,
) -> None:
    """List the papers' recipes, explain one, or check them all.

    A recipe is a config to start from: `understudy distill --recipe NAME`. The
    check builds detectors and methods; its exit code is 1 if any fails.
    """
    first, *others = names or [""]
    if first == "check":
        _check(others)
        return
    if others:
        raise UserError(f"understudy recipes: expected one NAME, or check and names; got {' '.join([first, *others])}")
    from understudy.listing import recipes as listing

    print(listing.explain(first) if first else listing.overview())


def _check(names: list[str]) -> None:
    loading()
    from understudy.analysis.recipe_check import check_recipes

    count = failed = 0
    for name, fault in check_recipes(names):
        count, failed = count + 1, failed + (fault is not None)
        print(f"{name}: {'ok' if fault is None else fault}", flush=True)
    print(f"\n{count} recipes checked, {failed} failed")
    if failed:
        raise typer.Exit(1)
