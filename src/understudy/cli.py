"""The command line: each command parses its arguments and calls one function of the package.

Commands import the package when they run, so that ``--help`` is fast.
"""

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
    """Prints a user's error or a failed run as a message and exits with its code."""

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
    epilog="\b\nGet started:\n  understudy demo",
)

_OVERRIDABLE = {"ignore_unknown_options": True}  # so that `--lr=0.1` gets a message of ours


def _example(*lines: str) -> str:
    """Write an epilog of commands to copy."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def _not_an_option(ctx: typer.Context, arguments: list[str] | None) -> list[str] | None:
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
        callback=_not_an_option,
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML config to start from.")]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Run folder or checkpoint.")]


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


@app.command(epilog=_example("understudy check photos --sheet sheet.png", "understudy check VOC2007 VOC2012"))
def check(
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA", help="Data set: COCO, VOC or YOLO; several are checked as one.")
    ],
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw sample images with their boxes to this file.")
    ] = None,
) -> None:
    """Check a data set and report all faults at once.

    The exit code is 2 if there are faults.
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
    """Train a detector: a teacher, or a student without a teacher."""
    import understudy
    from understudy.config import TrainConfig, load_config

    _print_folder(understudy.train(load_config(TrainConfig, config, overrides or [])))


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
            help="Method to use; may be repeated. Its options in FILE apply; other methods in FILE are ignored.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a student with a teacher and distillation methods."""
    import understudy
    from understudy.config import DistillConfig, load_config

    _print_folder(understudy.distill(load_config(DistillConfig, config, overrides or [], method or [])))


@app.command(epilog=_example("understudy resume runs/student"))
def resume(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an interrupted run.")]) -> None:
    """Continue an interrupted run exactly where it stopped."""
    import understudy

    _print_folder(understudy.resume(run))


@app.command(epilog=_example("understudy evaluate runs/student", "understudy evaluate runs/student photos --json"))
def evaluate(
    checkpoint: CheckpointPath,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", show_default=False, help="Data set; default: that of the training run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split; default: the validation split of the training run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only, with numbers from 0 to 1.")] = False,
) -> None:
    """Evaluate a detector with the metrics of COCO and VOC.

    Prints COCO's 12 metrics and VOC's AP50, then AP and AP50 per class.
    """
    from understudy import evaluation

    if not as_json:
        _print(evaluation.evaluate(checkpoint, data, split=split))
        return
    with redirect_stdout(sys.stderr):  # libraries print progress
        result = evaluation.evaluate(checkpoint, data, split=split)
    print(json.dumps(result.to_dict(), indent=2))


@app.command(epilog=_example("understudy swap runs/teacher runs/student"))
def swap(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Run folder or checkpoint.")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Run folder (its last.ckpt) or checkpoint.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", show_default=False, help="Data set; default: that of the student's run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split; default: the validation split of that run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only, with numbers from 0 to 1.")] = False,
) -> None:
    """Evaluate a teacher on a student's feature maps.

    The feature maps are used directly if the shapes match, and through the
    transforms that the method dist2 trained.
    """
    from understudy.analysis.swap import swap_test

    with redirect_stdout(sys.stderr):  # libraries print progress
        result = swap_test(teacher, student, data, split=split)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)


@app.command(epilog=_example("understudy predict runs/student holiday.jpg -o found"))
def predict(
    checkpoint: CheckpointPath,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Image, folder of images or data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder.")],
    score: Annotated[float, typer.Option(help="Lowest score of a drawn box, 0 to 1.")] = 0.3,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split, if SOURCE is a data set.")] = "val",
) -> None:
    """Detect objects in images and draw them.

    Writes the detections in COCO's format and the images with their boxes.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {score:g}")
    from understudy.evaluation import prediction

    detections = prediction.predict(checkpoint, source, output, score, split=split)
    print(f"{len(detections)} detections: {output / 'detections.json'}; images with boxes: {output / 'images'}")


@app.command(epilog=_example("understudy export runs/student deploy"))
def export(
    checkpoint: CheckpointPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder.")],
) -> None:
    """Export a detector that needs only torch and torchvision."""
    from understudy import export as exporting

    exporting.export(checkpoint, folder)
    print(f"Exported to {folder}")


@app.command(
    "import",
    epilog=_example("understudy import gfl_r101_fpn.pth", "understudy import frcnn.pth --classes cat,dog -o cats.ckpt"),
)
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Weights of torchvision, or checkpoint of mmdet or FCOS' authors.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Checkpoint to write; default: FILE's name with .ckpt, in this folder.",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Class names: a,b,c, a file of names, coco or voc.")
    ] = None,
    style: Annotated[
        str | None, typer.Option(metavar="caffe|pytorch", help="Style of a ResNet, if the file does not contain it.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean of the pixels, 0 to 255.")] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Standard deviation of the pixels, 0 to 255.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(metavar="NAME", help="Architecture, if it cannot be inferred from the weights.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the detector; may be repeated.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Continue if weights are missing or left over.")] = False,
) -> None:
    """Import a detector from torchvision or mmdet.

    Writes a checkpoint that can be evaluated, exported and used as a teacher. No
    code in the file is executed. Each assumption is printed with the option that
    changes it.
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
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML page with curves and images.")
    ] = None,
) -> None:
    """Compare finished runs.

    Prints AP, size and speed, and the share of the gap to the teacher that each
    distilled student closes.
    """
    from understudy.compare import table as results

    table = results.summarise(runs)
    _print(table)
    if html:
        from understudy.report import report_on

        print(f"\nPage: {report_on(html, table)}")


@app.command(epilog=_example("understudy demo --output demo"))
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the scenes and the training.")] = 0,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.")] = Path("demo"),
    train_teacher: Annotated[
        bool, typer.Option("--train-teacher", help="Train the teacher, too, instead of using the included one.")
    ] = False,
) -> None:
    """Run the whole workflow in a few minutes on drawn scenes.

    Draws a data set, trains a plain and a distilled student, compares them and
    writes an HTML page.
    """
    from understudy.demo import run_demo

    table = run_demo(output, seed, train_teacher)
    print()
    _print(table)
    print(f"\nCurves, detections side by side and richness masks: {output / 'report.html'}")


@app.command(epilog=_example("understudy config distill > student.yaml"))
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
    context_settings=_OVERRIDABLE,
    epilog=_example("understudy detectors", "understudy detectors gfl_resnet50 width_mult=0.5 num_classes=20"),
)
def detectors(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="Detector to show.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", show_default=False, help="Its keys, e.g. width_mult=0.5, num_classes=20."),
    ] = None,
) -> None:
    """List the detectors with their sizes, or show one in full."""
    from understudy.listing import detectors as listing

    print(listing.table() if name is None else listing.explain(name, options or []))


@app.command(
    epilog=_example("understudy methods", "understudy methods frs", "understudy methods own_method:ScoredFeatures")
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


def _print_folder(run: Path) -> None:
    """Print the folder of a finished run, in one process only."""
    from understudy.training.folder import is_first_process

    if is_first_process():
        print(f"Run folder: {run}")


def _print(renderable: "RenderableType") -> None:
    """Print a table, in colour on a terminal and as plain text of 80 columns otherwise."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0 (success), 1 (failed run), 2 (wrong input) or 130 (interrupted)."""
    if "" not in sys.path:
        sys.path.append("")  # the current folder, for a user's methods; last, so that it hides no other module
    app(arguments, prog_name="understudy")
