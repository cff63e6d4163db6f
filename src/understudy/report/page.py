"""The page: verdicts, and sections of tables, charts and pictures, in one HTML file that needs no other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from understudy import figures
from understudy.compare.table import Table
from understudy.figures import Captioned, Style
from understudy.files import write_output
from understudy.report.curves import ap_chart, loss_chart, share_chart
from understudy.report.sections import Section
from understudy.report.tables import change_table, changes, part_tables, results_table, term_tables
from understudy.report.views import RunView
from understudy.text import printable

SHOWN_CHANGES = 24
"""Sizes and classes in the chart of changes at most: half of them the largest gains, half the largest losses."""

NO_VERDICT = "None of these runs is a distilled student, so there is no verdict."


def write_report(
    page: Path,
    runs: Sequence[RunView],
    *,
    title: str,
    facts: Mapping[str, Any],
    table: Table,
    verdicts: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
    analyses: Sequence[Section] = (),
) -> None:
    """Write one self-contained HTML page about a few runs: no network access, no second file.

    Its only script sorts the tables; without it the page is complete.

    Args:
        page: the file to write; its folder is created if needed.
        runs: the runs of the table, from :func:`understudy.report.views.view_runs`.
        title: of the page.
        facts: further facts that are needed to repeat or judge the runs; values are text, numbers or lists of them.
        table: the comparison of the runs, from :func:`understudy.compare.table.summarise`.
        verdicts: sentences at the top; None: the verdicts of the table.
        sections: further sections, which follow the verdict.
        analyses: sections that follow the numbers, from :func:`understudy.report.analyses.view_analyses`.
    """
    styles = row_styles(runs)
    write_page(
        page,
        title=title,
        verdicts=([verdict.sentence for verdict in table.verdicts] if verdicts is None else verdicts) or [NO_VERDICT],
        sections=[*sections, *comparison_sections(runs, table), *analyses, *loss_sections(runs)],
        facts=facts,
        runs=[_run_section(run, styles[run.group].colour) for run in runs],
        commands=list(dict.fromkeys(run.environment["command"] for run in runs if "command" in run.environment)),
    )


def write_page(
    page: Path,
    *,
    title: str,
    verdicts: Sequence[str],
    sections: Sequence[Section],
    facts: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]] = (),
    commands: Sequence[str] = (),
) -> None:
    """Write a self-contained HTML page of sections.

    Args:
        page: the file to write; its folder is created if needed.
        title: of the page.
        verdicts: sentences at the top; empty: none.
        sections: of the page, in order.
        facts: needed to repeat or judge the numbers; values are text, numbers or lists of them.
        runs: name, colour, facts and config of each run.
        commands: with which the runs were made.
    """
    environment = Environment(
        loader=PackageLoader("understudy.report", "."), autoescape=True, undefined=StrictUndefined, finalize=_as_text
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    html = environment.get_template("page.html.j2").render(
        title=title,
        verdicts=verdicts,
        sections=sections,
        runs=runs,
        as_svg=figures.as_svg,
        as_image=figures.as_image,
        facts=_flat(facts),
        commands=commands,
    )
    write_output(page, html.encode())


def _as_text(value: Any) -> Any:
    """Write out characters of users' names that would reverse the text after them, or cannot be encoded."""
    return value if hasattr(value, "__html__") else printable(str(value))


def row_styles(runs: Sequence[RunView]) -> dict[str, Style]:
    """Return the colour, line and marker of each row, by its name."""
    return figures.styles({run.group: run.role for run in runs})


def comparison_sections(runs: Sequence[RunView], table: Table) -> list[Section]:
    """Return the sections about the numbers of a comparison; arguments as of :func:`write_report`."""
    styles = row_styles(runs)
    share = share_chart(runs, styles)
    curves = [chart for chart in (ap_chart(runs, styles),) if chart]
    return [
        _results(table, styles),
        *([Section("Average precision by epoch", charts=curves)] if curves else []),
        *([Section("Distillation's share of the gradient", charts=[share])] if share else []),
        *_changes(table, styles),
        Section("Average precision by size and class", tables=part_tables(table)),
    ]


def _results(table: Table, styles: Mapping[str, Style]) -> Section:
    explained = (
        "AP is COCO's average precision on the validation images, in percent: the mean over classes and over ten IoU "
        'thresholds (0.50 to 0.95). AP50 and AP75 are the AP at one threshold. "Gap closed" is the share of the AP '
        "difference between teacher and plain student that the distilled student closes."
    )
    colours = {name: style.colour for name, style in styles.items()}
    notes = (explained, *table.remarks)
    return Section("Results", tables=[results_table(table, colours)], notes=notes, listed=True)


def _changes(table: Table, styles: Mapping[str, Style]) -> list[Section]:
    """Return the section of the sizes and classes that gained or lost; none without a pair of students."""
    data = change_table(table)
    if not data:
        return []
    found = changes(table)
    names = list(found)
    half = SHOWN_CHANGES // 2
    shown = names if len(names) <= SHOWN_CHANGES else [*names[:half], *names[-half:]]
    series = {
        group: [100 * found[name].get(group, float("nan")) for name in shown]
        for group in dict.fromkeys(group for each in found.values() for group in each)
    }
    few = f" Shown are the {half} largest gains and the {half} largest losses." if len(shown) < len(names) else ""
    chart = Captioned(
        figures.difference_chart(shown, series, styles, x_label="AP, distilled minus plain, in points"),
        f"Right of the line the distilled student is better than its plain student, left of it worse.{few}",
    )
    notes = (
        "Differences in AP points between a distilled student and the plain student that it is compared with, means "
        "over their runs; the largest mean first. Sizes are COCO's: an object is small below 32² pixels of the "
        "original image, and large above 96². A class with few objects changes by chance alone.",
    )
    return [Section("Sizes and classes that gained", charts=[chart], tables=[data], notes=notes)]


def loss_sections(runs: Sequence[RunView]) -> list[Section]:
    """Return the section about the losses of the runs; none if they have logged nothing."""
    chart, tables = loss_chart(runs, row_styles(runs)), term_tables(runs)
    notes = (
        'Means over the logged steps of an epoch and over the runs of a row. "its own": losses of the student\'s own '
        "task, without a teacher. Published weights were tuned for other networks. If a weighted distillation term is "
        "many times the student's own losses, these have almost no effect; if it is a hundredth of them, the term has "
        "almost no effect.",
    )
    if not chart and not tables:
        return []
    charts = [chart] if chart else []
    return [Section("Losses during training", charts=charts, tables=tables, notes=notes if tables else ())]


def _run_section(run: RunView, colour: str) -> dict[str, Any]:
    """Return seed, times, versions, hardware and config of one run."""
    facts: dict[str, Any] = {
        "folder": run.folder,
        "seed": run.config.get("seed"),
        "best epoch": run.result.get("epoch"),
        "training time": _duration(run.result.get("train_seconds")),
        **{name: value for name, value in run.environment.items() if name != "command"},
    }
    return {"name": run.name, "colour": colour, "facts": _flat(facts), "config": run.config_text}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested facts into pairs of name and text; None and empty values are left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{label}: ")
        elif isinstance(value, list | tuple):
            pairs += [(label, ", ".join(map(str, value)))] if value else []
        elif value is not None:
            pairs.append((label, str(value)))
    return pairs


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
