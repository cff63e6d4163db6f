"""Commands that look into trained detectors: figures and tables about a teacher and its students."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.app import (
    OVERRIDABLE,
    AllowOutside,
    ConfigFile,
    MaxPixels,
    Output,
    Overrides,
    ReplaceFiles,
    app,
    example,
    limits_given,
    loading,
    not_an_option,
    report_drawn,
)
from understudy.errors import UserError

analyse = typer.Typer(
    name="analyse",
    help="Look into a teacher and its students: figures and tables.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(analyse)


Teacher = Annotated[Path, typer.Argument(metavar="TEACHER", help="Run folder or checkpoint.")]
Students = Annotated[list[Path], typer.Argument(metavar="STUDENT", help="Run folders or checkpoints.")]
Data = Annotated[
    Path | None, typer.Argument(metavar="DATA", show_default=False, help="Data set; default: that of the run.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DATA", show_default=False, help="Data set; default: that of the run.")
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split; default: the validation split of the run.")]
Images = Annotated[
    int | None, typer.Option(min=1, show_default=False, help="Images, evenly spread over the split; default: all.")
]
Names = Annotated[
    list[str] | None, typer.Option("--image", metavar="NAME", help="Image to use, by file name; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only; AP is from 0 to 1.")]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="Class score above which a cell counts as detected.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", "-m", metavar="NAME", help="As in `understudy distill`; may be repeated."),
]
RunsFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the runs, figures and numbers.")
]


@analyse.command(epilog=example("understudy analyse richness runs/teacher -o figures"))
def richness(
    teacher: Teacher,
    data: Data = None,
    split: Split = None,
    images: Annotated[int, typer.Option(min=1, help="Images to show.")] = 4,
    image: Names = None,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Show a teacher's feature richness per level.

    Richness is the highest class score of a cell, by which FRS weights its loss.
    """
    loading()
    from understudy.analysis.richness import analyse_richness

    compute = lambda: analyse_richness(teacher, data, split=split, images=images, names=image or ())  # noqa: E731
    report_drawn(compute, ("richness",), output, force, as_json)


