"""The charts of the page that show runs over time; the runs of one row are one curve with a band."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from understudy import figures
from understudy.figures import Captioned, Curve, Style
from understudy.report.views import RunView

Array = NDArray[np.floating]

BAND = (
    "A line is the mean over the runs of a row, which differ in the seed only; the band reaches from the lowest to the "
    "highest. A line ends with the shortest of its runs."
)


def ap_chart(runs: Sequence[RunView], styles: Mapping[str, Style]) -> Captioned | None:
    """Draw the AP of every student by epoch, and a line at that of each teacher; None if no run was evaluated.

    Without a student, the teachers are curves.
    """
    students = _students(runs)
    curves = _curves(students, styles, lambda run: (run.metrics, "epoch", "AP"), scale=100)
    if not curves:
        return None
    teachers = {run.group: run.result.get("coco", {}).get("AP") for run in reversed(runs) if run not in students}
    levels = {f"{name}, at its best": 100 * ap for name, ap in teachers.items() if ap is not None}
    chart = figures.curve_chart(curves, x_label="epoch", y_label="AP in %", levels=levels)
    return Captioned(chart, f"On the validation images, after each evaluated epoch.{_band(curves)}")


def share_chart(runs: Sequence[RunView], styles: Mapping[str, Style]) -> Captioned | None:
    """Draw the share of the student's gradient that came from distillation; None if there is no distilled run."""
    distilled = [run for run in runs if run.role == "distilled"]
    curves = _curves(distilled, styles, lambda run: (run.losses, "step", "distillation_share"), scale=100)
    if not curves:
        return None
    chart = figures.curve_chart(curves, x_label="step", y_label="share of distillation in %", markers=False, top=100.0)
    caption = (
        "Share of the student's gradient that came from the distillation terms, at the steps at which it was measured. "
        "Near 100 % the student's own losses have almost no effect, near 0 % distillation has almost none."
    )
    return Captioned(chart, caption + _band(curves))


def loss_chart(runs: Sequence[RunView], styles: Mapping[str, Style]) -> Captioned | None:
    """Draw every named loss of the students, a small chart each; None if there is none.

    A teacher is often trained for longer, and is left out beside students.
    """
    runs = _students(runs)
    terms = dict.fromkeys(term for run in runs for term in run.loss_terms)
    charts = {term: _curves(runs, styles, lambda run, term=term: (run.losses, "step", term)) for term in terms}
    charts = {term: curves for term, curves in charts.items() if curves}
    if not charts:
        return None
    caption = (
        'Each loss, unweighted: its running mean, and faint the logged values of a single run. "total" is the weighted '
        "sum that is minimised."
    )
    band = _band([curve for curves in charts.values() for curve in curves])
    return Captioned(figures.loss_charts(charts), caption + band)


def _students(runs: Sequence[RunView]) -> list[RunView]:
    """Return the students among the runs; without any, all runs."""
    return [run for run in runs if run.role != "teacher"] or list(runs)


def _curves(
    runs: Sequence[RunView],
    styles: Mapping[str, Style],
    columns: Callable[[RunView], tuple[Mapping[str, Array], str, str]],
    scale: float = 1.0,
) -> list[Curve]:
    """Return a curve for each row of which a run has values.

    Args:
        runs: of all rows.
        styles: by the name of the row.
        columns: returns the columns of a run, and the names of those on the horizontal and on the vertical axis.
        scale: factor of the values.
    """
    groups: dict[str, list[tuple[Array, Array]]] = {}
    for run in runs:
        table, across, up = columns(run)
        values = table.get(up, np.empty(0))
        known = np.isfinite(values)
        if known.any():
            groups.setdefault(run.group, []).append((table[across][known], scale * values[known]))
    return [mean_curve(group, styles[group], members) for group, members in groups.items()]


def mean_curve(name: str, style: Style, members: Sequence[tuple[Array, Array]]) -> Curve:
    """Return the mean of the lines of several runs, and the band from the lowest to the highest.

    It has the points that all of them have: a mean over fewer runs would jump where one of them ends. If they share no
    point, the first line stands alone.

    Args:
        name: of the row.
        style: of the row.
        members: at least one; (P,) horizontal and vertical positions of each run, finite, no position twice.
    """
    shared = members[0][0]
    for x, _ in members[1:]:
        shared = np.intersect1d(shared, x)
    if len(members) == 1 or not shared.size:
        return Curve(name, style, *members[0])
    values = np.stack([y[np.isin(x, shared)] for x, y in members])
    return Curve(name, style, shared, values.mean(0), values.min(0), values.max(0))


def _band(curves: Sequence[Curve]) -> str:
    return f" {BAND}" if any(curve.low.size for curve in curves) else ""
