"""The page of a study: its table and its intervals, before the sections of every comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy.compare.notes import notes_on as notes_on_rows
from understudy.compare.rows import Row
from understudy.compare.runs import Run, read_runs
from understudy.compare.table import Table
from understudy.config import DistillConfig
from understudy.figures import Captioned, Style, interval_chart
from understudy.report import DataRow, DataTable, Entry, Section, report_on, view_runs
from understudy.report.page import row_styles
from understudy.studies.folder import StudyFolder
from understudy.studies.results import ResultRow, StudyResult
from understudy.studies.rows import NONE
from understudy.studies.sentences import notes_on, sentences_of
from understudy.studies.tables import NUMBERS

MEGABYTE = 2**20


def write_page(folder: StudyFolder, result: StudyResult, teachers: Mapping[str, Run]) -> None:
    """Write the page of a study; nothing if the plain student has no finished run.

    Args:
        folder: of the study.
        result: its numbers.
        teachers: the teachers' runs, by their path.

    Raises:
        UserError: a run folder or the data cannot be read.
        RunError: the page cannot be written.
    """
    table = as_table(result, teachers)
    if not result.rows[0].runs:
        return
    made = result.facts.get("made_with", {})
    report_on(
        folder.page,
        table,
        title=f"Study: {folder.path.resolve().name}",
        verdicts=sentences_of(result),
        sections=[study_section(result, row_styles(view_runs(table)))],
        facts={
            "seeds": list(result.plan.seeds),
            "teachers": [str(path) for path in result.plan.teachers],
            "understudy": made.get("understudy", "unknown"),
            "rows": [f"{row.name}: {row.text}" for row in result.plan.rows],
        },
        force=True,
    )


def as_table(result: StudyResult, teachers: Mapping[str, Run]) -> Table:
    """Return the finished runs as a comparison, with the study's names of the rows."""
    of_teachers = {path: Row(_teacher_name(path, teachers), "teacher", (run,)) for path, run in teachers.items()}
    plain: Row | None = None
    rows = []
    for row in result.rows:
        if not row.runs:
            continue
        runs = tuple(read_runs([run.folder.path for run in row.runs.values()]))
        config = runs[0].config
        if isinstance(config, DistillConfig):
            rows.append(Row(row.name, "distilled", runs, plain, of_teachers.get(str(config.teacher))))
        else:
            rows.append(Row(row.name, "plain", runs))
            plain = plain or rows[-1]
    every = [*of_teachers.values(), *rows]
    return Table(tuple(every), tuple(notes_on_rows(every)))


def _teacher_name(path: str, teachers: Mapping[str, Run]) -> str:
    return "teacher" if len(teachers) == 1 else f"teacher {'/'.join(Path(path).parts[-2:])}"


def study_section(result: StudyResult, styles: Mapping[str, Style]) -> Section:
    """Return the section with the study's tables and the chart of its intervals.

    Args:
        result: of the study.
        styles: of its rows, as on the rest of the page.
    """
    points = {row.name: found for row in result.rows if (found := _points(row))}
    charts: Sequence[Captioned] = ()
    if points:
        kinds = "95 % over seeds", "over images"
        chart = interval_chart(points, styles, x_label=f"AP against {NONE}, in points", kinds=kinds)
        charts = [Captioned(chart, "A difference whose interval crosses the line cannot be told from noise.")]
    return Section(
        "Differences, and whether they can be told from noise",
        charts=charts,
        tables=[difference_table(result), cost_table(result)],
        notes=tuple(notes_on(result)),
        listed=True,
    )


def difference_table(result: StudyResult) -> DataTable:
    """Return AP and its difference to the plain student."""
    columns = ("Row", "AP", "over seeds", "over images", "against none, as long", "gap closed", "verdict")
    rows = [DataRow(row.name, (*_aps(row, "AP"), *_differences(row))) for row in result.rows]
    return DataTable("Against the plain student, with 95 % intervals", columns, tuple(rows))


def cost_table(result: StudyResult) -> DataTable:
    """Return AP by size of the objects, and what a step costs."""
    columns = ("Row", "AP50", "AP75", "small", "medium", "large", "seeds", "epochs", "s / step", "time", "MB / step")
    rows = [DataRow(row.name, (*_aps(row, *NUMBERS[1:]), *_costs(row))) for row in result.rows]
    return DataTable("Other thresholds and sizes of objects, and the cost of a step", columns, tuple(rows))


def _aps(row: ResultRow, *names: str) -> tuple[Entry, ...]:
    return tuple(Entry.percent(row.mean(name), row.spread(name)) for name in names)


def _differences(row: ResultRow) -> tuple[Entry, ...]:
    own, longer = row.difference, row.to_longer
    nothing = Entry("-")
    return (
        Entry.difference(own.mean, *(own.to_list() or (None, None))) if own else nothing,
        Entry.difference(own.mean, *row.over_images) if own and row.over_images else nothing,
        Entry.difference(longer.mean, *(longer.to_list() or (None, None))) if longer else nothing,
        Entry.of(row.gap_closed, ".0%"),
        Entry(row.kind) if own else nothing,
    )


def _costs(row: ResultRow) -> tuple[Entry, ...]:
    return (
        Entry.of(len(row.runs), "d"),
        Entry.of(row.epochs, "d"),
        Entry.of(row.cost["seconds"], ".3g"),
        Entry.of(row.cost["ratio"], ".2f", " x"),
        Entry(f"{row.cost['memory'] / MEGABYTE:.0f}", (row.cost["memory"],)),
    )


def _points(row: ResultRow) -> tuple[float, tuple[float, float] | None, tuple[float, float] | None] | None:
    if not row.difference:
        return None
    ends = row.difference.to_list()
    first = (100 * ends[0], 100 * ends[1]) if ends else None
    second = (100 * row.over_images[0], 100 * row.over_images[1]) if row.over_images else None
    return 100 * row.difference.mean, first, second
