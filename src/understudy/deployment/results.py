"""The result of a benchmark: its rows, as tables, JSON and CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from understudy.deployment.sizes import Sizes
from understudy.evaluation.speed import Speed
from understudy.text import percent

MEGABYTE = 1_000_000

FOR_P95 = 20
"""Calls from which on a 95th percentile is shown: of fewer it would be the slowest one."""


class Cell(NamedTuple):
    """A cell of a table: its text, and the unrounded numbers that the text shows, in the unit of the JSON."""

    text: str
    numbers: tuple[float, ...] = ()

    @classmethod
    def of(cls, value: float | None, form: str = ".1f", scale: float = 1.0) -> "Cell":
        """Return a number that is multiplied to be shown; ``-`` for None."""
        return cls("-") if value is None else cls(f"{value * scale:{form}}", (value,))


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of a competitor.

    Attributes:
        name: unique.
        path: of the checkpoint, run folder or file.
        runtime: library, version and device.
        speeds: by number of images of a batch; a batch that it does not take is absent.
        sizes: weights, multiply-adds, and bytes of the file.
        AP: 0..1; None: not measured.
        AP50: 0..1; None: not measured.
        peak_memory: bytes; None: not measured.
    """

    name: str
    path: Path
    runtime: str
    speeds: Mapping[int, Speed]
    sizes: Sizes
    AP: float | None = None
    AP50: float | None = None
    peak_memory: int | None = None

    def timed(self, batch: int, first: "Result") -> dict[str, float | None]:
        """Return times in milliseconds of a batch, images per second and their ratio to another competitor's."""
        names = ("p25_ms", "p50_ms", "p75_ms", "p95_ms", "images_per_second", "ratio")
        speed, reference = self.speeds.get(batch), first.speeds.get(batch)
        if speed is None:
            return dict.fromkeys(names)
        times = [speed.milliseconds(each) for each in (25, 50, 75)]
        slow = speed.milliseconds(95) if len(speed.seconds) >= FOR_P95 else None
        ratio = speed.images_per_second / reference.images_per_second if reference else None
        return dict(zip(names, (*times, slow, speed.images_per_second, ratio), strict=True))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Detectors measured beside each other.

    Attributes:
        rows: in the order in which they were given; ratios refer to the first.
        batches: images at once.
        threads: of every runtime.
        notes: what is needed to judge the numbers, one sentence or two each.
        measured_ap: whether there are APs.
    """

    rows: tuple[Result, ...]
    batches: tuple[int, ...]
    threads: int
    notes: tuple[str, ...]
    measured_ap: bool = True

    def speed_columns(self, batch: int) -> dict[str, list[Cell]]:
        """Return AP, if it was measured, and speed at a batch: the cells of the rows by title of the column."""
        timed = [row.timed(batch, self.rows[0]) for row in self.rows]
        columns: dict[str, list[Cell]] = {}
        if self.measured_ap and batch == self.batches[0]:
            for name, values in (("AP", [row.AP for row in self.rows]), ("AP50", [row.AP50 for row in self.rows])):
                columns[name] = [Cell("-") if ap is None else Cell(percent(ap), (ap,)) for ap in values]
        return columns | {
            "p50\nms": [Cell.of(each["p50_ms"]) for each in timed],
            "p25 to p75\nms": [_quartiles(each) for each in timed],
            "p95\nms": [Cell.of(each["p95_ms"]) for each in timed],
            "Images\n/ s": [Cell.of(each["images_per_second"]) for each in timed],
            "vs.\nfirst": [_ratio(each["ratio"]) for each in timed],
        }

    def size_columns(self) -> dict[str, list[Cell]]:
        """Return the sizes: the cells of the rows by title of the column."""
        parts: dict[str, Callable[[Result], Cell]] = {
            "Params\n(M)": lambda row: Cell.of(row.sizes.parameters, ".2f", 1e-6),
            "Multiply-adds\n(G)": lambda row: Cell.of(row.sizes.multiply_adds, ".2f", 1e-9),
            "File\n(MB)": lambda row: Cell.of(row.sizes.file_bytes, ".1f", 1 / MEGABYTE),
            "Peak memory\n(MB)": lambda row: Cell.of(row.peak_memory, ".0f", 1 / MEGABYTE),
        }
        return {title: [cell(row) for row in self.rows] for title, cell in parts.items()}

    def tables(self) -> dict[str, dict[str, list[Cell]]]:
        """Return the columns of every table by its title."""
        speeds = {
            "One image at a time" if batch == 1 else f"{batch} images at a time": self.speed_columns(batch)
            for batch in self.batches
        }
        return speeds | {"Size": self.size_columns()}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON; None was not measured."""
        return {
            "rows": [
                {
                    **self._known(row),
                    "speed": [{"batch": batch, **self._timed(row, batch)} for batch in self.batches],
                }
                for row in self.rows
            ],
            "threads": self.threads,
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """Return one line for each row and batch, with the values of :meth:`to_dict`."""
        text = io.StringIO()
        lines = [
            {**self._known(row), "threads": self.threads, "batch": batch, **self._timed(row, batch)}
            for row in self.rows
            for batch in self.batches
        ]
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def __rich__(self) -> Group:
        """Return the tables for a terminal of at least 80 columns, with the notes below them."""
        shown = [part for title, columns in self.tables().items() for part in (self._table(title, columns), "")]
        lines = RichTable.grid(padding=(0, 1))  # a grid, so that the second line of a note is indented
        lines.add_column()
        lines.add_column(overflow="fold")  # a long path is not cut
        for note in self.notes:
            lines.add_row("-", Text(note))
        return Group(*shown, lines)

    def _table(self, title: str, columns: Mapping[str, Sequence[Cell]]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(title, overflow="fold")
        for head in columns:
            table.add_column(head, justify="right", no_wrap=True)
        for row, cells in zip(self.rows, zip(*columns.values(), strict=True), strict=True):
            name = Text.assemble((row.name, "bold"), "\n", (row.runtime, "dim"))
            table.add_row(name, *(cell.text for cell in cells))
        return table

    def _known(self, row: Result) -> dict[str, Any]:
        return {
            "name": row.name,
            "path": str(row.path),
            "runtime": row.runtime,
            "AP": row.AP,
            "AP50": row.AP50,
            "parameters": row.sizes.parameters,
            "multiply_adds": row.sizes.multiply_adds,
            "file_bytes": row.sizes.file_bytes,
            "peak_memory_bytes": row.peak_memory,
        }

    def _timed(self, row: Result, batch: int) -> dict[str, Any]:
        speed = row.speeds.get(batch)
        calls = {"rounds": speed and speed.rounds, "calls": speed and len(speed.seconds)}
        return {**row.timed(batch, self.rows[0]), **calls}


def _quartiles(timed: Mapping[str, float | None]) -> Cell:
    low, high = timed["p25_ms"], timed["p75_ms"]
    return Cell("-") if low is None or high is None else Cell(f"{low:.1f} to {high:.1f}", (low, high))


def _ratio(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{value:.2f} x", (value,))
