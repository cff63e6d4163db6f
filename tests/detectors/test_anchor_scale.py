"""The scale of anchors that fits the boxes best, of a few."""

from dataclasses import replace
from datetime import date

import pytest
import torch
from data_sets import squares

from understudy.data.records import Records
from understudy.detectors.anchor_fit import fit_of_boxes
from understudy.detectors.anchor_scale import best_scale, narrow_detector
from understudy.errors import UserError


@pytest.mark.parametrize(("side", "scale"), [(16.0, 2.0), (12.0, 2.0), (45.0, None), (100.0, None)])
def test_small_boxes_get_small_anchors_and_others_the_family_s_own(side, scale):
    found = best_scale("retinanet_resnet18", squares(side, count=12), 160, 200)
    assert found is not None
    assert (found.scale, found.before) == (scale, 4.0)
    assert found.overlap >= found.overlap_before
    assert f"{found.overlap_before:.2f}" in str(found)
    assert (found.overlap > found.overlap_before + 0.02) is (scale is not None)
    assert "the family's own, 4" in str(found)


def test_another_scale_than_the_family_s_own_is_compared_with_the_others():
    data = squares(16.0, count=12)
    coarse, fine = (best_scale("retinanet_resnet18", data, 160, 200, before=scale) for scale in (8.0, 2.0))
    assert coarse is not None
    assert fine is not None
    assert (coarse.scale, coarse.before) == (2.0, 8.0)
    assert str(coarse).endswith(f"{coarse.overlap_before:.2f} with 8")
    assert (fine.scale, fine.overlap) == (None, fine.overlap_before)
    assert str(fine).startswith("2 is as good as others")


def test_a_rare_class_of_small_objects_counts_as_much_as_a_frequent_one():
    large, small = squares(45.0, count=20).records, squares(12.0, count=2).records
    labels = torch.cat([large.labels, small.labels + 1])
    records = replace(
        Records.of([*large, *small]),
        labels=labels,
    )
    data = replace(squares(45.0), classes=("a", "b"), category_ids=(1, 2), records=records)
    found = best_scale("retinanet_resnet18", data, 160, 200)
    assert found is not None
    assert found.scale == 2.0
    of_one = replace(data, records=replace(records, labels=torch.zeros_like(labels)))
    found = best_scale("retinanet_resnet18", of_one, 160, 200)
    assert found is not None
    assert found.scale is None


def test_a_level_without_octaves_depends_on_the_size_of_the_boxes():
    found = best_scale("faster_rcnn_resnet18", squares(48.0, count=12), 160, 200)
    assert found is not None
    assert (found.scale, found.before) == (6.0, 8.0) or found.scale == 12.0, "48 pixels lie between 32 and 64"


@pytest.mark.parametrize(("side", "scale"), [(16.0, 4.0), (32.0, 4.0), (64.0, None)])
def test_anchors_that_are_assigned_without_a_limit_of_the_iou_are_changed_if_others_fit_far_better(side, scale):
    found = best_scale("gfl_resnet18", squares(side, count=12), 160, 200)
    assert found is not None
    assert (found.scale, found.before) == (scale, 8.0)


def test_such_anchors_stay_where_others_fit_a_little_better():
    data = squares(51.0, count=12)
    found = best_scale("gfl_resnet18", data, 160, 200)
    other = fit_of_boxes(narrow_detector("gfl_resnet18", 6.0), data, 160, 200)
    assert found is not None
    assert other is not None
    assert found.scale is None
    assert 0.02 < float(other.overlaps.clamp(max=0.7).mean()) - found.overlap < 0.1


def test_nothing_is_chosen_for_points():
    assert best_scale("fcos_resnet18", squares(16.0), 160, 200) is None


@pytest.mark.parametrize("wings", [2, date(2020, 1, 1), {1, 2}])
def test_nothing_is_chosen_without_boxes_and_wrong_settings_are_refused(wings):
    data = squares(16.0, count=0)
    assert best_scale("retinanet_resnet18", data, 160, 200) is None
    with pytest.raises(UserError, match="has no setting"):
        best_scale("retinanet_resnet18", squares(16.0), 160, 200, settings={"wings": wings})
