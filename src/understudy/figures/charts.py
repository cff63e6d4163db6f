"""Charts: lines, bars and points over axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from understudy.figures.style import INK, MUTED, dress, legend, legend_above

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: its entry in the legend; lines of the same name share one.
        colour: a hex colour, legible on white and on black.
        x, y: (P,) the points; a y that is not finite leaves a gap.
    """

    name: str
    colour: str
    x: Array
    y: Array


def curve_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, integers: bool = True) -> Figure:
    """Draw lines with a marker at every point, over an axis that begins at zero, with a legend.

    Args:
        curves: the lines.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        integers: the horizontal axis counts something.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    named: set[str] = set()
    for curve in curves:
        label = "" if curve.name in named else curve.name
        named.add(curve.name)
        axes.plot(curve.x, curve.y, color=curve.colour, label=label, linewidth=2, marker="o", markersize=4)
    dress(axes, x_label=x_label, y_label=y_label, integers=integers)
    legend(axes)
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
    for number, (name, values) in enumerate(series.items()):
        heights = np.asarray(values, dtype=float)
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        bars = axes.bar(places, np.nan_to_num(heights), 0.92 * width, color=colours[name])
        labels = [f"{height:{form}}" if np.isfinite(height) else "" for height in heights]
        axes.bar_label(bars, labels, fontsize=7, color=INK, padding=2)
    if line:
        axes.axhline(line[1], color=INK, linestyle="--", linewidth=1, label=line[0])
    dress(axes, x_label=x_label, y_label=y_label)
    low = min((float(value) for values in series.values() for value in values if np.isfinite(value)), default=0.0)
    if low < 0:
        axes.set_ylim(bottom=low - 0.1 * (axes.get_ylim()[1] - low))  # room for the label below the bar
        axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(groups)), groups)
    named = {name: colours[name] for name in series if len(series) > 1}
    if named:
        legend_above(figure, named)
    elif line:
        legend(axes)
    return figure


def point_chart(
    points: Sequence[tuple[str, float, float]],
    *,
    x_label: str,
    y_label: str,
    colour: str,
    line: tuple[str, float] | None = None,
) -> Figure:
    """Draw named points; the axes show the range of the points and need not begin at zero.

    Args:
        points: name, x and y of each.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        colour: of the points.
        line: name and height of a dashed line for comparison.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter([x for _, x, _ in points], [y for _, _, y in points], color=colour, s=46, zorder=3)
    for name, x, y in points:
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 6), fontsize=8, color=INK)
    if line:
        axes.axhline(line[1], color=INK, linestyle="--", linewidth=1, label=line[0])
    dress(axes, x_label=x_label, y_label=y_label, integers=False)
    axes.set_ylim(auto=True)
    axes.margins(0.18)
    axes.autoscale_view()
    legend(axes)
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
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.tick_params(which="both", colors=MUTED, labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.set_xlabel(x_label if number > len(panels) - columns else "", fontsize=8, color=INK)
        axes.set_ylabel(y_label if number % columns == 1 or columns == 1 else "", fontsize=8, color=INK)
    legend_above(figure, {name: colours[name] for name in next(iter(panels.values()))})
    return figure


def loss_charts(terms: Mapping[str, Sequence[Curve]]) -> Figure:
    """Draw a small chart for each loss: logged values faint, their running mean on top, axes from zero.

    Args:
        terms: by the name of the loss (at least one), a curve for each run that has it.
    """
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(9.6, 2.4 * rows + 0.5), layout="constrained")
    seen: dict[str, str] = {}
    for number, (term, curves) in enumerate(terms.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for curve in curves:
            axes.plot(curve.x, curve.y, color=curve.colour, linewidth=0.6, alpha=0.3)
            axes.plot(curve.x, running_mean(curve.y), color=curve.colour, linewidth=1.8)
            seen[curve.name] = curve.colour
        # The first values are often ten times the rest and would flatten everything after them.
        values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
        top = _readable_top(values)
        dress(axes, x_label="step" if number > len(terms) - columns else "", y_label="", top=top)
        cut = " (first values above the frame)" if values.size and top < values.max() else ""
        axes.set_title(f"{term}{cut}", fontsize=9, color=INK, loc="left")
    legend_above(figure, seen)
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
