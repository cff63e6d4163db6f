"""Commands that check data and train detectors."""

import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.app import (
    OVERRIDABLE,
    AllowOutside,
    AsJson,
    ConfigFile,
    Force,
    MaxPixels,
    Overrides,
    RecipeName,
    app,
    example,
    limits_given,
    loading,
    print_folder,
    show,
    show_result,
    with_recipe,
)
from understudy.errors import UserError


@app.command(epilog=example("understudy check photos --sheet sheet.png", "understudy check VOC2007 VOC2012"))
def check(
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA", help="Data set: COCO, VOC or YOLO; several are checked as one.")
    ],
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw sample images with their boxes to this file.")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Detector whose anchors the boxes are compared with; default: the one that `train` trains by default.",
        ),
    ] = None,
    anchor_scale: Annotated[
        float | None,
        typer.Option(metavar="X", show_default=False, help="Its detector.anchor_scale; default: as a run chooses it."),
    ] = None,
    shorter_side: Annotated[
        int | None,
        typer.Option(min=32, max=32768, metavar="N", help="data.shorter_side of the training; default: likewise."),
    ] = None,
    longer_side: Annotated[
        int | None,
        typer.Option(min=32, max=32768, metavar="N", help="data.longer_side of the training; default: likewise."),
    ] = None,
    allow_outside: AllowOutside = False,
    max_pixels: MaxPixels = None,
    force: Force = False,
) -> None:
    """Check a data set and report all faults at once.

    It also compares the sizes of the boxes with the anchors of a detector, and
    finds images that two splits share. The exit code is 2 if there are faults.
    """
    if anchor_scale is not None and not 0 < anchor_scale < math.inf:
        raise UserError(f"--anchor-scale: expected a finite number above 0, got {anchor_scale:g}")
    loading()
    from understudy.config import DetectorConfig
    from understudy.data import LIMITS, DetectionData
    from understudy.data.check import check_data
    from understudy.detectors.anchor_scale import best_scale
    from understudy.detectors.shape_fit import describe_boxes
    from understudy.evaluation import choose_device
    from understudy.training.image_size import ImageSize, longest

    name = detector or DetectorConfig().name

    def boxes(split: DetectionData) -> tuple[str, list[str]]:
        shorter = shorter_side or ImageSize.of(split, choose_device().type).shorter_side
        longer, scale = longer_side or longest(shorter), anchor_scale
        if scale is None and (found := best_scale(name, split, shorter, longer)):
            scale = found.scale
        return describe_boxes(split, name, shorter, longer, scale)

    limits = limits_given(allow_outside, max_pixels) or LIMITS
    report = check_data(data, sheet, limits, force=force, describe_boxes=boxes)
    show(report)
    if not report.ok:
        raise typer.Exit(2)


@app.command(
    context_settings=OVERRIDABLE,
    epilog=example(
        "understudy suggest photos detector=gfl_resnet18",
        "understudy suggest photos teacher=runs/teacher batch_size=8 -o student.yaml",
    ),
)
def suggest(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Data set: COCO, VOC or YOLO; default: data.path.")
    ] = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
    recipe: RecipeName = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the values as a config file.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Print what a run would choose for data and machine, and why.

    One row for each key that may be left open: image size, anchors, initial
    weights, length, batch size. Then an estimate of time and memory. With
    teacher=RUN it is that of a distillation. Nothing is trained or downloaded.
    """
    from understudy.files import check_writable, write_output

    if output:
        check_writable(output, force)
    loading()
    from understudy.training.suggestion import suggest as choose

    values = with_recipe(recipe, overrides)
    if data:  # or the first KEY=VALUE, if the data set is named by a key
        values = [data if "=" in data and not Path(data).exists() else f"data.path={data}", *values]
    with redirect_stdout(sys.stderr):  # libraries print progress
        found = choose(config, values)
    show_result(found, as_json)
    if output:
        write_output(output, found.to_yaml().encode())
        if not as_json:
            print(f"Config file: {output}")


@app.command(
    context_settings=OVERRIDABLE,
    epilog=example(
        "understudy train run=runs/teacher data=photos", "understudy train -c teacher.yaml schedule.epochs=24"
    ),
)
def train(config: ConfigFile = None, recipe: RecipeName = None, overrides: Overrides = None) -> None:
    """Train a detector: a teacher, or a student without a teacher."""
    import understudy
    from understudy.config import TrainConfig, load_config

    loaded = load_config(TrainConfig, config, with_recipe(recipe, overrides))
    loading()
    print_folder(understudy.train(loaded))


@app.command(
    context_settings=OVERRIDABLE,
    epilog=example(
        "understudy distill run=runs/student data=photos teacher=runs/teacher \\",
        "    detector=gfl_resnet18 --method frs methods.frs.threshold=0.1",
        "understudy distill --recipe frs-retinanet-r50 run=runs/frs data=coco \\",
        "    teacher=r101.ckpt",
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
    recipe: RecipeName = None,
    overrides: Overrides = None,
) -> None:
    """Train a student with a teacher and distillation methods."""
    import understudy
    from understudy.config import DistillConfig, load_config

    loaded = load_config(DistillConfig, config, with_recipe(recipe, overrides), method or [])
    loading()
    print_folder(understudy.distill(loaded))


@app.command(epilog=example("understudy resume runs/student"))
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an interrupted run.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="Your own method of the run, package.module:Class; may be repeated.",
        ),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue with other data or another teacher than at the start.")
    ] = False,
) -> None:
    """Continue an interrupted run exactly where it stopped.

    A method of your own is code, so it is imported only if you name it again.
    """
    import understudy

    loading()
    print_folder(understudy.resume(run, method or [], accept_changes=accept_changes))
