"""The command line: each command gathers its arguments and calls one function of the package.

A command imports what it needs when it runs, so that help comes at once.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from understudy.errors import RunError, UserError

if TYPE_CHECKING:
    from rich.console import RenderableType


class _Commands(TyperGroup):
    """Turns the failures that are not ours into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            message, code = f"Error: {error}", 2
        except RunError as error:
            message, code = f"Error: {error}", 1
        except KeyboardInterrupt as stop:
            message, code = str(stop) or "Interrupted.", 130
        print(message, file=sys.stderr)
        raise typer.Exit(code)


app = typer.Typer(
    name="understudy",
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,  # plain text: no boxes that garble long messages, readable when piped
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nBegin with:\n  understudy demo",
)

_OVERRIDABLE = {"ignore_unknown_options": True}  # `--lr=0.1` is met by a message that shows the form


def _example(*lines: str) -> str:
    """An epilog of commands to copy."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def _not_an_option(ctx: typer.Context, arguments: list[str] | None) -> list[str] | None:
    """Meet an option that is nearly one of the command's with its name; others are met where keys are read."""
    options = [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
    for argument in arguments or []:
        close = difflib.get_close_matches(argument.partition("=")[0], options, n=1, cutoff=0.8)
        if argument.startswith("-") and close:
            raise UserError(f'"{argument}": no such option; did you mean {close[0]}?')
    return arguments


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        show_default=False,
        help="Keys of the config, e.g. optimizer.lr=0.02.",
        callback=_not_an_option,
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="A YAML file to start from.")]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run folder or a checkpoint.")]


@app.callback(invoke_without_command=True)
def _understudy(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Distil object detectors: a small student learns its role from a large teacher."""
    if version:
        from importlib.metadata import version as installed

        print(installed("understudy"))
    elif ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(epilog=_example("understudy check photos --sheet sheet.png"))
def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set: COCO, VOC or YOLO.")],
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw some images with their boxes into this file.")
    ] = None,
) -> None:
    """Read a whole data set and report every fault at once.

    Exits with 2 if there is a fault.
    """
    from understudy.data.check import check_data

    report = check_data(data, sheet)
    _print(report)
    if not report.ok:
        raise typer.Exit(2)


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_example(
        "understudy train run=runs/teacher data=photos", "understudy train -c teacher.yaml schedule.epochs=24"
    ),
)
def train(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Train a detector: a teacher, or a student without one."""
    import understudy
    from understudy.config import TrainConfig, load_config

    _say_where(understudy.train(load_config(TrainConfig, config, overrides or [])))


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_example(
        "understudy distill run=runs/student data=photos teacher=runs/teacher \\",
        "    detector=retinanet_resnet18 --method frs methods.frs.threshold=0.1",
    ),
)
def distill(
    config: ConfigFile = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="A method; may be repeated. It keeps its options in FILE, whose other methods are left out.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a student with a teacher and distillation methods."""
    import understudy
    from understudy.config import DistillConfig, load_config

    _say_where(understudy.distill(load_config(DistillConfig, config, overrides or [], method or [])))


@app.command(epilog=_example("understudy resume runs/student"))
def resume(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an interrupted run.")]) -> None:
    """Go on with an interrupted run, exactly where it stopped."""
    import understudy

    _say_where(understudy.resume(run))


@app.command(epilog=_example("understudy evaluate runs/student", "understudy evaluate runs/student photos --json"))
def evaluate(
    checkpoint: CheckpointPath,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", show_default=False, help="A data set; else the one it was trained with."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="The split; else the validation split of the training run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (numbers in 0..1) and nothing else.")] = False,
) -> None:
    """Measure a detector by COCO's and VOC's rules.

    Prints COCO's 12 numbers, VOC's AP50, and both for every class.
    """
    from understudy import evaluation

    if not as_json:
        _print(evaluation.evaluate(checkpoint, data, split=split))
        return
    with redirect_stdout(sys.stderr):  # whatever a library has to say
        result = evaluation.evaluate(checkpoint, data, split=split)
    print(json.dumps(result.to_dict(), indent=2))


@app.command(epilog=_example("understudy swap runs/teacher runs/student"))
def swap(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="A run folder or a checkpoint.")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="A run folder (its last.ckpt) or a checkpoint.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", show_default=False, help="A data set; else the one of the student's run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="The split; else the validation split of that run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (numbers in 0..1) and nothing else.")] = False,
) -> None:
    """Measure what a teacher detects on a student's feature maps.

    They are put into it as they are, where they fit, and through the transforms
    that the method dist2 trained.
    """
    from understudy.swap import swap_test

    with redirect_stdout(sys.stderr):  # whatever a library has to say
        result = swap_test(teacher, student, data, split=split)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)


