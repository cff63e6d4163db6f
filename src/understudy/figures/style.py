"""Colours, axes and legends that all charts share."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

INK = "#010203"  # placeholder for the page's text colour
MUTED = "#040506"  # placeholder for the page's colour of notes

CLASS_COLOURS = ("#ffb000", "#4cc9f0", "#f72585", "#80ed99", "#c77dff", "#ff7b54", "#00f5d4", "#fee440", "#90b8ff")
ROLE_COLOURS = {"teacher": "#8a8f98", "plain": "#2b8cd6", "distilled": "#e0651a"}
MORE_COLOURS = ("#1ba37a", "#c25fa5", "#b8930c", "#7a6ff0", "#d14343", "#4a9aa8")
STUDENT_COLOURS = (ROLE_COLOURS["plain"], ROLE_COLOURS["distilled"], *MORE_COLOURS)


def dress(axes: Axes, *, x_label: str, y_label: str, top: float | None = None, integers: bool = True) -> None:
    """Style the axes; the vertical one begins at zero, so that differences are not exaggerated."""
    axes.set_ylim(bottom=0, top=top)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=integers))
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def legend(axes: Axes) -> None:
    """Add a legend of the named artists, if there are any."""
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(frameon=False, fontsize=9, loc="best").get_texts():
            text.set_color(INK)


def legend_above(figure: Figure, colours: Mapping[str, str], columns: int | None = None) -> None:
    """Add a legend of names and colours above all axes of a figure, in one line or in so many columns."""
    handles = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    added = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(columns or len(handles), len(handles)),
        frameon=False,
        fontsize=9,
    )
    for text in added.get_texts():
        text.set_color(INK)


def distinct_colours(names: Sequence[str], first: Sequence[str] = STUDENT_COLOURS) -> dict[str, str]:
    """Return a colour for each name, repeated if there are too few."""
    return dict(zip(names, cycle(first), strict=False))
