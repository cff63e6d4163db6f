"""GFL, opened: its record, its boxes, and that it learns."""

import math

import torch
from dense_detectors import OBJECTS, SIZES, photos, small, targets
from references import iou


def test_anchors_are_eight_cells_wide_around_the_corners_of_cells():
    detector = small("gfl")
    anchors_of_levels = detector(photos()[1], SIZES).anchors
    for anchors, stride in zip(anchors_of_levels, detector.spec.strides, strict=True):
        height, width = math.ceil(96 / stride), math.ceil(128 / stride)
        torch.testing.assert_close(anchors[0, 0, 0], torch.tensor([-4.0, -4, 4, 4]) * stride)
        torch.testing.assert_close(anchors[-1, -1, 0, :2], torch.tensor([width - 5.0, height - 5]) * stride)


def test_boxes_without_an_area_are_no_detections():
    detector = small("gfl").eval()
    _, batch = photos()
    with torch.no_grad():
        outputs = detector(batch, SIZES)
    for raw in outputs.box_raw:
        raw.unflatten(-1, (4, 17))[..., 0] = 300.0  # every side at distance zero
    assert [len(found["boxes"]) for found in detector.detect(outputs, SIZES)] == [0, 0]


def test_quality_and_weights_are_constants_to_the_gradient():
    detector = small("gfl").train()
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    outputs = detector(batch, SIZES)
    losses = detector.loss(outputs, truth, detector.assign(outputs, truth))
    for loss, untouched, touched in (
        ("classification", outputs.box_raw, outputs.class_logits),
        ("bbox_regression", outputs.class_logits, outputs.box_raw),
        ("distribution", outputs.class_logits, outputs.box_raw),
    ):
        nothing = torch.autograd.grad(losses[loss], untouched, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in nothing)
        something = torch.autograd.grad(losses[loss], touched, retain_graph=True)
        assert sum(gradient.abs().sum() for gradient in something) > 0


def test_it_learns_to_find_what_it_was_shown():
    detector = small("gfl", norm="batch", neck_channels=32).train()
    _, batch = photos()
    truth = targets(OBJECTS["objects"][:2])
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    for _ in range(30):
        outputs = detector(batch, SIZES)
        losses = detector.loss(outputs, truth, detector.assign(outputs, truth))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        detections = detector.detect(detector(batch, SIZES), SIZES)
    for found, target in zip(detections, truth, strict=True):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            best = found["boxes"][found["labels"] == label][0]
            assert iou(best.tolist(), box.tolist()) > 0.6