@analyse.command(epilog=example("understudy analyse errors runs/teacher runs/plain runs/frs -o figures"))
def errors(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Run folders or checkpoints.")],
    data: DataOption = None,
    split: Split = None,
    images: Images = None,
    image: Names = None,
    shown: Annotated[int, typer.Option(min=1, help="Images to draw, the hardest ones.")] = 4,
    by: Annotated[
        str, typer.Option(metavar="difference|errors", help="Hardest: the models differ most, or most errors.")
    ] = "difference",
    score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a counted and drawn detection.")] = 0.3,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Classify the errors of models, side by side.

    The types are those of TIDE: duplicate, localisation, classification, both,
    background and missed. A second table has the AP50 that each type costs.
    """
    loading()
    from understudy.analysis.errors import FIGURES, ORDERS, analyse_errors

    if by not in ORDERS:
        raise UserError(f"--by: expected {' or '.join(ORDERS)}, got {by}")
    compute = lambda: analyse_errors(  # noqa: E731
        models, data, split=split, images=images, names=image or (), shown=shown, order=ORDERS[by], score=score
    )
    report_drawn(compute, FIGURES, output, force, as_json)


@analyse.command(epilog=example("understudy analyse entropy runs/teacher -o figures"))
def entropy(
    teacher: Teacher,
    data: Data = None,
    split: Split = None,
    images: Images = None,
    threshold: Threshold = 0.1,
    limit: Annotated[float, typer.Option(min=0.01, help="The histogram is over (-limit, limit).")] = 5.0,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Measure the entropy of a teacher's features by region.

    The regions are TP, FP, FN and TN: cells that the teacher detects, cells of
    objects, both or neither.
    """
    loading()
    from understudy.analysis.entropy import analyse_entropy

    compute = lambda: analyse_entropy(  # noqa: E731
        teacher, data, split=split, images=images, threshold=threshold, limit=limit
    )
    report_drawn(compute, ("entropy",), output, force, as_json)


@analyse.command(epilog=example("understudy analyse ranks runs/teacher runs/plain runs/rm -o figures"))
def ranks(
    teacher: Teacher,
    students: Students,
    data: DataOption = None,
    split: Split = None,
    images: Images = None,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Compare the ranks of anchors of students and teacher.

    How far a student ranks the anchors of each object as the teacher does, which
    is what rank mimicking teaches. Give students before and after
    distillation.
    """
    loading()
    from understudy.analysis.ranks import analyse_ranks

    compute = lambda: analyse_ranks(teacher, students, data, split=split, images=images)  # noqa: E731
    report_drawn(compute, ("ranks",), output, force, as_json)


@analyse.command(epilog=example("understudy analyse imitation runs/teacher runs/plain runs/pfi -o figures"))
def imitation(
    teacher: Teacher,
    students: Students,
    data: DataOption = None,
    split: Split = None,
    images: Images = None,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Correlate feature and prediction differences.

    In each cell, between students and teacher, by feature level. PFI weights
    the first by the second. Give students before and after distillation.
    """
    loading()
    from understudy.analysis.imitation import analyse_imitation

    compute = lambda: analyse_imitation(teacher, students, data, split=split, images=images)  # noqa: E731
    report_drawn(compute, ("imitation", "imitation_cells"), output, force, as_json)


@analyse.command(epilog=example("understudy analyse proposals runs/teacher runs/plain -o figures"))
def proposals(
    teacher: Teacher,
    students: Students,
    data: DataOption = None,
    split: Split = None,
    images: Images = None,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Measure the recall of the proposals of Faster R-CNNs.

    Methods that compare predictions imitate the teacher's proposals. They may do
    harm if these find fewer objects than those of the plain student.
    """
    loading()
    from understudy.analysis.proposals import analyse_proposals

    compute = lambda: analyse_proposals(teacher, students, data, split=split, images=images)  # noqa: E731
    report_drawn(compute, ("proposals",), output, force, as_json)


@analyse.command(
    context_settings=OVERRIDABLE,
    epilog=example("understudy analyse regions -c student.yaml teacher=runs/teacher -o regions"),
)
def regions(
    output: RunsFolder,
    config: ConfigFile = None,
    method: Methods = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="plain, gt, tp, tp+fp, tp+tn or soft; may be repeated; default: all."),
    ] = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Train and compare the regions of FRS' Table 4.

    Each run has the same budget. Repeat the command after an interruption:
    finished runs are reused, others continue.
    """
    loading()
    from understudy.analysis.regions import analyse_regions

    compute = lambda: analyse_regions(  # noqa: E731
        output, config, overrides or [], method or [], regions=region or [], say=_say
    )
    report_drawn(compute, ("regions",), output, force, as_json)


@analyse.command(
    context_settings=OVERRIDABLE,
    epilog=example(
        "understudy analyse teachers runs/from_r50 runs/from_r101 runs/plain",
        "understudy analyse teachers runs/r50 runs/r101 -c student.yaml -o sweep",
    ),
)
def teachers(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|TEACHER|KEY=VALUE",
            help="Distilled runs; with a config, the teachers to train with.",
            callback=not_an_option,
        ),
    ],
    config: ConfigFile = None,
    method: Methods = None,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
) -> None:
    """Plot students' AP against their teachers' AP and size.

    Reads finished distilled runs. With a config (-c or KEY=VALUE), trains the
    same student with each teacher first; repeat the command after an
    interruption.
    """
    loading()
    from understudy.analysis.teachers import compare_teachers, train_with_teachers

    found = [Path(each) for each in paths if "=" not in each or Path(each).exists()]
    keys = [each for each in paths if Path(each) not in found]
    if not (config or keys or method):
        compute = lambda: compare_teachers(found)  # noqa: E731
    elif output is None:
        raise UserError("With a config, students are trained: name the folder of their runs, --output FOLDER.")
    else:
        compute = lambda: train_with_teachers(found, output, config, keys, method or [], say=_say)  # noqa: E731
    report_drawn(compute, ("teachers", "teachers_size"), output, force, as_json)


@app.command(hidden=True, epilog=example("understudy analyse swap runs/teacher runs/student -o figures"))
@analyse.command(epilog=example("understudy analyse swap runs/teacher runs/student -o figures"))
def swap(
    teacher: Teacher,
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Run folder (its last.ckpt) or checkpoint.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", show_default=False, help="Data set; default: that of the student's run."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split; default: the validation split of that run.")
    ] = None,
    output: Output = None,
    force: ReplaceFiles = False,
    as_json: AsJson = False,
    allow_outside: AllowOutside = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Evaluate a teacher on a student's feature maps.

    The feature maps are used directly if the shapes match, and through the
    transforms that the method dist2 trained.
    """
    loading()
    from understudy.analysis.swap import swap_test

    limits = limits_given(allow_outside, max_pixels)
    compute = lambda: swap_test(teacher, student, data, split=split, limits=limits)  # noqa: E731
    report_drawn(compute, ("swap",), output, force, as_json)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
