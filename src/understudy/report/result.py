"""The page of one result of a command: what the terminal shows, with its figures."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from understudy.figures import Captioned
from understudy.report.page import write_page
from understudy.report.sections import DataRow, DataTable, Entry, Section
from understudy.training.environment import environment


def report_on_result(page: Path, title: str, shown: Iterable[Any], charts: Mapping[str, Captioned]) -> None:
    """Write the page of a result.

    Args:
        page: the HTML file to write.
        title: of the page.
        shown: what the terminal shows: tables of rich, and lines.
        charts: the figures by name.

    Raises:
        RunError: it cannot be written.
    """
    parts = list(shown)
    made = environment()
    write_page(
        page,
        title=title,
        verdicts=(),
        sections=[
            Section("Figures", charts=list(charts.values())),
            Section(
                "Numbers",
                tables=[as_data(part) for part in parts if isinstance(part, Table)],
                notes=[str(part) for part in parts if not isinstance(part, Table) and str(part)],
                listed=True,
            ),
        ],
        facts={name: made[name] for name in ("started", "commit", "processor", "gpus") if made[name]}
        | {"versions": [f"{name} {version}" for name, version in made["packages"].items()]},
        commands=[made["command"]],
    )


def as_data(table: Table) -> DataTable:
    """Return a table of the terminal as one of the page, which sorts numbers as numbers.

    >>> table = Table("run", "AP", title="Runs")
    >>> table.add_row("plain", "31.5")
    >>> as_data(table).rows[0].entries
    (Entry(text='31.5', numbers=(31.5,), best=False),)
    """
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    rows = [DataRow(name, tuple(map(_entry, cells))) for name, *cells in zip(*columns, strict=True)]
    return DataTable(str(table.title or ""), tuple(str(column.header) for column in table.columns), tuple(rows))


def _entry(text: str) -> Entry:
    try:
        return Entry(text, (float(text.removesuffix("%")),))
    except ValueError:
        return Entry(text)
