"""RetinaNet in mmdet's conventions: its losses and its matching against slow loops, and its settings."""

import math

import pytest
import torch
from dense_detectors import OBJECTS, SIZES, photos, small, targets
from slow_loops import slow_focal, slow_forced_match
from torchvision.ops import box_iou

from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.outputs import flatten_levels


@pytest.mark.parametrize("objects", ["objects", "none"])
def test_retinanets_losses_are_those_of_the_slow_loop(objects):
    detector = small("retinanet").double()
    _, batch = photos()
    truth = targets(OBJECTS[objects])
    outputs = detector(batch.double(), SIZES)
    gt_index = detector.assign(outputs, truth)
    found = detector.loss(outputs, truth, gt_index)
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors]).tolist()
    divisor = sum(max(1, sum(number >= 0 for number in index)) for index in gt_index.tolist())
    distance = 0.0
    for image, index, target in zip(flatten_levels(outputs.box_raw).tolist(), gt_index.tolist(), truth, strict=True):
        for raw, number, anchor in zip(image, index, anchors, strict=True):
            if number < 0:
                continue
            box = target["boxes"][number].tolist()
            for axis in (0, 1):
                side, wanted = anchor[axis + 2] - anchor[axis], box[axis + 2] - box[axis]
                shift = (box[axis + 2] + box[axis] - anchor[axis + 2] - anchor[axis]) / 2
                distance += abs(raw[axis] - shift / side) + abs(raw[axis + 2] - math.log(wanted / side))
    wanted = {
        "classification": slow_focal(flatten_levels(outputs.class_logits), truth, gt_index) / divisor,
        "bbox_regression": distance / divisor,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(wanted, rel=1e-5)


def test_anchors_beyond_an_images_own_padding_are_ignored():
    detector = small("retinanet")
    _, batch = photos()
    outputs = detector(batch, SIZES)
    truth = targets(OBJECTS["objects"])
    truth[1]["boxes"] = torch.tensor([[90.0, 40, 126, 63]])  # whose best anchors of the batch lie below the image
    found = detector.assign(outputs, truth)
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
    cells = [
        (row * stride, column * stride)
        for stride, (height, width) in zip(detector.spec.strides, outputs.level_sizes, strict=True)
        for row in range(height)
        for column in range(width)
        for _ in range(9)
    ]
    for index, target, (height, width) in zip(found, truth, [(96, 96), (64, 128)], strict=True):
        inside = torch.tensor([y < height and x < width for y, x in cells])
        assert 0 < inside.sum() < len(inside)
        assert (index[~inside] == -2).all()
        overlaps = box_iou(target["boxes"], anchors[inside])
        assert index[inside].tolist() == slow_forced_match(overlaps.tolist(), 0.0)
        assert set(range(len(target["boxes"]))) <= set(index.tolist())


def test_settings_and_options_reach_the_network():
    options = {"conventions": "mmdet", "neck_channels": 16, "width_mult": 0.25}
    thresholds = {"score_threshold": 0.1, "nms_threshold": 0.6, "candidates": 50, "detections": 7}
    retinanet = build_detector(
        "retinanet_resnet18", 3, head_norm="group", anchor_scale=3, settings=thresholds, **options
    )
    assert "head.regression_head.conv.3.1.weight" in retinanet.network.state_dict()
    level = retinanet(torch.zeros(1, 3, 64, 64)).anchors[1]
    torch.testing.assert_close(level[2, 1, 3], torch.tensor([-8.0, 8, 40, 56]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"norm_on_bbox": True}, "has no setting 'norm_on_bbox'"),
        ({"extra_levels": "on_lateral"}, "extra_levels: expected one of on_input, on_output, got 'on_lateral'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, fault):
    with pytest.raises(UserError, match=fault):
        build_detector("retinanet_resnet18", 3, conventions="mmdet", settings=settings, width_mult=0.25)
