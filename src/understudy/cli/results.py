"""Commands that measure finished runs and checkpoints."""

import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from understudy.cli.app import (
    AllowOutside,
    AsJson,
    Force,
    MaxPixels,
    Output,
    ReplaceFiles,
    RunnablePath,
    app,
    example,
    limits_given,
    loading,
    report_drawn,
    show_result,
)
from understudy.errors import UserError

RowsFile = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Also write the rows of the table as CSV.")
]

BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images per batch; has no effect on the result.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, max=256, metavar="N", show_default=False, help="Loaders of images; default: by images and cores."
    ),
]
Precision = Annotated[Literal["32", "bf16", "16"], typer.Option(help="Precision in bits; 16 needs a GPU.")]


@app.command(epilog=example("understudy evaluate runs/student", "understudy evaluate runs/student photos --json"))
def evaluate(
    checkpoint: RunnablePath,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", show_default=False, help="Data set; default: that of the training run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split; default: the validation split of the training run.")
    ] = None,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    precision: Precision = "32",
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NAME", help="Two names of one class, of detector and data; may be repeated."),
    ] = None,
    score: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest score of a detection in the confusion matrix.")
    ] = 0.3,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
    allow_outside: AllowOutside = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Evaluate a detector with the metrics of COCO and VOC.

    Prints COCO's 12 metrics and VOC's AP50, then AP and AP50 per class, and how
    many objects are detected, confused and missed. The figures are the confusion
    matrix, and precision over recall.
    """
    loading()
    from understudy import evaluation

    compute = partial(
        evaluation.evaluate,
        checkpoint,
        data,
        split=split,
        limits=limits_given(allow_outside, max_pixels),
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        score_threshold=score,
        aliases=_aliases(alias),
    )
    report_drawn(compute, ("confusion", "precision_recall"), output, force, as_json, json_name="evaluation")


def _aliases(pairs: list[str] | None) -> dict[str, str] | None:
    """Read pairs of names; None if there are none."""
    wrong = [pair for pair in pairs or [] if not all(pair.partition("=")[::2])]
    if wrong:
        raise UserError(f"--alias {wrong[0]}: expected NAME=NAME, e.g. --alias moped=scooter")
    return dict(pair.split("=", 1) for pair in pairs) if pairs else None


@app.command(
    epilog=example(
        "understudy predict runs/student holiday.jpg -o found",
        "understudy predict runs/student a.jpg b.jpg more -o found --score 0.5",
    )
)
def predict(
    checkpoint: RunnablePath,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Image, folder of images or data set; several images and folders."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder.")],
    score: Annotated[float, typer.Option(help="Lowest score of a drawn box, 0 to 1.")] = 0.3,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split, if SOURCE is a data set.")] = "val",
    batch_size: BatchSize = 8,
    workers: Workers = None,
    precision: Precision = "32",
    allow_outside: AllowOutside = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Detect objects in images and draw them.

    Writes the detections in COCO's format and the images with their boxes.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {score:g}")
    loading()
    from understudy.evaluation import prediction

    limits = limits_given(allow_outside, max_pixels)
    detections = prediction.predict(
        checkpoint,
        sources if len(sources) > 1 else sources[0],
        output,
        score,
        split=split,
        limits=limits,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
    )
    print(f"{len(detections)} detections: {output / 'detections.json'}; images with boxes: {output / 'images'}")


@app.command(
    epilog=example(
        "understudy benchmark runs/teacher runs/student deploy/student.onnx",
        "understudy benchmark deploy/student.onnx --data photos --threads 1 \\",
        "    --runtime onnxruntime --runtime openvino --html speed.html",
    )
)
def benchmark(
    detectors: Annotated[
        list[Path], typer.Argument(metavar="DETECTOR", help="Run folders, checkpoints, and .onnx and .xml files.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Data set whose images are used; default: that of the first run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split; default: the validation split of that run.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Time batches of N images, too.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            metavar="N",
            show_default=False,
            help="Threads of every runtime; default: those of PyTorch.",
        ),
    ] = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME",
            show_default=False,
            help="Runs .onnx files: onnxruntime (default) or openvino; may be repeated.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Time of a race, after which no further round begins.")
    ] = 20,
    ap: Annotated[bool, typer.Option("--ap/--no-ap", help="Evaluate each detector on the split.")] = True,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Of PyTorch and ONNX Runtime; OpenVINO uses the CPU.")
    ] = "cpu",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML page with a chart of AP against time.")
    ] = None,
    csv: RowsFile = None,
    as_json: AsJson = False,
    force: Force = False,
    allow_outside: AllowOutside = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Measure speed, AP, size and memory side by side.

    All are timed in one process, in turns, with the same threads, from resized
    pixels to detections. Other load on the machine slows down all of them, so
    compare the ratios, within one run of this command, and not the times.
    """
    loading()
    from understudy.deployment import benchmark as benchmarks
    from understudy.files import check_outputs

    check_outputs((html, csv), force)
    with redirect_stdout(sys.stderr):  # libraries print progress
        result = benchmarks.benchmark(
            detectors,
            data,
            split=split,
            batch=batch,
            threads=threads,
            libraries=runtimes or (),
            seconds=seconds,
            measure_ap=ap,
            device=device,
            limits=limits_given(allow_outside, max_pixels),
            say=print,
        )
    show_result(result, as_json)
    if csv:
        _write_rows(csv, result.to_csv(), as_json)
    if html:
        from understudy.report.benchmark import report_on_benchmark

        _say_file("Page", report_on_benchmark(html, result, force=force), as_json)


def _write_rows(file: Path, rows: str, as_json: bool) -> None:
    """Write rows as CSV."""
    from understudy.files import write_output

    write_output(file, rows.encode())
    _say_file("Rows", file, as_json)


def _say_file(what: str, file: Path, as_json: bool) -> None:
    """Name a file that was written, beside the JSON on stderr."""
    print(f"\n{what}: {file}", file=sys.stderr if as_json else sys.stdout)


@app.command(epilog=example("understudy compare runs/teacher runs/plain runs/student --html compare.html"))
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, checkpoints and exported files.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML page with curves and images.")
    ] = None,
    csv: RowsFile = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Compare finished runs.

    Prints AP, size and speed, and the share of the gap to the teacher that each
    distilled student closes. A checkpoint without a run folder, such as an
    imported teacher, and an exported file are evaluated on the data of the runs.
    JSON also lists every key of the config in which compared runs differ.
    """
    loading()
    from understudy.compare import table as results
    from understudy.files import check_outputs

    check_outputs((html, csv), force)
    with redirect_stdout(sys.stderr):  # libraries print progress
        table = results.summarise(runs)
    show_result(table, as_json)
    if csv:
        _write_rows(csv, table.to_csv(), as_json)
    if html:
        from understudy.report import report_on

        _say_file("Page", report_on(html, table, force=force), as_json)
