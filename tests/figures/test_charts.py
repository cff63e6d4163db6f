"""Charts: where axes begin, which lines and bars there are, and how they are named."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from understudy import figures
from understudy.analysis.errors import COLOURS
from understudy.figures import Style, charts


def test_curves_begin_at_zero_and_leave_gaps():
    curve = charts.Curve("plain", Style("#2b8cd6"), np.arange(3.0), np.array([30.0, float("nan"), 32.0]))
    figure = charts.curve_chart([curve], x_label="epoch", y_label="AP")
    (axes,) = figure.axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= 32
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain"]


def test_loss_axes_begin_at_zero_and_say_when_first_values_are_cut_off():
    spiked = np.concatenate([[100.0], np.ones(99)])
    terms = {
        "total": [charts.Curve("a", Style("#2b8cd6"), np.arange(100.0), spiked)],
        "calm": [charts.Curve("a", Style("#2b8cd6"), np.arange(100.0), np.linspace(2, 1, 100))],
    }
    spiky, calm = charts.loss_charts(terms).axes
    assert spiky.get_ylim()[0] == calm.get_ylim()[0] == 0
    assert spiky.get_ylim()[1] < 5
    assert "above the frame" in spiky.get_title(loc="left")
    assert calm.get_ylim()[1] > 2
    assert calm.get_title(loc="left") == "calm"


def test_running_mean_of_a_line_is_the_line_and_short_curves_are_left_alone():
    line = np.linspace(0, 1, 201)
    np.testing.assert_allclose(charts.running_mean(line)[5:-5], line[5:-5])
    assert charts.running_mean(line[:20]) is not None
    np.testing.assert_array_equal(charts.running_mean(line[:20]), line[:20])


def test_bars_stand_in_groups_with_their_values_and_none_where_there_is_no_number():
    series = {"plain": [0.5, float("nan")], "distilled": [-0.25, 1.0]}
    colours = {"plain": "#2b8cd6", "distilled": "#e0651a"}
    figure = charts.bar_chart(["a", "b"], series, colours, x_label="level", y_label="r", line=("reference", 0.3))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["0.50", "", "-0.25", "1.00"]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0, -0.25, 1.0]
    first, second = axes.patches[0], axes.patches[2]
    assert first.get_x() + first.get_width() <= second.get_x()
    assert axes.get_ylim()[0] < -0.25
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "distilled", "reference"]


def test_a_group_of_bars_is_centred_at_its_name():
    series = {"own": [1.0, float("nan")], "plain": [float("nan"), 2.0], "distilled": [float("nan"), 3.0]}
    figure = charts.bar_chart(["a", "b"], series, dict.fromkeys(series, "#2b8cd6"), x_label="", y_label="")
    edges = {bar.get_height(): (bar.get_x(), bar.get_x() + bar.get_width()) for bar in figure.axes[0].patches}
    assert sum(edges[1.0]) / 2 == pytest.approx(0)
    assert (edges[2.0][0] + edges[3.0][1]) / 2 == pytest.approx(1)
    assert edges[2.0][1] <= edges[3.0][0]


def test_bars_without_negative_values_begin_at_zero():
    figure = charts.bar_chart(["a"], {"AP": [30.0]}, {"AP": "#e0651a"}, x_label="", y_label="", line=("plain", 20.0))
    assert figure.axes[0].get_ylim()[0] == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain"]


def test_a_cloud_of_zeros_as_of_a_detector_and_itself_is_drawn():
    cloud = (np.zeros(3), np.array([0.1, 1.0, 2.0]))
    (axes,) = charts.cloud_chart({"stride 8": {"same": cloud}}, {"same": "#2b8cd6"}, x_label="x", y_label="y").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")


def test_clouds_have_a_panel_for_each_title_and_logarithmic_axes():
    cloud = (np.array([0.1, 10.0]), np.array([1.0, 100.0]))
    panels = {f"stride {stride}": {"plain": cloud, "distilled": cloud} for stride in (8, 16, 32, 64)}
    figure = charts.cloud_chart(panels, {"plain": "#2b8cd6", "distilled": "#e0651a"}, x_label="x", y_label="y")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(panels)
    assert {axes.get_xscale() for axes in figure.axes} == {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "x", "x", "x"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["y", "", "", "y"]


def test_numbers_at_logarithmic_axes_are_plain_however_short_the_axis():
    cloud = (np.array([0.01, 100.0]), np.array([0.2325, 0.2475]))
    (axes,) = charts.cloud_chart({"stride 8": {"plain": cloud}}, {"plain": "#2b8cd6"}, x_label="x", y_label="y").axes
    axes.figure.canvas.draw()
    across = [text.get_text() for text in axes.get_xticklabels(which="both")]
    assert {"0.01", "1", "100"} <= set(across)
    upwards = [text.get_text() for text in axes.get_yticklabels(which="both")]
    assert {"0.234", "0.24"} <= set(upwards)
    assert all(float(text) for text in [*across, *upwards] if text)


def test_nine_rows_differ_in_colour_and_in_line_or_marker():
    roles = {"teacher": "teacher", "none": "plain", "longer": "plain"} | {
        f"d{number}": "distilled" for number in range(6)
    }
    styles = figures.styles(roles)
    assert len({style.colour for style in styles.values()}) == 9
    assert len({style.marker for style in styles.values()}) == 9
    assert styles["none"].dash == "-"
    more = figures.styles(roles | {f"e{number}": "distilled" for number in range(20)})
    assert len(set(more.values())) == 29


def test_colours_differ_for_red_green_blind_readers_and_are_legible_on_both_pages():
    """Deuteranopia and protanopia as Machado et al. (2009) simulate them; distances in CIELAB (1976)."""
    deuteranopia = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    protanopia = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def linear(colours):
        values = np.array([to_rgb(colour) for colour in colours])
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)

    def nearest(colours, seen):
        xyz = (linear(colours) @ np.array(seen).T).clip(0, 1) @ to_xyz.T / [0.9505, 1, 1.089]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
        return (np.linalg.norm(lab[:, None] - lab, axis=2) + 1e3 * np.eye(len(lab))).min()

    rows = [*figures.ROLE_COLOURS.values(), *figures.MORE_COLOURS]
    for seen in (np.eye(3), deuteranopia, protanopia):
        assert nearest(rows, seen) > 15
        assert nearest(list(COLOURS.values()), seen) > 30
    light, dark = linear(["#fdfcfa", "#15171b"]) @ to_xyz[1] + 0.05
    shown = linear(rows) @ to_xyz[1] + 0.05
    assert (light / shown).min() > 3
    assert (shown / dark).min() > 3


def test_differences_are_points_by_name_and_missing_ones_are_left_out():
    series = {"frs": [2.0, float("nan")], "hint": [-1.0, 0.5]}
    styles = figures.styles(dict.fromkeys(series, "distilled"))
    figure = charts.difference_chart(["class cat", "$a$" + "b" * 99], series, styles, x_label="AP")
    (axes,) = figure.axes
    first, second = (label.get_text() for label in axes.get_yticklabels())
    assert first == "class cat"
    assert second.startswith(r"\$a\$")
    assert len(second) <= 42
    assert [len(np.ma.compressed(points.get_offsets()[:, 0])) for points in axes.collections] == [1, 2]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
