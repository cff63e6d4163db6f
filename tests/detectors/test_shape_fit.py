"""Shapes of boxes beside anchors: an upper limit of the measured overlaps, and what `check` says of them."""

import pytest
import torch
from data_sets import squares
from small_detectors import small

from understudy.detectors.anchor_fit import fit_of_boxes
from understudy.detectors.shape_fit import describe_boxes, fit_of_shapes
from understudy.errors import UserError


@pytest.mark.parametrize("side", [4.0, 12.0, 40.0, 150.0])
@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_overlaps_are_upper_limits_of_the_measured_ones(family, side):
    detector, data = small(family, classes=1), squares(side, count=5)
    shapes, measured = fit_of_shapes(detector, data, 160, 200), fit_of_boxes(detector, data, 160, 200)
    assert shapes is not None
    assert measured is not None
    assert torch.allclose(shapes.sides, measured.sides)
    assert (shapes.objects, shapes.anchor_sides) == (5, measured.anchor_sides)
    assert shapes.below_cell == measured.below_cell
    assert (shapes.overlaps >= measured.overlaps - 1e-5).all()


def test_small_objects_are_warned_of_with_the_keys_that_mend_it():
    line, remarks = describe_boxes(squares(8.0), "retinanet_mobilenet_v2", 160, 200)
    assert line == (
        "Side of the boxes of train at data.shorter_side=160: 10 % below 8, half below 8, 10 % above 8 pixels; anchors "
        "of retinanet_mobilenet_v2: 32 to 812 pixels"
    )
    assert remarks[0].startswith("100% of the objects are too small for the smallest anchor of retinanet_mobilenet_v2")
    assert "at data.shorter_side=160. Set detector.anchor_scale=1.0 or data.shorter_side=640" in remarks[0]
    for better in ({"shorter_side": 640, "longer_side": 800}, {"anchor_scale": 1.0}):
        sizes = {"shorter_side": 160, "longer_side": 200, **better}
        assert describe_boxes(squares(8.0), "retinanet_mobilenet_v2", **sizes)[1] == []


def test_nothing_is_said_without_objects_and_a_wrong_name_is_refused():
    data = squares(8.0)
    assert describe_boxes(squares(8.0, count=0), "fcos_mobilenet_v2", 160, 200) == ("", [])
    with pytest.raises(UserError, match="retinanet_resnet50"):
        describe_boxes(data, "retinanet_resnet5O", 160, 200)
