"""Charts of one detector's evaluation: its confusion matrix, and precision over recall."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from understudy.figures.charts import Curve, draw_curve
from understudy.figures.style import INK, MUTED, ROLE_COLOURS, Style, dress, label, legend_of_styles, styles

MOST_CLASSES = 12
"""Classes up to which a matrix states numbers and each curve has a colour of its own."""


def confusion_chart(classes: Sequence[str], counts: NDArray[np.integer]) -> Figure:
    """Draw a confusion matrix, each row in shares of itself.

    Args:
        classes: the K names.
        counts: (K + 1, K + 1), rows true, columns detected, background last.
    """
    few = len(classes) <= MOST_CLASSES
    side = 2.6 + 0.55 * (len(classes) + 1) if few else 9.0
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1)
    names = [*map(label, classes), "background"]
    objects = [f"{name} ({total})" for name, total in zip(names[:-1], totals[:-1, 0], strict=True)]
    size = 8 if few else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), [*objects, "background"], fontsize=size)
    axes.set_xlabel("detected", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(colors=MUTED)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(counts).tolist() if few else ():
        dark = shares[row, column] > 0.6
        colour = "#ffffff" if dark else "#222222"  # on the cell's own colour, in light and in dark
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    return figure


def precision_recall_chart(curves: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]]) -> Figure:
    """Draw precision over recall, both from 0 to 1; of many classes also the mean, and the classes faint.

    Args:
        curves: recall and precision (P,) of each class by its name in the legend; all at the same recalls.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if len(curves) <= MOST_CLASSES:
        shown = styles(dict.fromkeys(curves, "distilled"))
        for name, (recall, precision) in curves.items():
            curve = Curve(name, shown[name], recall, precision)
            draw_curve(axes, curve, width=1.8, marker=curve.style.marker, markersize=4.5, markevery=20)
    else:
        for recall, precision in curves.values():
            axes.plot(recall, precision, color=MUTED, linewidth=0.5, alpha=0.35)
        recall = next(iter(curves.values()))[0]
        mean = np.mean([precision for _, precision in curves.values()], axis=0)
        shown = {f"mean of {len(curves)} classes": Style(ROLE_COLOURS["plain"])}
        axes.plot(recall, mean, color=ROLE_COLOURS["plain"], linewidth=2.5)
    dress(axes, x_label="recall", y_label="precision", top=1.02, integers=False)
    axes.set_xlim(0, 1)
    legend_of_styles(figure, shown)
    return figure
