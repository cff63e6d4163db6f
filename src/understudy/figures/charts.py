"""Charts: lines, bars and clouds of points over axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from understudy.figures.style import INK, MUTED, Style, dress, label, legend_above, legend_of_styles

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart, with a band around it if it is the mean of several runs.

    Attributes:
        name: its entry in the legend; lines of the same name share one.
        style: colours that are legible on white and on black, line and marker.
        x, y: (P,) the points; a y that is not finite leaves a gap.
        low, high: (P,) the lower and the upper edge of the band; empty: no band.
    """

    name: str
    style: Style
    x: Array
    y: Array
    low: Array = field(default_factory=lambda: np.empty(0))
    high: Array = field(default_factory=lambda: np.empty(0))


def curve_chart(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    integers: bool = True,
    markers: bool = True,
    top: float | None = None,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draw lines and their bands over an axis that begins at zero, with a legend.

    Args:
        curves: the lines.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        integers: the horizontal axis counts something.
        markers: mark every point; otherwise about eight points of a line.
        top: upper end of the vertical axis; None: that of the curves.
        levels: heights of thin horizontal lines for comparison, by name.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        every = 1 if markers else max(1, len(curve.x) // 8)
        draw_curve(axes, curve, width=2, marker=curve.style.marker, markersize=4.5, markevery=every)
    for name, height in (levels or {}).items():
        axes.axhline(height, color=MUTED, linewidth=1.2)
        words = f"{label(name)}: {height:.1f}"
        axes.annotate(
            words,
            (0.01, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=MUTED,
        )
    dress(axes, x_label=x_label, y_label=y_label, top=top, integers=integers)
    legend_of_styles(figure, {curve.name: curve.style for curve in curves})
    return figure


def draw_curve(axes: Axes, curve: Curve, *, width: float, **line: Any) -> None:
    """Draw a line and the band around it."""
    style = curve.style
    line |= {"color": style.colour, "linestyle": style.dash, "linewidth": width, "label": label(curve.name)}
    axes.plot(curve.x, curve.y, **line)
    if curve.low.size:
        axes.fill_between(curve.x, curve.low, curve.high, color=style.colour, alpha=0.16, linewidth=0)


def difference_chart(
    names: Sequence[str], series: Mapping[str, Sequence[float]], styles: Mapping[str, Style], *, x_label: str
) -> Figure:
    """Draw differences as points right and left of a line at zero, a line of the chart for each name.

    Args:
        names: top to bottom, N of them.
        series: by its name in the legend, N differences; one that is not finite has no point.
        styles: of each series.
        x_label: of the horizontal axis, with its unit.
    """
    figure = Figure(figsize=(8, 0.26 * len(names) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(names))
    for name, values in series.items():
        style = styles[name]
        axes.scatter(values, places, color=style.colour, marker=style.marker, s=36, zorder=3, alpha=0.9)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(places, [label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(x_label, color=INK)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_axisbelow(True)
    axes.grid(color=MUTED, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    legend_of_styles(figure, {name: styles[name] for name in series})
    return figure


def bar_chart(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    *,
    x_label: str,
    y_label: str,
    form: str = ".2f",
    line: tuple[str, float] | None = None,
) -> Figure:
    """Draw a group of bars for each name on the horizontal axis, each bar with its value, over an axis through zero.

    A group is centred at its name, whatever the number of its bars.

    Args:
        groups: the G names, left to right.
        series: by its name in the legend, G values; one that is not finite has no bar.
        colours: of each series.
        x_label: of the horizontal axis.
        y_label: of the vertical axis, with its unit.
        form: format of the values.
        line: name and value of a dashed line for comparison.
    """
    figure = Figure(figsize=(max(6.4, 1.1 + 0.42 * len(groups) * (len(series) + 0.6)), 3.8), layout="constrained")
    axes = figure.add_subplot()
    width = 0.84 / len(series)
    known = np.isfinite(np.array(list(series.values()), dtype=float))  # (series, G)
    before = known.cumsum(0) - known
    centred = np.arange(len(groups)) + (before - (known.sum(0) - 1) / 2) * width
    for (name, values), places in zip(series.items(), centred, strict=True):
        heights = np.asarray(values, dtype=float)
        bars = axes.bar(places, np.nan_to_num(heights), 0.92 * width, color=colours[name])
        labels = [f"{height:{form}}" if np.isfinite(height) else "" for height in heights]
        axes.bar_label(bars, labels, fontsize=7, color=INK, padding=2)
    lines = [axes.axhline(line[1], color=INK, linestyle="--", linewidth=1, label=label(line[0]))] if line else []
    dress(axes, x_label=x_label, y_label=y_label)
    low = min((float(value) for values in series.values() for value in values if np.isfinite(value)), default=0.0)
    if low < 0:
        axes.set_ylim(bottom=low - 0.1 * (axes.get_ylim()[1] - low))  # room for the label below the bar
        axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(groups)), [label(group) for group in groups])
    legend_above(figure, {name: colours[name] for name in series if len(series) > 1}, lines)
    return figure


def cloud_chart(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]], colours: Mapping[str, str], *, x_label: str, y_label: str
) -> Figure:
    """Draw clouds of points over two logarithmic axes, a panel for each title, the same series in all.

    Args:
        panels: by title, for each series x and y, (P,) each, above zero.
        colours: of each series.
        x_label: of the horizontal axes.
        y_label: of the vertical axes.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.9 * rows + 0.4), layout="constrained")
    for number, (title, series) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for name, (x, y) in series.items():
            axes.scatter(x, y, color=colours[name], s=5, alpha=0.45, linewidths=0, rasterized=True)
        for values, scale in zip(zip(*series.values(), strict=True), (axes.set_xscale, axes.set_yscale), strict=True):
            if any((each > 0).any() for each in values):  # not if a detector is compared with itself
                scale("log")
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())  # else there are powers of ten
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.tick_params(which="both", colors=MUTED, labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.set_xlabel(x_label if number > len(panels) - columns else "", fontsize=8, color=INK)
        axes.set_ylabel(y_label if number % columns == 1 or columns == 1 else "", fontsize=8, color=INK)
    legend_above(figure, {name: colours[name] for name in next(iter(panels.values()))})
    return figure


def loss_charts(terms: Mapping[str, Sequence[Curve]]) -> Figure:
    """Draw a small chart for each loss, its axis from zero: logged values faint or a band, their running mean on top.

    Args:
        terms: by the name of the loss (at least one), a curve for each row that has it.
    """
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(9.6, 2.4 * rows + 0.5), layout="constrained")
    for number, (term, curves) in enumerate(terms.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for curve in curves:
            if not curve.low.size:
                axes.plot(curve.x, curve.y, color=curve.style.colour, linewidth=0.6, alpha=0.3)
            smooth = [running_mean(values) for values in (curve.y, curve.low, curve.high)]
            draw_curve(axes, Curve(curve.name, curve.style, curve.x, *smooth), width=1.8)
        # The first values are often ten times the rest and would flatten everything after them.
        values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
        top = _readable_top(values)
        dress(axes, x_label="step" if number > len(terms) - columns else "", y_label="", top=top)
        cut = " (first values above the frame)" if values.size and top < values.max() else ""
        axes.set_title(f"{label(term, 40)}{cut}", fontsize=9, color=INK, loc="left")
    legend_of_styles(figure, {curve.name: curve.style for curves in terms.values() for curve in curves})
    return figure


def running_mean(values: Array) -> Array:
    """Average over a centred window of about a twentieth of the curve, shorter at its ends: (P,) to (P,)."""
    half = len(values) // 40
    if half == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    start = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[end] - total[start]) / (end - start)


def _readable_top(values: Array) -> float:
    """Choose the upper end of a loss axis: the maximum, or less if only a few first values are far above the rest."""
    if not values.size or values.max() <= 0:
        return 1.0
    usual = float(np.quantile(values, 0.97))
    return 1.05 * (float(values.max()) if values.max() < 2 * usual else 1.3 * usual)
