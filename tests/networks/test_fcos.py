"""FCOS in mmdet's conventions: its losses and its matching against slow loops, and its settings."""

import math

import pytest
import torch
from dense_detectors import OBJECTS, ON_REGRESSION, SIZES, photos, small, targets
from slow_loops import slow_focal
from torch import nn

from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.outputs import flatten_levels

BOTH = pytest.mark.parametrize("variant", ["fcos", "fcos, centred"])

# --- matching ---------------------------------------------------------------------------------------------------------


def slow_fcos_match(points: list[tuple[float, float, int]], boxes: list[list[float]], radius: float) -> list[int]:
    matched = []
    for x, y, stride in points:
        low = -1 if stride == 8 else stride * 4
        high = math.inf if stride == 128 else stride * 8
        claims = []
        for number, (left, top, right, bottom) in enumerate(boxes):
            sides = (x - left, y - top, right - x, bottom - y)
            off_centre = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
            if min(sides) > 0 and low <= max(sides) <= high and off_centre < radius * stride:
                claims.append(((right - left) * (bottom - top), number))
        matched.append(min(claims)[1] if claims else -1)
    return matched


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_points_are_matched_as_by_the_slow_loop(variant, seed):
    detector = small(variant)
    outputs = detector(torch.zeros(1, 3, 256, 320), [(250, 320)])
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(12, 2, generator=generator) * 200
    sizes = torch.rand(12, 2, generator=generator) * 150 + 1
    # Two whose farthest side is, from the points in their first and last column, exactly where two levels meet.
    exact = [[0.0, 0.0, 68.0, 60.0], [100.0, 100.0, 236.0, 140.0]]
    boxes = torch.cat([torch.cat([corners, corners + sizes], 1), torch.tensor(exact)])
    target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    points = [
        ((column + 0.5) * stride, (row + 0.5) * stride, stride)
        for stride, (height, width) in zip(detector.spec.strides, outputs.level_sizes, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    found = detector.assign(outputs, [target])[0].tolist()
    assert found == slow_fcos_match(points, boxes.tolist(), 1.5 if variant == "fcos, centred" else math.inf)
    assert len(set(found)) > 5


def test_the_range_of_a_level_includes_both_ends():
    detector = small("fcos")
    outputs = detector(torch.zeros(1, 3, 128, 128))
    # From the point (4, 4) of the finest level the farthest side is 64 pixels away, from (8, 8) of the next 64 as well.
    for box in ([0.0, 0, 68, 68], [0.0, 0, 72, 72]):
        target = {"boxes": torch.tensor([box]), "labels": torch.tensor([0])}
        index = detector.assign(outputs, [target])[0]
        finest, second = index[: 16 * 16].view(16, 16), index[16 * 16 :][: 8 * 8].view(8, 8)
        assert finest[0, 0] == (0 if box[2] == 68 else -1)
        assert second[0, 0] == (-1 if box[2] == 68 else 0)


# --- losses and distances ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("objects", ["objects", "none"])
def test_losses_are_those_of_the_slow_loop(variant, objects):
    detector = small(variant).double()
    _, batch = photos()
    truth = targets(OBJECTS[objects])
    outputs = detector(batch.double(), SIZES)
    gt_index = detector.assign(outputs, truth)
    found = detector.loss(outputs, truth, gt_index)
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors]).tolist()
    boxes, centres, weights, positives = 0.0, 0.0, 0.0, 0
    images = zip(
        flatten_levels(outputs.box_raw).tolist(),
        outputs.extra["centerness"].tolist(),
        gt_index.tolist(),
        truth,
        strict=True,
    )
    for raw, logits, index, target in images:
        for sides, logit, number, anchor in zip(raw, logits, index, anchors, strict=True):
            if number < 0:
                continue
            x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
            left, top, right, bottom = target["boxes"][number].tolist()
            true = (x - left, y - top, right - x, bottom - y)
            across, down = sorted(true[0::2]), sorted(true[1::2])
            quality = math.sqrt(across[0] / across[1] * (down[0] / down[1]))
            width, height = (min(sides[i], true[i]) + min(sides[i + 2], true[i + 2]) for i in (0, 1))
            hull = math.prod(max(sides[i], true[i]) + max(sides[i + 2], true[i + 2]) for i in (0, 1))
            union = sum((s[0] + s[2]) * (s[1] + s[3]) for s in (sides, true)) - width * height
            iou = width * height / union
            boxes += quality * (-math.log(iou) if variant == "fcos" else 1 - iou + (hull - union) / hull)
            centres += -quality * math.log(1 / (1 + math.exp(-logit))) - (1 - quality) * -math.log(1 + math.exp(logit))
            weights, positives = weights + quality, positives + 1
    assert positives > 3
    wanted = {
        "classification": slow_focal(flatten_levels(outputs.class_logits), truth, gt_index) / positives,
        "bbox_regression": boxes / weights,
        "bbox_ctrness": centres / positives,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(wanted, rel=1e-5)


def test_norm_on_bbox_scales_positive_distances_by_the_stride():
    for variant, meaning in {
        "fcos": lambda predicted, stride: predicted.exp(),
        "fcos, centred": lambda predicted, stride: predicted.relu() * stride,
    }.items():
        detector = small(variant)
        nn.init.zeros_(detector.network.head.regression_head.bbox_reg.bias)
        _, batch = photos()
        outputs = detector(batch, SIZES)
        head = detector.network.head.regression_head
        for raw, feature, scale, stride in zip(
            outputs.box_raw, outputs.features, head.scales, (8, 16, 32, 64, 128), strict=True
        ):
            predicted = head.bbox_reg(head.conv(feature)) * scale
            torch.testing.assert_close(raw[:, :, :, 0], meaning(predicted, stride).permute(0, 2, 3, 1))
        assert (outputs.box_raw[0] >= 0).all()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_reach_the_network():
    thresholds = {"score_threshold": 0.1, "nms_threshold": 0.6, "candidates": 50, "detections": 7}
    options = {"conventions": "mmdet", "neck_channels": 16, "width_mult": 0.25}
    fcos = build_detector(
        "fcos_resnet18", 3, settings={**thresholds, **ON_REGRESSION, "groups": 16, "stacked_convs": 2}, **options
    ).network
    assert (fcos.score_thresh, fcos.nms_thresh, fcos.topk_candidates, fcos.detections_per_img) == (0.1, 0.6, 50, 7)
    tower = fcos.head.classification_head.conv
    assert [len(tower), tower[0][0].bias is not None, tower[0][1].num_groups] == [2, True, 16]
    names = set(fcos.state_dict())
    assert {"head.regression_head.bbox_ctrness.weight", "head.regression_head.scales"} <= names
    plain = set(build_detector("fcos_resnet18", 3, **options).network.state_dict())
    assert "head.classification_head.bbox_ctrness.weight" in plain
    assert "head.classification_head.conv.0.0.bias" not in plain


def test_caffe_style_strides_in_the_first_convolution():
    options = {"conventions": "mmdet", "neck_channels": 16, "width_mult": 0.125}
    for style, strides in {"pytorch": (1, 2), "caffe": (2, 1)}.items():
        body = build_detector("fcos_resnet50", 3, settings={"style": style}, **options).network.backbone.body
        assert (body.layer2[0].conv1.stride[0], body.layer2[0].conv2.stride[0]) == strides


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"box_loss": "l1"}, "box_loss: expected one of iou, giou, got 'l1'"),
        ({"extra_levels": "on_lateral"}, "extra_levels: expected one of on_input, on_output, got 'on_lateral'"),
        ({"octaves": 2}, "has no setting 'octaves'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, fault):
    with pytest.raises(UserError, match=fault):
        build_detector("fcos_resnet18", 3, conventions="mmdet", settings=settings, width_mult=0.25)
