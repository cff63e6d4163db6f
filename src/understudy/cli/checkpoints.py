"""Commands that bring detectors in and take them out."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from understudy.cli.app import CheckpointPath, app, example, loading
from understudy.errors import UserError


@app.command(
    epilog=example(
        "understudy export runs/student deploy",
        "understudy export runs/student deploy --format onnx --format openvino",
        "understudy export runs/student deploy --format onnx --size 320x416",
        "understudy export runs/student deploy --format onnx --int8 photos",
    )
)
def export(
    checkpoint: CheckpointPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="torch|onnx|openvino",
            show_default=False,
            help="What to write; may be repeated; default: torch.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Height and width of the images of a graph; default: any."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images at once, with --size.")] = 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="Export the predictions at every anchor, without the choice of detections.")
    ] = False,
    input: Annotated[
        Literal["float32", "uint8"], typer.Option(help="Type of the pixels of a graph: 0 to 1, or 0 to 255.")
    ] = "float32",
    opset: Annotated[int | None, typer.Option(metavar="N", show_default=False, help="ONNX opset; default: 18.")] = None,
    score: Annotated[
        float | None,
        typer.Option(
            "--score-threshold", metavar="X", show_default=False, help="Lowest score; default: the detector's own."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Licence of the weights, to be stated in the file.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Photos to compare file and detector on; default: those of the run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of DATA; default: the validation split of the run.")
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            show_default=False,
            help="Also quantise to INT8: ranges from its training split, AP on its validation split.",
        ),
    ] = None,
    max_ap_loss: Annotated[
        float, typer.Option(min=0, metavar="X", help="Largest loss of AP by INT8, in points.")
    ] = 1.0,
    calibration_photos: Annotated[
        int, typer.Option(min=1, metavar="N", help="Photos for the ranges of the activations in INT8.")
    ] = 64,
) -> None:
    """Export a detector for use without understudy.

    \b
    torch: weights and code that need only torch and torchvision.
    onnx: one file for ONNX Runtime, from pixels to detections.
    openvino: the same for OpenVINO.

    A graph is compared with the detector on a few photos. One that does not
    detect the same is not written, nor an INT8 file that loses more AP than
    --max-ap-loss.
    """
    loading()
    from understudy import export as exporting

    options: dict[str, Any] = {"size": _size(size), "batch": batch, "raw": raw, "input": input, "licence": licence}
    options |= {"score_threshold": score} | ({} if opset is None else {"opset": opset})
    quantise = {"data": int8, "limit": max_ap_loss, "calibrated": calibration_photos}
    for said in exporting.write(checkpoint, folder, formats or ["torch"], options, data, split, quantise):
        print(said)
    print(f"Exported to {folder}")


def _size(text: str | None) -> tuple[int, int] | None:
    """Read HxW."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size {text}: expected HxW, height and width in pixels, e.g. --size 320x416")
    return int(height), int(width)


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
