"""Feature richness: which images are shown, and the numbers about them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from understudy.data.scenes import read_unlabelled
from understudy.report import richness
from understudy.report.richness import richness_by_place, share_outside, view_richness
from understudy.report.views import RunView


def test_share_of_richness_outside_the_boxes(richness_view):
    assert share_outside(richness_view, 0) == pytest.approx(0.3 / 1.2)
    assert share_outside(richness_view, 1) == pytest.approx(47 / 48)


def test_mean_richness_by_place(richness_view):
    places = richness_by_place([richness_view])
    assert places["labelled objects"] == pytest.approx(0.9)
    assert places["unlabelled look-alikes"] == pytest.approx(0.3)
    assert places["elsewhere"] == pytest.approx(0.1)
    without = dataclasses.replace(richness_view, unlabelled=np.zeros((0, 4)))
    assert "unlabelled look-alikes" not in richness_by_place([without])


def test_richness_is_shown_where_there_are_unlabelled_objects_and_cut_to_the_image(drawn):
    unlabelled = read_unlabelled(drawn.source)
    assert 0 < len(unlabelled) < 8
    found = view_richness(RunView("t", "t", "teacher", Path("t"), result={}), drawn, count=20)
    assert len(found) == len(unlabelled)
    first = found[0]
    assert first.levels[0].shape == (5, 5)  # 72 pixels; the padded batch has six cells
    assert first.levels[0][0, 0] == pytest.approx(1)
    assert first.levels[0][1:].max() < 1e-6
    np.testing.assert_allclose(first.unlabelled, unlabelled[min(unlabelled)])


def test_a_teacher_without_dense_predictions_has_no_richness(drawn, monkeypatch):
    detector = richness.load_checkpoint(Path("t")).detector
    spec = dataclasses.replace(detector.spec, dense=False, queries=100)
    monkeypatch.setattr(type(detector), "spec", spec)
    assert view_richness(RunView("t", "t", "teacher", Path("t"), result={}), drawn) == []
