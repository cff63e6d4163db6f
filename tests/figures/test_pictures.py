"""Pictures: where boxes and heat are drawn."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from understudy import figures


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


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


def test_captions_do_not_cover_each_other_and_the_first_has_its_place():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    boxes = np.array([[30.0, 30, 70, 70]] * 5)
    captions = [f"star 0.{number}0" for number in range(5)]
    figure = figures.detection_picture(image, boxes, captions, ["#ffb000"] * 5, width=400)
    FigureCanvasAgg(figure).draw()
    assert [text.get_text() for text in figure.axes[0].texts] == captions[:3]  # above, inside, below
    extents = [text.get_window_extent() for text in figure.axes[0].texts]
    assert extents[0].y0 >= 400 - 30 * 4
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])


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


def test_a_sheet_has_a_titled_picture_for_each_cell():
    red, black = (np.full((40, 40, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 0)))
    cells = [
        figures.Cell(name, "many words " * 8, figures.detection_picture(image, np.zeros((0, 4)), [], []))
        for name, image in (("red", red), ("black", black))
    ]
    figure = figures.sheet([cells, cells[:1]], {"correct": "#1ba37a"})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.splitlines()[0] for title in titles] == ["red", "black", "red"]
    assert max(len(line) for title in titles for line in title.splitlines()) <= 41
    drawn = figure.axes[0].get_images()[0].get_array()
    assert np.abs(np.asarray(drawn).reshape(-1, 3).mean(0) - [255, 0, 0]).max() < 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["correct"]
