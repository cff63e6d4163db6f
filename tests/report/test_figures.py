"""Charts and pictures: where lines, boxes and heat are drawn."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from understudy.report import figures


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_curves_begin_at_zero_and_leave_gaps():
    curve = figures.Curve("plain", "#2b8cd6", np.arange(3.0), np.array([30.0, float("nan"), 32.0]))
    axes = figures.curve_chart([curve], x_label="epoch", y_label="AP").axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= 32
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain"]


def test_loss_axes_begin_at_zero_and_say_when_first_values_are_cut_off():
    spiked = np.concatenate([[100.0], np.ones(99)])
    terms = {
        "total": [figures.Curve("a", "#2b8cd6", np.arange(100.0), spiked)],
        "calm": [figures.Curve("a", "#2b8cd6", np.arange(100.0), np.linspace(2, 1, 100))],
    }
    spiky, calm = figures.loss_charts(terms).axes
    assert spiky.get_ylim()[0] == calm.get_ylim()[0] == 0
    assert spiky.get_ylim()[1] < 5
    assert "above the frame" in spiky.get_title(loc="left")
    assert calm.get_ylim()[1] > 2
    assert calm.get_title(loc="left") == "calm"


def test_running_mean_of_a_line_is_the_line_and_short_curves_are_left_alone():
    line = np.linspace(0, 1, 201)
    np.testing.assert_allclose(figures.running_mean(line)[5:-5], line[5:-5])
    assert figures.running_mean(line[:20]) is not None
    np.testing.assert_array_equal(figures.running_mean(line[:20]), line[:20])


def test_picture_has_the_asked_width_and_draws_the_box_where_it_is():
    image = np.zeros((50, 100, 3), dtype=np.uint8)
    drawn = pixels(figures.detection_picture(image, np.array([[10.0, 20, 60, 40]]), [""], ["#ff0000"], width=400))
    assert drawn.shape == (200, 400, 3)
    red = (drawn[..., 0] > 150) & (drawn[..., 1] < 100)
    rows, columns = np.nonzero(red)
    assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx([40, 80, 240, 160], abs=2)


def test_captions_stay_within_the_picture():
    image = np.zeros((50, 50, 3), dtype=np.uint8)
    boxes = np.array([[0.0, 0, 50, 50], [45, 45, 50, 50]])
    figure = figures.detection_picture(image, boxes, ["crescent 0.99"] * 2, ["#ffb000"] * 2, width=300)
    FigureCanvasAgg(figure).draw()
    for text in figure.axes[0].texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.y0 >= -3
        assert extent.x1 <= 300
        assert extent.y1 <= 303


def test_heat_is_brightest_at_its_cell():
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    heat = np.zeros((4, 8))
    heat[1, 6] = 0.5
    drawn = pixels(
        figures.heat_picture(image, heat, 8, boxes=np.zeros((0, 4)), dashed_boxes=np.zeros((0, 4)), width=128)
    ).sum(2)
    assert drawn.shape == (64, 128)
    bright = drawn > 0.8 * drawn.max()
    rows, columns = np.nonzero(bright)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx([96, 16, 112, 32], abs=1)


def test_level_that_sees_nothing_is_not_drawn_bright():
    image, nothing = np.zeros((32, 64, 3), dtype=np.uint8), np.zeros((0, 4))
    faint, strong = (
        pixels(figures.heat_picture(image, np.full((4, 8), value), 8, boxes=nothing, dashed_boxes=nothing)).mean()
        for value in (0.02, 0.9)
    )
    assert faint < 0.4 * strong
