"""The rows of losses.csv: every named loss, its weight, and the distillation's share of the gradient."""

import pytest

from understudy.files import read_rows


def test_losses_by_name(distilled):
    rows = read_rows(distilled / "losses.csv")
    assert [row["step"] for row in rows] == ["3", "6", "8"]
    assert [row["epoch"] for row in rows] == ["0.750", "1.500", "2.000"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.003, 0.0003, 0.0003])
    terms = ["pkd_feature", "frs_feature", "frs_class", "frs_box"]
    names = ["classification", "bbox_regression", "bbox_ctrness", *terms]
    shares = ["distillation_share", *(f"{term}_share" for term in terms)]
    weights = [f"{term}_weight" for term in terms]
    assert list(rows[0]) == ["epoch", "step", "lr", "total", *names, *shares, *weights]
    assert all(float(row[name]) > 0 for row in rows for name in [*names, *weights])
    # Measured in the first and the sixth step: each term has a quarter of the balance of 0.8.
    assert [float(rows[0][name]) for name in shares[1:]] == pytest.approx([0.2] * 4, abs=1e-4)
    assert 0.4 < float(rows[0]["distillation_share"]) < 0.8  # the gradients of the terms do not have one direction
    assert [bool(row["distillation_share"]) for row in rows] == [True, True, False]


def test_tensorboard_where_it_is_installed(trained):
    pytest.importorskip("tensorboard")
    assert len(list((trained / "tensorboard").glob("events.out.*"))) == 1
