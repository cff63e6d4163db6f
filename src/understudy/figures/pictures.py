"""Pictures: boxes and maps drawn on images."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from understudy.figures.style import INK, any_letters, label, legend_above

Array = NDArray[np.floating]

HEAT_FLOOR = 0.2  # lower limit of the scale: a level without objects must not look bright

_DPI = 100


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture in a row of pictures.

    Attributes:
        head: its title.
        words: a line below the title.
        figure: the picture.
    """

    head: str
    words: str
    figure: Figure


def detection_picture(
    image: NDArray[np.uint8],
    boxes: Array,
    captions: Sequence[str],
    colours: Sequence[str],
    *,
    dashed_boxes: Array | None = None,
    dashed_colour: str = "white",
    width: int = 384,
) -> Figure:
    """Draw an image with captioned boxes, scaled to a width at which the captions are legible.

    Args:
        image: (H, W, 3).
        boxes: (M, 4) xyxy in pixels of the image; the first is drawn on top.
        captions: one per box; empty for none. One that has no place free of the captions before it is left out.
        colours: one per box.
        dashed_boxes: (U, 4) xyxy, drawn dashed, without captions.
        dashed_colour: of these.
        width: of the picture, in pixels.
    """
    figure, axes, scale = _canvas(image.shape[0], image.shape[1], width)
    axes.imshow(image, extent=_extent(image.shape[0] * scale, image.shape[1] * scale), interpolation="bicubic")
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):
        _frame(axes, box * scale, colour, _outline(colour))
    taken: list[tuple[float, float, float]] = []
    for box, caption, colour in zip(boxes, captions, colours, strict=True):
        if caption:
            _tag(axes, box * scale, caption, colour, taken)
    for box in () if dashed_boxes is None else dashed_boxes:
        _frame(axes, box * scale, dashed_colour, _outline(dashed_colour), style="--")
    return figure


def heat_picture(
    image: NDArray[np.uint8], heat: Array, stride: float, *, boxes: Array, dashed_boxes: Array, width: int = 240
) -> Figure:
    """Draw a map of one feature level over the grey image, scaled to its peak, or to :data:`HEAT_FLOOR` if lower.

    Args:
        image: (H, W, 3).
        heat: (h, w) in 0..1; cell (0, 0) is at the image's upper left corner.
        stride: pixels of the image per cell.
        boxes: (M, 4) xyxy in pixels, drawn as white frames.
        dashed_boxes: (U, 4) xyxy, drawn as dashed frames.
        width: of the picture, in pixels.
    """
    figure, axes, scale = _canvas(image.shape[0], image.shape[1], width)
    height_drawn, width_drawn = image.shape[0] * scale, image.shape[1] * scale
    grey = image.mean(axis=2)
    axes.imshow(grey, cmap="gray", vmin=-60, vmax=400, extent=_extent(height_drawn, width_drawn))
    strength = np.clip(heat / max(float(heat.max()), HEAT_FLOOR), 0, 1)
    extent = _extent(heat.shape[0] * stride * scale, heat.shape[1] * stride * scale)
    # No interpolation: a coarse level must look coarse.
    axes.imshow(
        strength, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.8 * strength, extent=extent, interpolation="nearest"
    )
    for box in boxes:
        _frame(axes, box * scale, "white", [], linewidth=0.9)
    for box in dashed_boxes:
        _frame(axes, box * scale, "white", [], style="--", linewidth=0.9)
    axes.set_xlim(0, width_drawn)
    axes.set_ylim(height_drawn, 0)
    return figure


def sheet(rows: Sequence[Sequence[Cell]], colours: Mapping[str, str] | None = None, width: float = 2.4) -> Figure:
    """Put the cells of several rows into one figure, each with its words above the picture.

    Args:
        rows: cells, left to right; rows may differ in length.
        colours: of the legend, if any.
        width: of a picture, in inches.
    """
    columns = max(map(len, rows))
    heights = [width * max(cell.figure.get_figheight() / cell.figure.get_figwidth() for cell in row) for row in rows]
    titles = [[_title(cell, letters=int(17 * width)) for cell in row] for row in rows]
    lines = sum(max(title.count("\n") + 1 for title in row) for row in titles)
    size = (columns * (width + 0.08), sum(heights) + 0.14 * lines + 0.15 * len(rows) + (0.35 if colours else 0))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            axes = figure.add_subplot(grid[number, column])
            axes.imshow(_drawn(cell.figure))
            axes.set_axis_off()
            axes.set_title(titles[number][column], fontsize=7.5, color=INK, loc="left", pad=2)
    if colours:
        legend_above(figure, colours)
    return figure


def _title(cell: Cell, letters: int) -> str:
    lines = [cell.head, *textwrap.wrap(cell.words, letters)]
    return "\n".join(label(line, letters) for line in lines)


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    """Draw a picture at twice its size: (H, W, 3)."""
    figure.set_dpi(2 * _DPI)
    canvas = FigureCanvasAgg(figure)
    with any_letters():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _canvas(height: int, width: int, drawn_width: int) -> tuple[Figure, Axes, float]:
    """Return an empty figure for one image, its axes, and the drawn pixels per image pixel."""
    scale = drawn_width / width
    figure = Figure(figsize=(drawn_width / _DPI, height * scale / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes, scale


def _extent(height: float, width: float) -> tuple[float, float, float, float]:
    return (0, width, height, 0)


def _is_dark(colour: str) -> bool:
    return bool(np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.45)


def _outline(colour: str) -> list:
    """Return a faint outline that sets a line off from any image: white around dark colours, black around others."""
    return [withStroke(linewidth=3.2, foreground="white" if _is_dark(colour) else "black", alpha=0.55)]


def _frame(
    axes: Axes, box: Array, colour: str, effects: list, *, style: Literal["-", "--"] = "-", linewidth: float = 1.8
) -> None:
    left, top, right, bottom = (float(side) for side in box)
    rectangle = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=linewidth)
    rectangle.set_linestyle(style)
    rectangle.set_path_effects(effects)
    axes.add_patch(rectangle)


def _tag(axes: Axes, box: Array, caption: str, colour: str, taken: list[tuple[float, float, float]]) -> None:
    """Draw a caption within the picture where it covers no other: above its box, inside at the top, or below.

    Args:
        axes: of the picture, as large as it is.
        box: (4,) xyxy in pixels of the picture.
        caption: the words.
        colour: behind them.
        taken: left and right end and lower edge of the captions so far; this one is added.
    """
    line, letter = 20, 9.2  # height of a line and width of a letter, about, in pixels
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    caption = label(caption, max(8, int((width - 4) / letter)))
    x = float(np.clip(box[0], 0, max(0.0, width - letter * len(caption) - 4)))
    end = x + letter * len(caption) + 4
    for y in (box[1], box[1] + line, box[3] + line):
        inside = line <= y <= height
        if inside and all(end <= left or right <= x or abs(y - other) >= line for left, right, other in taken):
            break
    else:
        return
    taken.append((x, end, y))
    patch = {"facecolor": colour, "edgecolor": "none", "pad": 1.2, "alpha": 0.88}
    ink = "white" if _is_dark(colour) else "black"
    axes.text(x + 2, y - 3, caption, color=ink, fontsize=10.5, family="DejaVu Sans", va="bottom", bbox=patch)
