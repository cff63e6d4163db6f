"""Named points: all visible, and names that neither overlap nor cover a point."""

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from understudy.figures import Point, Style, point_chart

STYLE = {"": Style("#e0651a")}


def test_points_are_named_and_all_visible():
    points = [Point("small", 30.0, 25.0), Point("big", 40.0, 28.0)]
    axes = point_chart(points, STYLE, x_label="x", y_label="y", line=("plain", 20.0)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["small", "big"]
    assert axes.get_xlim()[0] < 30 < 40 < axes.get_xlim()[1]
    assert axes.get_ylim()[0] < 20 < 28 < axes.get_ylim()[1]


@pytest.mark.parametrize("count", [2, 8])
def test_names_of_equal_points_do_not_overlap(count):
    points = [Point(f"a long name {number}", 13 + 0.1 * number, 48.0, 12.0, 16.0) for number in range(count)]
    figure = point_chart(points, STYLE, x_label="ms", y_label="AP", from_zero=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]  # without their lines
    for one, other in itertools.combinations(boxes, 2):
        common = Bbox.intersection(one, other)
        assert common is None or common.width * common.height < 1
    spots = [axes.transData.transform((point.x, point.y)) for point in points]
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    assert axes.get_xlim()[0] == 0


def test_groups_have_a_legend_and_their_own_markers():
    points = [Point("a", 1, 1, group="PyTorch"), Point("b", 2, 2, group="$x$")]
    styles = {"PyTorch": Style("#2b8cd6"), "$x$": Style("#e0651a", marker="s")}
    figure = point_chart(points, styles, x_label="ms", y_label="AP")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["PyTorch", r"\$x\$"]
