"""The tables of the page, as rows of text: results, losses, and AP by class."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from understudy.compare.table import Table
from understudy.report.views import RunView, group_names
from understudy.text import percent

_ROLE_WORDS = {"teacher": "teacher", "plain": "plain student", "distilled": "distilled student"}


def results_table(table: Table, colours: Mapping[str, str]) -> dict[str, Any]:
    """Return titles, rows and notes of the comparison."""
    columns = table.columns()
    rows = [
        {
            "name": row.name,
            "role": f"{_ROLE_WORDS[row.role]}, {row.config.detector.name}",
            "colour": colours[group],
            "cells": cells,
        }
        for group, row, cells in zip(group_names(table), table.rows, zip(*columns.values(), strict=True), strict=True)
    ]
    return {"columns": list(columns), "rows": rows, "notes": table.remarks}


def term_tables(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """Return the losses of each distilled run: raw, their weights, and weighted."""
    return [
        {
            "name": run.name,
            "rows": [
                {
                    "name": term.name,
                    "cells": [
                        f"{term.first:.4g}",
                        f"{term.last:.4g}",
                        "1 (its own)" if term.weight is None else f"{term.weight:.4g}",
                        f"{term.weighted:.4g}",
                    ],
                }
                for term in run.terms
            ],
        }
        for run in runs
        if run.terms
    ]


def class_table(runs: Sequence[RunView]) -> dict[str, Any]:
    """Return the AP of every class in every group, the mean over the group's runs; the best student is marked."""
    groups: dict[str, list[RunView]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    students = [group for group, members in groups.items() if members[0].role != "teacher"]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.result.get("per_class", {})):
        means = {group: _class_mean(members, name) for group, members in groups.items()}
        known = [mean for group in students if (mean := means[group]) is not None]
        best = max(known) if len(known) > 1 else None
        cells = [
            {
                "text": "-" if mean is None else percent(mean),
                "best": group in students and mean is not None and mean == best,
            }
            for group, mean in means.items()
        ]
        rows.append({"name": name, "cells": cells})
    return {"columns": list(groups), "rows": rows}


def _class_mean(runs: Sequence[RunView], name: str) -> float | None:
    values = [value for run in runs if (value := run.result.get("per_class", {}).get(name)) is not None]
    return fmean(values) if values else None
