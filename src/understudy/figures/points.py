"""A chart of named points, whose names neither overlap nor cover a point."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from understudy.figures.style import INK, MUTED, Style, any_letters, dress, label, legend_of_styles

_DISTANCES = (9, 16, 26, 38, 52, 68)
"""Of a name from its point, in typographic points; from the second on a line connects them."""

_DIRECTIONS = tuple((math.cos(angle), math.sin(angle)) for angle in (math.pi / 6 * step for step in range(12)))


@dataclass(frozen=True, slots=True)
class Point:
    """A named point.

    Attributes:
        name: beside it.
        x: of the horizontal axis.
        y: of the vertical axis.
        low: left end of a bar through it; nan: none.
        high: right end of the bar.
        group: has a colour and a marker.
    """

    name: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    group: str = ""


def point_chart(
    points: Sequence[Point],
    styles: Mapping[str, Style],
    *,
    x_label: str,
    y_label: str,
    line: tuple[str, float] | None = None,
    from_zero: bool = False,
) -> Figure:
    """Draw named points; the axes show the range of the points and need not begin at zero.

    Args:
        points: the points.
        styles: of each group; a legend names several.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        line: name and height of a dashed line for comparison.
        from_zero: the horizontal axis begins at zero.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for point in points:
        style = styles[point.group]
        axes.scatter([point.x], [point.y], color=style.colour, marker=style.marker, s=46, zorder=3)
        if math.isfinite(point.low):
            axes.hlines(point.y, point.low, point.high, color=style.colour, linewidth=1.6, alpha=0.6)
    lines = [axes.axhline(line[1], color=INK, linestyle="--", linewidth=1, label=label(line[0]))] if line else []
    dress(axes, x_label=x_label, y_label=y_label, integers=False)
    axes.set_ylim(auto=True)
    axes.margins(0.18)
    axes.autoscale_view()
    if from_zero:
        axes.set_xlim(left=0)
    legend_of_styles(figure, styles if len(styles) > 1 else {}, lines)
    with any_letters():
        _name(figure, axes, points)
    return figure


def _name(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write the name of each point at the nearest free place around it."""
    canvas = FigureCanvasAgg(figure)  # measures texts
    canvas.draw()
    pixels = figure.dpi / 72
    taken = [_marker(axes, point, pixels) for point in points]
    inside = axes.get_window_extent()
    for point in points:
        text = axes.annotate(label(point.name), (point.x, point.y), fontsize=8, color=INK)
        size = text.get_window_extent(canvas.get_renderer())
        x, y = axes.transData.transform((point.x, point.y))
        text.remove()
        places = [_box(x, y, size, direction, far * pixels) for far in _DISTANCES for direction in _DIRECTIONS]
        overlaps = [_overlap(box, taken) + _outside(box, inside) for box in places]
        best = min(range(len(places)), key=lambda place: (round(overlaps[place]), place))
        taken.append(places[best])
        axes.annotate(
            label(point.name),
            (point.x, point.y),
            xytext=((places[best].x0 - x) / pixels, (places[best].y0 - y) / pixels),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if best >= len(_DIRECTIONS) else None,
        )


def _marker(axes: Axes, point: Point, pixels: float) -> Bbox:
    """Return what a point and its bar cover, in pixels."""
    ends = (point.low, point.high) if math.isfinite(point.low) else (point.x, point.x)
    (left, y), (right, _) = (axes.transData.transform((x, point.y)) for x in ends)
    return Bbox.from_extents(left - 5 * pixels, y - 5 * pixels, right + 5 * pixels, y + 5 * pixels)


def _box(x: float, y: float, size: Bbox, direction: tuple[float, float], distance: float) -> Bbox:
    """Return the box of a name that begins in a direction from a point: its nearest edge or corner lies there."""
    along, up = direction
    left = x + along * distance - size.width * (1 - along) / 2
    below = y + up * distance - size.height * (1 - up) / 2
    return Bbox.from_bounds(left, below, size.width, size.height)


def _overlap(box: Bbox, taken: Sequence[Bbox]) -> float:
    """Return the area of a box that others cover."""
    common = (Bbox.intersection(box, other) for other in taken)
    return sum(each.width * each.height for each in common if each is not None)


def _outside(box: Bbox, frame: Bbox) -> float:
    """Return the area of a box outside a frame."""
    common = Bbox.intersection(box, frame)
    return box.width * box.height - (common.width * common.height if common else 0.0)
