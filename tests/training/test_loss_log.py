"""The rows of losses.csv: every named loss, its weight, and the distillation's share of the gradient."""

import pytest

from understudy.files import read_rows


def test_losses_by_name(distilled):
    rows = read_rows(distilled / "losses.csv")
    assert [row["step"] for row in rows] == ["3", "6", "8"]
    assert [row["epoch"] for row in rows] == ["0.750", "1.500", "2.000"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.003, 0.0003, 0.0003])
    names = ["classification", "bbox_regression", "bbox_ctrness", "frs_feature", "frs_class"]
    weights = ["frs_feature_weight", "frs_class_weight"]
    assert list(rows[0]) == ["epoch", "step", "lr", "total", *names, "distillation_share", *weights]
    # Of the row's last step: FRS grows over 500 steps, and the first of these counts as 0.
    assert [float(row[weights[0]]) for row in rows] == pytest.approx([0.01 * step / 500 for step in (2, 5, 7)])
    assert all(float(row[name]) > 0 for row in rows for name in names)
    assert rows[0]["distillation_share"] == "0.0000"  # the ramp starts at zero


def test_tensorboard_where_it_is_installed(trained):
    pytest.importorskip("tensorboard")
    assert len(list((trained / "tensorboard").glob("events.out.*"))) == 1
