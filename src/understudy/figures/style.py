"""Colours, lines, axes, labels and legends that all charts share."""

import contextlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

INK = "#010203"  # placeholder for the page's text colour
MUTED = "#040506"  # placeholder for the page's colour of notes

CLASS_COLOURS = ("#ffb000", "#4cc9f0", "#f72585", "#80ed99", "#c77dff", "#ff7b54", "#00f5d4", "#fee440", "#90b8ff")
ROLE_COLOURS = {"teacher": "#8a8f98", "plain": "#2b8cd6", "distilled": "#e0651a"}
MORE_COLOURS = ("#2e7655", "#d40251", "#af8a4f", "#5258eb", "#cb0f1f", "#3b6a8b")
"""Further ones. All nine differ for red-green blind readers, too, with a contrast of 3 on the light and dark page."""

STUDENT_COLOURS = (ROLE_COLOURS["plain"], ROLE_COLOURS["distilled"], *MORE_COLOURS)

Dash = Literal["-"] | tuple[float, tuple[float, ...]]

DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

LETTERS = 40
"""Most letters of a name in a chart; longer names would leave no room for the axes."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one row of the comparison looks in every chart.

    Lines and markers differ as well as colours, for readers who cannot tell the colours apart, and in print.
    """

    colour: str
    dash: Dash = "-"
    marker: str = "o"


def styles(roles: Mapping[str, str]) -> dict[str, Style]:
    """Return a style for each name; the first of a role has the role's colour.

    Args:
        roles: by name, a key of :data:`ROLE_COLOURS`, or a role that has no colour of its own.
    """
    chosen: dict[str, Style] = {}
    more = cycle(MORE_COLOURS)
    first = next((number for number, role in enumerate(roles.values()) if role != "teacher"), 0)
    for number, (name, role) in enumerate(roles.items(), start=-first):  # the first student has a solid line
        own = ROLE_COLOURS.get(role)
        taken = {style.colour for style in chosen.values()}
        colour = next(more) if own is None or own in taken else own
        chosen[name] = Style(colour, DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)])
    return chosen


def label(name: str, letters: int = LETTERS) -> str:
    """Return a user's name as text for a chart: short, on one line, and never read as a formula.

    >>> label("a" * 40, letters=5)
    'aaaa…'
    >>> label("$x$")
    '\\\\$x\\\\$'
    """
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    cut = line if len(line) <= letters else line[: letters - 1] + "…"
    return cut.replace("$", r"\$")


def dress(axes: Axes, *, x_label: str, y_label: str, top: float | None = None, integers: bool = True) -> None:
    """Style the axes; the vertical one begins at zero, so that differences are not exaggerated."""
    axes.set_ylim(bottom=0, top=top)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=integers))
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def legend_above(figure: Figure, colours: Mapping[str, str], more: Sequence[Artist] = ()) -> None:
    """Add a legend of names and colours, and of more artists by their labels, above all axes of a figure."""
    legend_of(figure, [*(Patch(facecolor=colour, label=label(name)) for name, colour in colours.items()), *more])


def legend_of_styles(figure: Figure, shown: Mapping[str, Style], more: Sequence[Artist] = ()) -> None:
    """Add a legend of names, lines and markers, and of more artists by their labels, above all axes of a figure."""
    legend_of(
        figure,
        [
            Line2D(
                [],
                [],
                color=style.colour,
                linestyle=style.dash,
                marker=style.marker,
                markersize=5,
                label=label(name),
            )
            for name, style in shown.items()
        ]
        + list(more),
    )


def legend_of(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend above all axes of a figure, in as many lines as its names need; none if it has no entry."""
    if not handles:
        return
    widest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 12 / (widest + 6))))
    figure.set_figheight(figure.get_figheight() + 0.2 * ((len(handles) - 1) // columns))  # not at the cost of the axes
    added = figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handlelength=2.8
    )
    for text in added.get_texts():
        text.set_color(INK)


def distinct_colours(names: Sequence[str], first: Sequence[str] = STUDENT_COLOURS) -> dict[str, str]:
    """Return a colour for each name, repeated if there are too few."""
    return dict(zip(names, cycle(first), strict=False))


@contextlib.contextmanager
def any_letters() -> Generator[None]:
    """Draw letters that the font lacks, such as emoji in the name of a class, as boxes and without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield
