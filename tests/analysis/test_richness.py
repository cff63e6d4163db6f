"""Feature richness: which images are shown, and the numbers about them."""

import dataclasses

import numpy as np
import pytest

from understudy.analysis.models import open_models
from understudy.analysis.richness import (
    Richness,
    RichnessView,
    analyse_richness,
    richness_by_place,
    richness_cells,
    share_outside,
    telling_images,
)
from understudy.cli import main
from understudy.data import open_data
from understudy.data.scenes import read_unlabelled
from understudy.errors import UserError


@pytest.fixture
def richness_view():
    fine, coarse = np.zeros((6, 8)), np.full((3, 4), 0.1)
    fine[1, 1], fine[1, 6] = 0.9, 0.3
    boxes, unlabelled = np.array([[8.0, 8, 16, 16]]), np.array([[48.0, 8, 56, 16]])
    return RichnessView(np.full((48, 64, 3), 120, dtype=np.uint8), boxes, unlabelled, (fine, coarse), (8, 16))


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


def test_images_with_unlabelled_objects_come_first_and_maps_are_cut_to_the_image(trained, scenes):
    data = open_data(scenes, "val")
    unlabelled = read_unlabelled(data.source)
    assert len(unlabelled) > 0
    assert [record.image_id for record in telling_images(data, 20).records] == sorted(unlabelled)
    result = analyse_richness(trained, images=20, device="cpu")
    assert len(result.views) == len(unlabelled)
    view = result.views[0]
    assert [level.shape for level in view.levels] == [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    assert all(0 < level.min() <= level.max() < 1 for level in view.levels)
    np.testing.assert_allclose(view.unlabelled, unlabelled[min(unlabelled)])


def test_pictures_of_one_image(richness_view):
    cells = richness_cells(richness_view, "a.jpg")
    assert [cell.head for cell in cells] == ["a.jpg", "box mask", "stride 8", "stride 16"]
    assert cells[2].words == "peak 0.90, 25% outside"


def test_a_teacher_without_dense_predictions_has_no_richness(trained, scenes, monkeypatch):
    (teacher,) = open_models([trained])
    spec = dataclasses.replace(teacher.detector.spec, dense=False, queries=100)
    monkeypatch.setattr(teacher.detector, "spec", spec)
    with pytest.raises(UserError, match="needs dense predictions"):
        Richness(teacher, open_data(scenes, "val"))


def test_the_command(trained, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "richness", str(trained)])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "outside the boxes" in out
    assert "labelled objects 0." in out
