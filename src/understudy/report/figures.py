"""The charts and pictures of the page: from plain arrays to matplotlib figures.

Figures are built without ``pyplot``, so they leave no global state. Charts use two placeholder inks; :func:`as_svg`
replaces them by the page's text colours, so that they fit its light and its dark mode.
"""

import base64
import io
import re
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
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[np.floating]

INK = "#010203"  # placeholder for the page's text colour
MUTED = "#040506"  # placeholder for the page's colour of notes

CLASS_COLOURS = ("#ffb000", "#4cc9f0", "#f72585", "#80ed99", "#c77dff", "#ff7b54", "#00f5d4", "#fee440", "#90b8ff")
HEAT_FLOOR = 0.2  # lower limit of the scale: a level without objects must not look bright

_PICTURE_DPI = 100


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


def curve_chart(curves: Sequence[Curve], *, x_label: str, y_label: str) -> Figure:
    """Draw lines with a marker at every point, over an axis that begins at zero, with a legend."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    named: set[str] = set()
    for curve in curves:
        label = "" if curve.name in named else curve.name
        named.add(curve.name)
        axes.plot(curve.x, curve.y, color=curve.colour, label=label, linewidth=2, marker="o", markersize=4)
    _dress(axes, x_label=x_label, y_label=y_label)
    _legend(axes)
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
        _dress(axes, x_label="step" if number > len(terms) - columns else "", y_label="", top=top)
        cut = " (first values above the frame)" if values.size and top < values.max() else ""
        axes.set_title(f"{term}{cut}", fontsize=9, color=INK, loc="left")
    handles = [axes.plot([], [], color=colour, label=name)[0] for name, colour in seen.items()]
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color(INK)
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


def detection_picture(
    image: NDArray[np.uint8],
    boxes: Array,
    captions: Sequence[str],
    colours: Sequence[str],
    *,
    dashed_boxes: Array | None = None,
    width: int = 384,
) -> Figure:
    """Draw an image with captioned boxes, scaled to a width at which the captions are legible.

    Args:
        image: (H, W, 3).
        boxes: (M, 4) xyxy in pixels of the image; the first is drawn on top.
        captions: one per box; empty for none.
        colours: one per box.
        dashed_boxes: (U, 4) xyxy, drawn white and dashed, without captions.
        width: of the picture, in pixels.
    """
    figure, axes, scale = _canvas(image.shape[0], image.shape[1], width)
    axes.imshow(image, extent=_extent(image.shape[0] * scale, image.shape[1] * scale), interpolation="bicubic")
    outline = [withStroke(linewidth=3.2, foreground="black", alpha=0.55)]
    for box, caption, colour in reversed(list(zip(boxes, captions, colours, strict=True))):
        _frame(axes, box * scale, colour, outline)
        if caption:
            _tag(axes, box * scale, caption, colour, height=image.shape[0] * scale, width=image.shape[1] * scale)
    for box in () if dashed_boxes is None else dashed_boxes:
        _frame(axes, box * scale, "white", outline, style="--")
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


def as_svg(figure: Figure) -> str:
    """Return the figure as an SVG element in the page's text colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1), count=1
    )
    return drawing.replace(INK, "currentColor").replace(MUTED, "var(--muted)")


def as_image(figure: Figure) -> str:
    """Return the figure as a JPEG in a ``data:`` URL for an ``<img>``."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_jpg(buffer, pil_kwargs={"quality": 85})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _dress(axes: Axes, *, x_label: str, y_label: str, top: float | None = None) -> None:
    """Style the axes; the vertical one begins at zero, so that differences are not exaggerated."""
    axes.set_ylim(bottom=0, top=top)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(frameon=False, fontsize=9, loc="best").get_texts():
            text.set_color(INK)


def _readable_top(values: Array) -> float:
    """Choose the upper end of a loss axis: the maximum, or less if only a few first values are far above the rest."""
    if not values.size or values.max() <= 0:
        return 1.0
    usual = float(np.quantile(values, 0.97))
    return 1.05 * (float(values.max()) if values.max() < 2 * usual else 1.3 * usual)


def _canvas(height: int, width: int, drawn_width: int) -> tuple[Figure, Axes, float]:
    """Return an empty figure for one image, its axes, and the drawn pixels per image pixel."""
    scale = drawn_width / width
    figure = Figure(figsize=(drawn_width / _PICTURE_DPI, height * scale / _PICTURE_DPI), dpi=_PICTURE_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes, scale


def _extent(height: float, width: float) -> tuple[float, float, float, float]:
    return (0, width, height, 0)


def _frame(
    axes: Axes, box: Array, colour: str, effects: list, *, style: Literal["-", "--"] = "-", linewidth: float = 1.8
) -> None:
    left, top, right, bottom = (float(side) for side in box)
    rectangle = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=linewidth)
    rectangle.set_linestyle(style)
    rectangle.set_path_effects(effects)
    axes.add_patch(rectangle)


def _tag(axes: Axes, box: Array, caption: str, colour: str, *, height: float, width: float) -> None:
    """Draw a caption above its box, or inside if there is no room above, always within the picture."""
    line, letter = 20, 9.2  # height of a line and width of a letter, about, in pixels
    x = float(np.clip(box[0], 0, max(0.0, width - letter * len(caption) - 4)))
    y = float(np.clip(box[1] if box[1] >= line else box[1] + line, line, height))
    dark = np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.45
    patch = {"facecolor": colour, "edgecolor": "none", "pad": 1.2, "alpha": 0.88}
    ink = "white" if dark else "black"
    axes.text(x + 2, y - 3, caption, color=ink, fontsize=10.5, family="DejaVu Sans", va="bottom", bbox=patch)
