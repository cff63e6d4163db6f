"""Commands that bring detectors in and take them out."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.app import CheckpointPath, app, example, loading


@app.command(epilog=example("understudy export runs/student deploy"))
def export(
    checkpoint: CheckpointPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder.")],
) -> None:
    """Export a detector that needs only torch and torchvision."""
    loading()
    from understudy import export as exporting

    exporting.export(checkpoint, folder)
    print(f"Exported to {folder}")


@app.command(
    "import",
    epilog=example("understudy import gfl_r101_fpn.pth", "understudy import frcnn.pth --classes cat,dog -o cats.ckpt"),
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
    loading()
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
