"""The runs of one row as one curve with a band, whatever the lengths of the runs."""

import numpy as np
import pytest

from understudy.figures import Style
from understudy.report.curves import ap_chart, loss_chart, mean_curve, share_chart

STYLE = Style("#2b8cd6")


def test_the_curve_is_the_mean_over_the_runs_and_the_band_reaches_from_the_lowest_to_the_highest():
    x = np.arange(3.0)
    curve = mean_curve("a", STYLE, [(x, x), (x, x + 1), (x, x + 5)])
    np.testing.assert_array_equal(curve.y, x + 2)
    np.testing.assert_array_equal(curve.low, x)
    np.testing.assert_array_equal(curve.high, x + 5)


def test_a_curve_ends_with_the_shortest_of_its_runs_and_has_the_points_that_all_have():
    long, short = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 3, 3.5])
    curve = mean_curve("a", STYLE, [(long, 10 * long), (short, np.zeros(3))])
    np.testing.assert_array_equal(curve.x, [2, 3])
    np.testing.assert_array_equal(curve.y, [10, 15])
    alone = mean_curve("a", STYLE, [(long, long), (short + 0.25, short)])
    np.testing.assert_array_equal(alone.x, long)
    assert not alone.low.size


def test_each_row_is_one_line_at_its_own_length_and_the_teacher_is_a_level(run_view):
    def run(name, group, role, epochs, ap):
        x = np.arange(1.0, epochs + 1)
        metrics = {"epoch": x, "AP": ap * x / epochs}
        losses = {"epoch": x, "step": x, "total": 5 - x / epochs, "distillation_share": np.full(epochs, np.nan)}
        if role == "distilled":
            losses["distillation_share"] = np.where(x % 2 == 0, ap, np.nan)
        return run_view(name, role, ap, group, metrics=metrics, losses=losses)

    runs = [
        run("t", "t", "teacher", 30, 0.5),
        *(run(f"none {seed}", "none", "plain", 4, 0.2 + seed / 10) for seed in range(2)),
        run("long", "as long in time", "plain", 9, 0.3),
        *(run(f"frs {seed}", "frs", "distilled", 4, 0.4 + seed / 10) for seed in range(2)),
    ]
    runs[0].result["coco"] = {"AP": 0.5}
    styles = {run.group: STYLE for run in runs}
    chart = ap_chart(runs, styles)
    assert chart is not None
    (axes,) = chart.figure.axes
    *lines, level = axes.lines
    assert [line.get_label() for line in lines] == ["none", "as long in time", "frs"]
    assert [len(line.get_xdata()) for line in lines] == [4, 9, 4]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([25, 30, 45])
    assert list(level.get_ydata()) == [50, 50]
    assert len(axes.collections) == 2  # bands of the rows with two runs
    assert "from the lowest to the highest" in chart.caption
    share = share_chart(runs, styles)
    assert share is not None
    (line,) = share.figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [45, 45])
    np.testing.assert_array_equal(line.get_xdata(), [2, 4])
    losses = loss_chart(runs, styles)
    assert losses is not None
    assert [axes.get_title(loc="left") for axes in losses.figure.axes] == ["total"]
    assert max(line.get_xdata()[-1] for line in losses.figure.axes[0].lines) == 9  # without the teacher


def test_runs_without_numbers_have_no_charts(run_view):
    runs = [run_view("young", "plain")]
    assert ap_chart(runs, {}) is share_chart(runs, {}) is loss_chart(runs, {}) is None
