"""The table of runs: AP, size, speed and the gap closed, with the verdicts and notes below it."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from understudy.compare.notes import notes_on
from understudy.compare.rows import Row, rows_of
from understudy.compare.runs import read_runs
from understudy.compare.speed import with_speeds
from understudy.compare.verdict import Verdict
from understudy.errors import RunError, UserError
from understudy.evaluation import choose_device
from understudy.text import percent


@dataclass(frozen=True, slots=True)
class Table:
    """Runs compared.

    Attributes:
        rows: teachers, plain students, distilled students, exported files.
        notes: remarks that are needed to judge the numbers, one sentence or two each.
        speed: how speed was measured, in words; None if it was not.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    speed: str | None = None

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each distilled student, in the order of the rows."""
        return [row.verdict for row in self.rows if row.verdict]

    @property
    def remarks(self) -> list[str]:
        """The notes, and how speed was measured."""
        return [*self.notes, *([self.speed] if self.speed else [])]

    def columns(self) -> dict[str, list[str]]:
        """Return the title of each column of numbers, and the cells of its rows as text; ``-`` is not defined."""
        columns: dict[str, Callable[[Row], str]] = {
            "AP": _ap_with_spread,
            "AP50": lambda row: percent(row.mean("AP50")),
            "AP75": lambda row: percent(row.mean("AP75")),
            "Params\n(M)": lambda row: _formatted(row.runs[0].parameters, ".2f", factor=1e-6),
        }
        if self.speed:
            columns["Images\n/ s"] = lambda row: _formatted(row.images_per_second, ".1f")
            if any(row.speed_ratio is not None for row in self.rows):
                columns["vs.\nteacher"] = lambda row: _formatted(row.speed_ratio, ".2f", " x")
        if any(row.role == "distilled" for row in self.rows):
            columns["Gap\nclosed"] = lambda row: _formatted(row.gap_closed, ".0%")
        return {title: [cell(row) for row in self.rows] for title, cell in columns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON; None is not defined or was not measured."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "verdicts": [{"name": row.name, **asdict(row.verdict)} for row in self.rows if row.verdict],
            "notes": list(self.notes),
            "speed": self.speed,
        }

    def to_csv(self) -> str:
        """Return one line per row: the values of :meth:`to_dict` that are numbers or texts; lists are left out."""
        text = io.StringIO()
        lines = [
            {name: value for name, value in row.items() if not isinstance(value, list | dict)}
            | {"runs": len(row["folders"]), "gain": verdict.gain if verdict else None}
            for row, verdict in ((row.to_dict(), row.verdict) for row in self.rows)
        ]
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def __rich__(self) -> Group:
        """Return the table for a terminal of at least 80 columns, with verdicts and notes below it."""
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        columns = self.columns()
        table.add_column("Run")
        for title in columns:
            table.add_column(title, justify="right", no_wrap=True)
        for row, cells in zip(self.rows, zip(*columns.values(), strict=True), strict=True):
            name = f"{row.name} ({len(row.runs)} runs)" if len(row.runs) > 1 else row.name
            detail = "\n".join([row.config.detector.name, *([row.runs[0].runtime] if row.runs[0].runtime else [])])
            table.add_row(Text.assemble((name, "bold"), "\n", (detail, "dim")), *cells)
        lines = RichTable.grid(padding=(0, 1))  # a grid, so that the second line of a note is indented
        lines.add_column()
        lines.add_column(overflow="fold")  # a long path is not cut
        for line in [*(verdict.sentence for verdict in self.verdicts), *self.remarks]:
            lines.add_row("-", Text(line))
        return Group(table, "", lines)


def summarise(
    run_folders: Sequence[Path | str],
    *,
    measure_speed: bool = True,
    device: torch.device | str | None = None,
) -> Table:
    """Compare finished runs, checkpoints without a run folder, and exported files.

    A checkpoint or file is evaluated on the data that the runs were evaluated on. A run with ``teacher:`` in its config
    is a distilled student; the run or checkpoint that it names is the teacher; all others are plain students, apart
    from exported files. Runs that differ only in the seed are one row. A distilled student is compared with the plain
    one of the same detector. If there are several, the one with the fewest differences in data and budget is taken,
    then the one with the best AP.

    Args:
        run_folders: and checkpoints and exported files, in any order.
        measure_speed: load the detectors and time them; otherwise the table has no speed.
        device: on which they are timed, and checkpoints evaluated; by default a GPU if there is one.

    Raises:
        UserError: folders are no run folders or hold no result yet, or checkpoints or files cannot be evaluated beside
            the runs; all of them are listed.
    """
    rows = rows_of(read_runs([Path(folder) for folder in run_folders], device))
    notes = notes_on(rows)
    speed = None
    if measure_speed:
        try:
            rows, speed = with_speeds(rows, choose_device(device))
        except (UserError, RunError) as error:  # weights or images are gone: the rest of the table still holds
            notes.append(f"Speed was not measured: {error}")
    return Table(tuple(rows), tuple(notes), speed)


def _ap_with_spread(row: Row) -> str:
    spread = row.spread()
    return percent(row.mean()) + (f" ±{100 * spread:.1f}" if spread is not None else "")


def _formatted(value: float | None, form: str, unit: str = "", factor: float = 1) -> str:
    return "-" if value is None else f"{value * factor:{form}}{unit}"
