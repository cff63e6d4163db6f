"""Student AP against teacher AP and size: the same student with several teachers (FRS, NeurIPS 2021, Fig. 6)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from understudy import figures
from understudy.analysis.sweep import plain_config, refuse_keys, run_all
from understudy.compare.differences import differences
from understudy.compare.rows import rows_of
from understudy.compare.runs import Run, read_runs, read_teacher, same_images, teachers_of
from understudy.config import DistillConfig, Source, load_config
from understudy.errors import UserError
from understudy.figures import Captioned
from understudy.text import percent

PLAIN = "plain"
"""Name and folder of the student that is trained without a teacher."""


@dataclass(frozen=True, slots=True)
class TaughtRun:
    """A student with its teacher; AP is COCO's, 0..1.

    Attributes:
        teacher: path of the teacher.
        name: of the teacher in the figure.
        detector: of the teacher.
        parameters: of the teacher.
        teacher_AP: of the teacher, on the same images.
        run: path of the student.
        student_AP: of the student.
    """

    teacher: str
    name: str
    detector: str
    parameters: int
    teacher_AP: float
    run: str
    student_AP: float


@dataclass(frozen=True, slots=True)
class TeachersResult:
    """Students of several teachers.

    Attributes:
        rows: by the AP of the teacher, lowest first.
        plain: AP of the student without a teacher, 0..1; None if it is not among the runs.
        notes: remarks that are needed to judge the numbers.
    """

    rows: tuple[TaughtRun, ...]
    plain: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        """Return a table for the terminal."""
        table = Table(title="Students by teacher", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("teacher", "detector", "Params (M)", "teacher AP", "student AP"):
            table.add_column(name, justify="left" if name in ("teacher", "detector") else "right")
        for row in self.rows:
            numbers = (percent(value) for value in (row.teacher_AP, row.student_AP))
            table.add_row(row.name, row.detector, f"{row.parameters / 1e6:.2f}", *numbers)
        plain = [] if self.plain is None else [f"AP of the plain student: {percent(self.plain)}"]
        return Group(table, *plain, *([""] if self.notes else []), *self.notes)

    def figures(self) -> dict[str, Captioned]:
        """Return two charts: student AP against the AP, and against the size of the teacher."""
        line = None if self.plain is None else ("plain student", 100 * self.plain)
        look: dict[str, Any] = {"y_label": "student AP in %", "line": line}
        styles = {"": figures.Style(figures.ROLE_COLOURS["distilled"])}
        by_ap = figures.point_chart(
            [figures.Point(row.name, 100 * row.teacher_AP, 100 * row.student_AP) for row in self.rows],
            styles,
            x_label="teacher AP in %",
            **look,
        )
        by_size = figures.point_chart(
            [figures.Point(row.name, row.parameters / 1e6, 100 * row.student_AP) for row in self.rows],
            styles,
            x_label="parameters of the teacher in millions",
            **look,
        )
        what = "AP of the same student with different teachers, against the {} of the teacher. After Fig. 6 of FRS."
        return {
            "teachers": Captioned(by_ap, what.format("AP")),
            "teachers_size": Captioned(by_size, what.format("size")),
        }


def train_with_teachers(
    teachers: Sequence[Path],
    output: Path,
    source: Source = None,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    *,
    say: Callable[[str], None] = print,
) -> TeachersResult:
    """Distil the same student from several teachers, and compare the students; finished runs are reused.

    Args:
        teachers: run folders or checkpoints.
        output: the folder of the runs, one folder for each teacher, and one for the plain student.
        source: a distill config, as in :func:`understudy.config.load_config`; its teacher is replaced.
        overrides: ``key=value`` arguments.
        methods: names of the methods.
        say: called with a line for each run.

    Raises:
        UserError: the config has faults, teachers share a name, or a folder holds another run.
        RunError: a run failed.
        KeyboardInterrupt: the user stopped; the same command continues.
    """
    refuse_keys(overrides, {"run": "--output", "teacher": "the teachers"})
    names = [_name(teacher) for teacher in teachers]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"Teachers are named after their folder or file, and these names are not unique: {', '.join(repeated)}."
        )
    if PLAIN in names:
        raise UserError(f"The folder {output / PLAIN} is that of the plain student: no teacher can be named {PLAIN}.")
    configs: dict[str, DistillConfig] = {}
    for name, teacher in zip(names, teachers, strict=True):
        own = [*overrides, f"teacher={teacher}", f"run={output / name}"]
        configs[name] = load_config(DistillConfig, source, own, methods)
    plain = plain_config(next(iter(configs.values())), output / PLAIN)
    return compare_teachers(run_all({PLAIN: plain, **configs}, say))


def compare_teachers(runs: Sequence[Path]) -> TeachersResult:
    """Compare finished distilled runs by their teachers; a plain run among them is the reference.

    A teacher without a result on the data of the runs is evaluated on it.

    Args:
        runs: folders of distilled runs, at most one of a plain student, and teachers.

    Raises:
        UserError: folders hold no finished run, none is a distilled one, or a teacher cannot be read.
    """
    found = read_runs(runs)
    taught = [(run, run.config.teacher) for run in found if isinstance(run.config, DistillConfig)]
    if not taught:
        raise UserError(
            "None of these is a distilled run, whose config names a teacher. To train a student with each of them, "
            "give a config: understudy analyse teachers TEACHER... -c student.yaml -o FOLDER"
        )
    known = teachers_of(found)
    read: dict[Path, Run] = {}
    rows = []
    for run, named in taught:
        teacher = known.get(run.folder)
        if teacher is None or not same_images(teacher, run):
            teacher = read[named] = read.get(named) or read_teacher(run)
        assert teacher.parameters is not None  # only an exported file has none, which is no teacher
        rows.append(
            TaughtRun(
                str(teacher.folder),
                _name(teacher.folder),
                teacher.config.detector.name,
                teacher.parameters,
                teacher.evaluation.coco["AP"],
                str(run.folder),
                run.evaluation.coco["AP"],
            )
        )
    rows.sort(key=lambda row: row.teacher_AP)
    plain = [row for row in rows_of([run for run in found if run not in known.values()]) if row.role == "plain"]
    reference = plain[0].mean() if len(plain) == 1 else None
    return TeachersResult(tuple(rows), reference, tuple(_notes([run for run, _ in taught], len(plain))))


def _name(path: Path) -> str:
    """Name a teacher after its run folder or file."""
    inner = path.name in ("best.ckpt", "last.ckpt")
    return path.resolve().parent.name if inner else path.resolve().name.removesuffix(".ckpt")


def _notes(taught: Sequence[Run], plain: int) -> Iterator[str]:
    first = taught[0]
    for run in taught[1:]:
        found = list(differences(first, run))
        found += ["detector"] if run.config.detector != first.config.detector else []
        if found:
            yield (
                f"{run.folder.name} and {first.folder.name} differ in {', '.join(found)}: the difference in AP is not "
                "due to the teacher alone."
            )
    if plain > 1:
        yield f"{plain} of the runs are plain students, so none is drawn as the reference."
    if len(taught) < 3:
        yield "Fewer than three students: no trend can be seen."
    yield "AP also varies with the seed: confirm small differences with further seeds."
