"""The parts of the page: sections of sentences, typed tables, charts and rows of pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.figures import Captioned, Cell
from understudy.text import percent, signed


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table: its text, and the numbers that the text shows.

    Attributes:
        text: as shown.
        numbers: unrounded, in the unit of the JSON (AP in 0..1). The column is sorted by the first; empty: by the text.
        best: shown in bold.
    """

    text: str
    numbers: tuple[float, ...] = ()
    best: bool = False

    @classmethod
    def of(cls, value: float | None, form: str = ".4g", unit: str = "", **options: bool) -> "Entry":
        """Return a number in a format with its unit; ``-`` for None and nan.

        >>> Entry.of(0.8612, ".0%")
        Entry(text='86%', numbers=(0.8612,), best=False)
        """
        if value is None or math.isnan(value):
            return cls("-")
        return cls(f"{value:{form}}{unit}", (value,), **options)

    @classmethod
    def percent(cls, value: float | None, spread: float | None = None, **options: bool) -> "Entry":
        """Return an AP or another share, 0..1, in percent, with its spread if there is one.

        >>> Entry.percent(0.203, 0.012).text
        '20.3 ±1.2'
        """
        if value is None or math.isnan(value):
            return cls("-")
        if spread is None:
            return cls(percent(value), (value,), **options)
        return cls(f"{percent(value)} ±{100 * spread:.1f}", (value, spread), **options)

    @classmethod
    def difference(cls, value: float | None, low: float | None = None, high: float | None = None) -> "Entry":
        """Return a difference of shares, -1..1, in percent with its sign, and its interval if there is one.

        >>> Entry.difference(0.0121, -0.003, 0.027).text
        '+1.2 (-0.3 to +2.7)'
        """
        if value is None or math.isnan(value):
            return cls("-")
        if low is None or high is None:
            return cls(signed(value), (value,))
        return cls(f"{signed(value)} ({signed(low)} to {signed(high)})", (value, low, high))


@dataclass(frozen=True, slots=True)
class DataRow:
    """A row of a table.

    Attributes:
        name: in the first column.
        entries: one for each further column.
        detail: a second line below the name.
        colour: of a dot before the name; empty: none.
    """

    name: str
    entries: tuple[Entry, ...]
    detail: str = ""
    colour: str = ""


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table that knows its numbers: the reader sorts it by them, and a test finds each of them in the JSON.

    Attributes:
        title: above the table; empty: none.
        columns: their heads, that of the names first.
        rows: each with an entry for every column after the first.
        notes: sentences below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[DataRow, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [row.name for row in self.rows if len(row.entries) != len(self.columns) - 1]
        if wrong:
            raise ValueError(f"{self.title}: rows {wrong} do not have {len(self.columns) - 1} entries")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON: of every entry its text and its numbers."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [
                {
                    "name": row.name,
                    **({"detail": row.detail} if row.detail else {}),
                    "entries": [{"text": entry.text, "numbers": list(entry.numbers)} for entry in row.entries],
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page; its parts are shown in this order.

    Attributes:
        title: its head.
        sentences: paragraphs.
        legend: names and colours of what the pictures show.
        charts: each with its caption.
        tables: below the charts.
        pictures: rows of pictures, each with a head and words.
        notes: sentences at the end, small.
        listed: the notes are a list of remarks.
    """

    title: str
    sentences: Sequence[str] = ()
    charts: Sequence[Captioned] = ()
    tables: Sequence[DataTable] = ()
    legend: Mapping[str, str] | None = None
    pictures: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = ()
    listed: bool = False