@app.command(epilog=_example("understudy predict runs/student holiday.jpg -o found"))
def predict(
    checkpoint: CheckpointPath,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="An image, a folder of images or a data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the results go.")],
    score: Annotated[float, typer.Option(help="The lowest score (0 to 1) of a box that is drawn.")] = 0.3,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split, where SOURCE is a data set.")] = "val",
) -> None:
    """Detect objects in images, and draw them.

    Writes the results in COCO's format, and the images with their boxes.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {score:g}")
    from understudy import prediction

    detections = prediction.predict(checkpoint, source, output, score, split=split)
    print(f"{len(detections)} detections: {output / 'detections.json'}, drawn in {output / 'images'}")


@app.command(epilog=_example("understudy export runs/student deploy"))
def export(
    checkpoint: CheckpointPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder for the weights.")],
) -> None:
    """Write the plain weights, for torchvision alone."""
    from understudy import export as exporting

    exporting.export(checkpoint, folder)
    print(f"The plain detector is in {folder}")


@app.command(
    "import",
    epilog=_example("understudy import gfl_r101_fpn.pth", "understudy import frcnn.pth --classes cat,dog -o cats.ckpt"),
)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of torchvision or a checkpoint of mmdet.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The checkpoint to write; else FILE's name with .ckpt."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Class names: a,b,c, a file of names, coco or voc.")
    ] = None,
    style: Annotated[
        str | None, typer.Option(metavar="caffe|pytorch", help="Of a ResNet, where the file does not say.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of the pixels, 0 to 255.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of the pixels, 0 to 255.")] = None,
    architecture: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where it cannot be told from the weights.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the detector; may be repeated.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Go on where weights are missing or left over.")] = False,
) -> None:
    """Import a detector of torchvision or mmdet.

    Writes a checkpoint that evaluates, exports and teaches as others do. Nothing
    in the file is executed; what had to be assumed is printed, each with the
    option that changes it.
    """
    from understudy.checkpoints.importing import import_checkpoint, numbers_of, report, settings_of

    imported = import_checkpoint(
        file,
        output,
        classes=classes,
        style=style,
        mean=numbers_of("--mean", mean),
        std=numbers_of("--std", std),
        architecture=architecture,
        settings=settings_of(settings or []),
        partial=partial,
    )
    print(report(imported, file))


@app.command(epilog=_example("understudy compare runs/teacher runs/plain runs/student --html compare.html"))
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with curves and images.")] = None,
) -> None:
    """Set finished runs side by side in a table.

    Shows AP, size and speed, and how much of the gap to the teacher a distilled
    student closed.
    """
    from understudy import results

    table = results.summarise(runs)
    _print(table)
    if html:
        from understudy.report import report_on

        print(f"\nThe page is {report_on(html, runs, table=table.to_dict())}")


@app.command(epilog=_example("understudy demo --output demo"))
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Decides the scenes, the first weights and the order.")] = 0,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where everything is written to.")] = Path("demo"),
    train_teacher: Annotated[
        bool, typer.Option("--train-teacher", help="Train the teacher too, not only the two students.")
    ] = False,
) -> None:
    """Show the whole job in a few minutes, on drawn scenes.

    Draws a data set, trains a plain and a distilled student, prints the table
    and writes a page.
    """
    from understudy.demo import run_demo

    table = run_demo(output, seed, train_teacher)
    print()
    _print(table)
    print(f"\nCurves, detections side by side and richness masks: {output / 'report.html'}")


@app.command(epilog=_example("understudy config distill > student.yaml"))
def config(
    kind: Annotated[str, typer.Argument(metavar="train|distill", help="Of which command.")] = "train",
    schema: Annotated[bool, typer.Option("--schema", help="Print its JSON schema, for editors.")] = False,
) -> None:
    """Print a config file with every key explained."""
    from understudy.config import DistillConfig, TrainConfig, commented_yaml

    kinds = {"train": TrainConfig, "distill": DistillConfig}
    if kind not in kinds:
        raise UserError(f"understudy config: expected train or distill, got {kind}")
    if schema:
        print(json.dumps(kinds[kind].model_json_schema(), indent=2))
    else:
        print(commented_yaml(kinds[kind]), end="")


@app.command(
    context_settings=_OVERRIDABLE,
    epilog=_example("understudy detectors", "understudy detectors gfl_resnet50 width_mult=0.5 num_classes=20"),
)
def detectors(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="Explain this one.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            show_default=False,
            help="Its keys of the config, e.g. width_mult=0.5; and num_classes.",
        ),
    ] = None,
) -> None:
    """List the detectors with their sizes, or explain one."""
    from understudy import listing

    print(listing.table() if name is None else listing.explain(name, options or []))


@app.command(
    epilog=_example("understudy methods", "understudy methods frs", "understudy methods own_method:ScoredFeatures")
)
def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="Explain this one; package.module:Class is your own."),
    ] = None,
    short: Annotated[bool, typer.Option("--short", help="Of each only what it does.")] = False,
) -> None:
    """List the distillation methods, or explain one.

    Shows what each reads, which detectors and pairs it serves, its terms,
    weights and source.
    """
    from understudy.methods import catalogue

    if name is None:
        print(catalogue.overview() if short else catalogue.details())
    elif short:
        raise UserError(f"--short lists all methods, and {name} is to be explained: leave one of the two out.")
    else:
        print(catalogue.explain(name))


def _say_where(run: Path) -> None:
    """Say where a finished run lies, once, also when it had several processes."""
    from understudy.runs import is_first_process

    if is_first_process():
        print(f"The run is in {run}")


def _print(renderable: "RenderableType") -> None:
    """Print a table: in colour on a terminal, as plain text of 80 columns into a pipe."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with 0, or 1 (failed while running), 2 (wrong input) or 130 (interrupted)."""
    if "" not in sys.path:
        sys.path.append("")  # the current folder, last: a method of one's own lies there, and hides no module
    app(arguments, prog_name="understudy")
