"""The chart of differences with their intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from understudy.figures.style import INK, MUTED, Style, label


def interval_chart(
    rows: Mapping[str, tuple[float, tuple[float, float] | None, tuple[float, float] | None]],
    styles: Mapping[str, Style],
    *,
    x_label: str,
    kinds: Sequence[str],
) -> Figure:
    """Draw a point for each row, a thick line for its first interval and a thin one for its second.

    Args:
        rows: by name, in the order from top to bottom: a difference and its two intervals; None: unknown.
        styles: by name.
        x_label: of the horizontal axis, with its unit.
        kinds: what the two intervals are.
    """
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, (value, first, second)) in enumerate(rows.items()):
        style = styles[name]
        if first:
            axes.plot(first, [place - 0.12] * 2, color=style.colour, linewidth=3.2, solid_capstyle="butt")
        if second:
            axes.plot(second, [place + 0.16] * 2, color=style.colour, linewidth=1.2)
        if np.isfinite(value):
            axes.plot([value], [place - 0.12], style.marker, color=style.colour, markersize=7, markeredgecolor=INK)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [label(name) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{x_label}; thick: {kinds[0]}, thin: {kinds[1]}", color=INK)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(axis="x", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    return figure
