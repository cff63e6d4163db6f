"""Commands that show what there is: the demo, configs, detectors and methods."""

import json
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.app import OVERRIDABLE, app, example, loading, show
from understudy.errors import UserError


@app.command(epilog=example("understudy demo --output demo"))
def demo(
    seed: Annotated[int, typer.Option(min=0, max=999_999, help="Random seed of the scenes and the training.")] = 0,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.")] = Path("demo"),
    train_teacher: Annotated[
        bool, typer.Option("--train-teacher", help="Train the teacher, too, instead of using the included one.")
    ] = False,
) -> None:
    """Run the whole workflow in a few minutes on drawn scenes.

    Draws a data set, trains a plain and a distilled student, compares them and
    writes an HTML page.
    """
    loading()
    from understudy.demo import run_demo

    table = run_demo(output, seed, train_teacher)
    print()
    show(table)
    print(f"\nCurves, detections side by side and richness masks: {output / 'report.html'}")


@app.command(epilog=example("understudy config distill > student.yaml"))
def config(
    kind: Annotated[str, typer.Argument(metavar="train|distill", help="Command that the config is for.")] = "train",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema instead, for editors.")] = False,
) -> None:
    """Print a config file with all keys and their descriptions."""
    from understudy.config import DistillConfig, TrainConfig, commented_yaml

    kinds = {"train": TrainConfig, "distill": DistillConfig}
    if kind not in kinds:
        raise UserError(f"understudy config: expected train or distill, got {kind}")
    if schema:
        print(json.dumps(kinds[kind].model_json_schema(), indent=2))
    else:
        print(commented_yaml(kinds[kind]), end="")


@app.command(
    context_settings=OVERRIDABLE,
    epilog=example("understudy detectors", "understudy detectors gfl_resnet50 width_mult=0.5 num_classes=20"),
)
def detectors(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="Detector to show.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", show_default=False, help="Its keys, e.g. width_mult=0.5, num_classes=20."),
    ] = None,
) -> None:
    """List the detectors with their sizes, or show one in full."""
    if name is not None:
        loading()
    from understudy.listing import detectors as listing

    print(listing.table() if name is None else listing.explain(name, options or []))


@app.command(
    epilog=example("understudy methods", "understudy methods frs", "understudy methods own_method:ScoredFeatures")
)
def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="Method to show; package.module:Class for your own."),
    ] = None,
    short: Annotated[bool, typer.Option("--short", help="One-line summaries only.")] = False,
) -> None:
    """List the distillation methods, or show one in full.

    Prints terms, inputs, source, default weights and supported detectors.
    """
    if name is not None and short:
        raise UserError(f"--short cannot be combined with a method: leave out --short or {name}.")
    from understudy.listing import methods as listing

    if name is None:
        print(listing.overview() if short else listing.details())
    else:
        print(listing.explain(name))
