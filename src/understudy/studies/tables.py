"""The tables of a study: for the terminal, and as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from understudy.studies.sentences import span
from understudy.text import percent, signed

if TYPE_CHECKING:
    from understudy.studies.results import ResultRow, StudyResult

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""COCO's numbers in the results."""


def terminal_table(result: "StudyResult") -> Table:
    """Return the table for a terminal of at least 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Row", overflow="fold")
    for title in ("AP", "AP50", "AP75", "vs.\nnone", "95 %\ninterval", "Gap\nclosed", "Time /\nstep", "MB /\nstep"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(Text(row.name), *cells(row))
    return table


def cells(row: "ResultRow") -> list[str]:
    """Return the cells of a row as text; ``-`` is not defined."""
    spread = row.spread()
    difference = row.difference
    known = difference is not None and difference.is_known
    return [
        percent(row.mean()) + (f" ±{100 * spread:.1f}" if spread is not None else ""),
        percent(row.mean("AP50")),
        percent(row.mean("AP75")),
        "-" if difference is None else signed(difference.mean),
        span(difference.low, difference.high) if difference and known else "-",
        "-" if row.gap_closed is None else f"{row.gap_closed:.0%}",
        f"{row.cost['ratio']:.2f} x",
        f"{row.cost['memory'] / 2**20:.0f}",
    ]


def rows_as_csv(result: "StudyResult") -> str:
    """Return one line for each row."""
    lines = []
    for row in result.rows:
        difference = row.difference
        lines.append(
            {
                "row": row.name,
                "seeds": len(row.runs),
                **{f"{name}_{what}": _cell(value) for name in NUMBERS for what, value in _both(row, name)},
                "difference": _cell(difference.mean if difference else None),
                "difference_low": _cell(difference.low if difference and difference.is_known else None),
                "difference_high": _cell(difference.high if difference and difference.is_known else None),
                "images_low": _cell(row.over_images[0] if row.over_images else None),
                "images_high": _cell(row.over_images[1] if row.over_images else None),
                "gap_closed": _cell(row.gap_closed),
                "epochs": row.epochs,
                "seconds_per_step": f"{row.cost['seconds']:.6g}",
                "time_ratio": f"{row.cost['ratio']:.4g}",
                "memory_per_step": row.cost["memory"],
                "kind": row.kind,
            }
        )
    return _as_csv(lines)


def runs_as_csv(result: "StudyResult") -> str:
    """Return one line for each run."""
    lines = [
        {
            "row": row.name,
            "seed": seed,
            **{name: _cell(row.values[name][number]) for name in NUMBERS},
            "folder": run.folder.path,
            "missing": "",
        }
        for row in result.rows
        for number, (seed, run) in enumerate(row.runs.items())
    ]
    lines += [
        {"row": row.name, "seed": seed, **dict.fromkeys(NUMBERS, ""), "folder": "", "missing": reason}
        for row in result.rows
        for seed, reason in row.missing.items()
    ]
    return _as_csv(lines)


def _both(row: "ResultRow", name: str) -> list[tuple[str, float | None]]:
    return [("mean", row.mean(name)), ("spread", row.spread(name))]


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6f}"


def _as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
