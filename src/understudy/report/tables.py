"""The tables of the page: results, AP by size and class, what distillation changed in them, and losses."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from understudy.compare.rows import Row
from understudy.compare.table import Table
from understudy.report.sections import DataRow, DataTable, Entry
from understudy.report.views import RunView, TermView

ROLE_WORDS = {
    "teacher": "teacher",
    "plain": "plain student",
    "distilled": "distilled student",
    "exported": "exported file",
}

SIZES = {"small objects": "APs", "medium objects": "APm", "large objects": "APl"}
"""COCO's sizes: area below 32², up to 96², and above, in pixels of the original image."""

NUMBERS = {
    "AP": ("AP", "AP_spread"),
    "AP50": ("AP50",),
    "AP75": ("AP75",),
    "Params\n(M)": ("parameters",),
    "Images\n/ s": ("images_per_second",),
    "vs.\nteacher": ("speed_ratio",),
    "Gap\nclosed": ("gap_closed",),
}
"""The numbers in :meth:`Row.to_dict` that a column of :meth:`Table.columns` shows."""


def results_table(table: Table, colours: Mapping[str, str]) -> DataTable:
    """Return the comparison; its columns are those of the terminal."""
    columns = table.columns()
    rows = []
    for number, row in enumerate(table.rows):
        known = row.to_dict()
        entries = []
        for title, texts in columns.items():
            values = [known[key] for key in NUMBERS.get(title, ())]
            entries.append(Entry(texts[number], tuple(value for value in values if value is not None)))
        runs = f", {len(row.runs)} runs" if len(row.runs) > 1 else ""
        runtime = f", {row.runs[0].runtime}" if row.runs[0].runtime else ""
        detail = f"{ROLE_WORDS[row.role]}, {row.config.detector.name}{runtime}{runs}"
        rows.append(DataRow(row.name, tuple(entries), detail, colours[row.name]))
    return DataTable("", ("run", *columns), tuple(rows))


# ------------------------------------------------------------------------------------------------- sizes and classes


def parts_of_ap(row: Row) -> dict[str, float]:
    """Return the AP of each size and of each class of a row, the mean over its runs, 0..1; nan if not defined."""
    parts = {name: row.mean(number) for name, number in SIZES.items()}
    for name in _classes([row]):
        parts[_class_part(name)] = _mean(run.evaluation.per_class.get(name, math.nan) for run in row.runs)
    return parts


def part_tables(table: Table) -> list[DataTable]:
    """Return the AP of every row by size and by class, the mean over its runs; the best student is in bold."""
    groups = {row.name: row for row in table.rows}
    parts = {group: parts_of_ap(row) for group, row in groups.items()}
    students = [group for group, row in groups.items() if row.role in ("plain", "distilled")]

    def filled(name: str, key: str) -> DataRow:
        values = {group: each.get(key, math.nan) for group, each in parts.items()}
        known = [values[group] for group in students if not math.isnan(values[group])]
        best = max(known) if len(known) > 1 else None
        entries = [Entry.percent(value, best=group in students and value == best) for group, value in values.items()]
        return DataRow(name, tuple(entries))

    sizes = tuple(filled(name, name) for name in SIZES)
    classes = tuple(filled(name, _class_part(name)) for name in _classes(table.rows))
    notes = ("AP in percent, the mean over the runs of a row; the best student in bold.",)
    return [
        DataTable("By size", ("size", *groups), sizes),
        *([DataTable("By class", ("class", *groups), classes, notes)] if classes else []),
    ]


def changes(table: Table) -> dict[str, dict[str, float]]:
    """Return by how much each distilled row is better than its plain student, -1..1, by size and class.

    Returns:
        By name of the part ("small objects", "class cat"), for each distilled row with a plain student the difference
        of the two APs as they are shown, so that a reader who subtracts them finds the same number. Largest mean
        difference first; parts without a difference are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for row in table.rows:
        if row.plain is None:
            continue
        plain = parts_of_ap(row.plain)
        for name, value in parts_of_ap(row).items():
            shown = round(100 * value, 1) - round(100 * plain.get(name, math.nan), 1)
            if not math.isnan(shown):
                found.setdefault(name, {})[row.name] = round(shown, 1) / 100
    return dict(sorted(found.items(), key=lambda part: -statistics.fmean(part[1].values())))


def change_table(table: Table) -> DataTable | None:
    """Return what distillation changed by size and class, in AP points; None without a pair of students."""
    found = changes(table)
    groups = list(dict.fromkeys(group for each in found.values() for group in each))
    rows = tuple(
        DataRow(name, tuple(Entry.difference(each.get(group)) for group in groups)) for name, each in found.items()
    )
    return DataTable("", ("objects", *groups), rows) if rows else None


def _class_part(name: str) -> str:
    return f"class {name}"


def _classes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for run in row.runs for name in run.evaluation.per_class))


def _mean(values) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


# ------------------------------------------------------------------------------------------------------------ losses


def term_tables(runs: Sequence[RunView]) -> list[DataTable]:
    """Return the losses of each distilled row: raw, their weights, and weighted; means over the runs of the row."""
    columns = ("loss", "raw, first epoch", "raw, last epoch", "weight", "weighted, last epoch")
    tables = []
    for group in dict.fromkeys(run.group for run in runs if run.terms):
        members = [run for run in runs if run.group == group and run.terms]
        names = dict.fromkeys(term.name for run in members for term in run.terms)
        rows = tuple(_term_row([term for run in members for term in run.terms if term.name == name]) for name in names)
        tables.append(DataTable(f"Losses and weights of {group}", columns, rows))
    return tables


def _term_row(terms: Sequence[TermView]) -> DataRow:
    """Return the row of one loss, from the same loss of several runs."""

    def mean(part: Callable[[TermView], float]) -> Entry:
        return Entry.of(statistics.fmean(part(term) for term in terms))

    own = terms[0].weight is None
    weight = Entry("1 (its own)", (1.0,)) if own else mean(lambda term: term.weight or 0.0)
    entries = (mean(lambda term: term.first), mean(lambda term: term.last), weight, mean(lambda term: term.weighted))
    return DataRow(terms[0].name, entries)
