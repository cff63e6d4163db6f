"""The page of a benchmark: AP against time, and its tables."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy import figures
from understudy.deployment.results import Benchmark, Cell, Result
from understudy.figures import Captioned, Style
from understudy.files import check_writable
from understudy.report.page import write_page
from understudy.report.sections import DataRow, DataTable, Entry, Section
from understudy.text import percent


def report_on_benchmark(page: Path, result: Benchmark, *, force: bool = False) -> Path:
    """Write the page about a benchmark.

    Args:
        page: the HTML file to write.
        result: the benchmark.
        force: whether the page may replace an existing file.

    Returns:
        The page.

    Raises:
        UserError: the page exists.
        RunError: it cannot be written.
    """
    check_writable(page, force)
    runtimes = dict.fromkeys(row.runtime for row in result.rows)
    styles = figures.styles(dict.fromkeys(runtimes, "exported"))
    chart = _chart(result, styles)
    tables = [_table(result, title, columns, styles) for title, columns in result.tables().items()]
    write_page(
        page,
        title="Detectors compared as they are deployed",
        verdicts=_sentences(result),
        sections=[
            *([Section("AP against time", charts=[chart])] if chart else []),
            Section("Numbers", tables=tables, notes=result.notes, listed=True),
        ],
        facts={
            "machine": f"{platform.machine()}, {platform.system()}",
            "threads": result.threads,
            "runtimes": list(runtimes),
            "detectors": list(dict.fromkeys(str(row.path) for row in result.rows)),
        },
    )
    return page


def _chart(result: Benchmark, styles: Mapping[str, Style]) -> Captioned | None:
    """Draw AP against the time of one image; None without either."""
    timed = [(row, speed) for row in result.rows if (speed := row.speeds.get(1)) and row.AP is not None]
    if not timed:
        return None
    points = [
        figures.Point(
            row.name, speed.milliseconds(50), 100 * (row.AP or 0), *map(speed.milliseconds, (25, 75)), row.runtime
        )
        for row, speed in timed
    ]
    used = {runtime: style for runtime, style in styles.items() if any(row.runtime == runtime for row, _ in timed)}
    chart = figures.point_chart(points, used, x_label="milliseconds for one image", y_label="AP in %", from_zero=True)
    caption = (
        "Further up is more accurate, further left is faster. Points are medians of the calls, bars go from the 25th "
        "to the 75th percentile. The AP axis does not begin at zero."
    )
    return Captioned(chart, caption)


def _table(result: Benchmark, title: str, columns: Mapping[str, list[Cell]], styles: Mapping[str, Style]) -> DataTable:
    rows = [
        DataRow(row.name, tuple(Entry(*cell) for cell in cells), row.runtime, styles[row.runtime].colour)
        for row, cells in zip(result.rows, zip(*columns.values(), strict=True), strict=True)
    ]
    return DataTable(title, ("detector", *columns), tuple(rows))


def _sentences(result: Benchmark) -> list[str]:
    """Name the fastest detector, and the fastest of those with the highest AP."""
    timed = [row for row in result.rows if 1 in row.speeds]
    known = [(row, percent(row.AP)) for row in timed if row.AP is not None]
    sentences = [f"Fastest for one image: {_pace(timed, result)}."] if timed else []
    if known:
        highest = max((ap for _, ap in known), key=float)
        best = [row for row, ap in known if ap == highest]
        sentences.append(f"Fastest with the highest AP ({highest}): {_pace(best, result)}.")
    return sentences


def _pace(rows: Sequence[Result], result: Benchmark) -> str:
    """Name the fastest of some detectors."""
    row, first = max(rows, key=lambda row: row.speeds[1].images_per_second), result.rows[0]
    said = f"{row.name}, {row.speeds[1].milliseconds(50):.1f} ms (median)"
    ratio = row.timed(1, first)["ratio"]
    return said if ratio is None or row is first else f"{said}, {ratio:.2f} x the rate of {first.name}"
