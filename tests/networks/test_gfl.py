"""GFL: its losses against slow loops, its settings, and the targets it refuses."""

import math

import pytest
import torch
from dense_detectors import OBJECTS, SIZES, photos, small, targets
from references import iou
from torch import nn

from understudy.detectors import build_detector, open_detector
from understudy.errors import UserError
from understudy.networks import build_network
from understudy.networks.geometry import StrideAnchors
from understudy.networks.gfl import GFL
from understudy.networks.gfl_head import distribution_focal_loss, quality_focal_loss
from understudy.outputs import flatten_levels, unflatten_levels

# --- losses, against slow loops written from the paper's equations ----------------------------------------------------


def slow_giou(one: list[float], other: list[float]) -> float:
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    overlap = iou(one, other)
    union = sum(areas) / (1 + overlap)
    return overlap - (hull - union) / hull


def slow_losses(logits, raw, cells, truth, gt_index, reg_max=16) -> dict[str, float]:
    """The three losses; `cells` are (x, y, stride) of every anchor, everything else nested lists."""

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    quality, giou, distribution, total_weight, divisor = 0.0, 0.0, 0.0, 0.0, 0
    for image, target in enumerate(truth):
        divisor += max(1, sum(number >= 0 for number in gt_index[image]))
        for cell, (x, y, stride) in enumerate(cells):
            number = gt_index[image][cell]
            if number == -2:
                continue
            wanted = [0.0] * len(logits[image][cell])
            if number >= 0:
                box = target["boxes"][number].tolist()
                edges = [x - box[0], y - box[1], box[2] - x, box[3] - y]
                distances, side_loss = [], 0.0
                for side, edge in enumerate(edges):
                    bins = raw[image][cell][side * (reg_max + 1) : (side + 1) * (reg_max + 1)]
                    total = sum(math.exp(value) for value in bins)
                    shares = [math.exp(value) / total for value in bins]
                    distances.append(stride * sum(place * share for place, share in enumerate(shares)))
                    true = min(max(edge / stride, 0.0), reg_max - 0.1)
                    low = int(true)
                    side_loss -= (low + 1 - true) * math.log(shares[low]) + (true - low) * math.log(shares[low + 1])
                found = [x - distances[0], y - distances[1], x + distances[2], y + distances[3]]
                weight = max(sigmoid(value) for value in logits[image][cell])
                wanted[int(target["labels"][number])] = iou(found, box)
                giou += weight * (1 - slow_giou(found, box))
                distribution += weight * side_loss / 4
                total_weight += weight
            for value, aim in zip(logits[image][cell], wanted, strict=True):
                score = sigmoid(value)
                entropy = -aim * math.log(score) - (1 - aim) * math.log(1 - score)
                quality += abs(aim - score) ** 2 * entropy
    total_weight = max(1.0, total_weight)
    return {
        "classification": quality / divisor,
        "bbox_regression": 2 * giou / total_weight,
        "distribution": 0.25 * distribution / total_weight,
    }


@pytest.mark.parametrize("reg_max", [16, 5])
@pytest.mark.parametrize("objects", OBJECTS)
def test_losses_are_those_of_the_slow_loop(objects, reg_max):
    detector = small("gfl", settings={"reg_max": reg_max})
    _, batch = photos()
    truth = targets(OBJECTS[objects])
    outputs = detector(batch, SIZES)
    gt_index = detector.assign(outputs, truth)
    found = detector.loss(outputs, truth, gt_index)

    cells = [
        (column * stride, row * stride, stride)
        for stride, (height, width) in zip(detector.spec.strides, outputs.level_sizes, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    logits, raw = flatten_levels(outputs.class_logits).tolist(), flatten_levels(outputs.box_raw).tolist()
    wanted = slow_losses(logits, raw, cells, truth, gt_index.tolist(), reg_max)
    assert found.keys() == wanted.keys()
    for loss, value in wanted.items():
        assert found[loss].item() == pytest.approx(value, rel=1e-5), loss


def test_the_parts_of_the_losses_at_known_values():
    logits = torch.tensor([0.3, -2.0])
    torch.testing.assert_close(quality_focal_loss(logits, logits.sigmoid()), torch.zeros(2))
    shares = torch.tensor([0.0, 0.25, 0.75, 0.0])
    least = distribution_focal_loss(shares.log().clamp(min=-50), torch.tensor(1.75))
    assert least.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_anchors_beyond_an_images_own_padding_are_ignored():
    detector = small("gfl")
    _, batch = photos()
    outputs = detector(batch, SIZES)
    truth = targets(OBJECTS["objects"])
    first, second = detector.assign(outputs, truth)
    for index, own in ((first, (96, 96)), (second, (64, 128))):
        inside = unflatten_levels((index != -2)[None, :, None], outputs.level_sizes, 1)
        for level, stride in zip(inside, detector.spec.strides, strict=True):
            rows, columns = (math.ceil(side / stride) for side in own)
            wanted = torch.zeros_like(level)
            wanted[:, :rows, :columns] = True
            assert torch.equal(level, wanted)
    without_padding = detector(batch)
    assert (detector.assign(without_padding, truth) != -2).all()


# --- building ---------------------------------------------------------------------------------------------------------


def test_settings_and_options_reach_the_network():
    settings = {"stacked_convs": 2, "reg_max": 7, "groups": 3, "extra_levels": "on_input", "extra_relu": True}
    settings |= {"score_threshold": 0.2, "nms_threshold": 0.4, "candidates": 50, "detections": 7}
    network = build_network(
        "gfl_resnet18", 4, neck_channels=12, width_mult=0.25, anchor_scale=6.0, conventions="mmdet", settings=settings
    )
    names = network.state_dict()
    assert names["head.regression_head.bbox_reg.weight"].shape == (4 * 8, 12, 3, 3)
    assert names["backbone.fpn.extra_blocks.p6.weight"].shape == (12, 128, 3, 3)
    assert "head.classification_head.conv.1.0.weight" in names
    assert "head.classification_head.conv.2.0.weight" not in names
    assert "head.classification_head.conv.0.0.bias" not in names
    assert network.head.regression_head.conv[0][1].num_groups == 3
    thresholds = (network.score_thresh, network.nms_thresh, network.topk_candidates, network.detections_per_img)
    assert thresholds == (0.2, 0.4, 50, 7)
    detector = open_detector(network)
    assert detector.spec.box_size == 32
    anchors = detector(torch.rand(1, 3, 64, 64)).anchors[1]
    torch.testing.assert_close(anchors[0, 0, 0], torch.tensor([-48.0, -48, 48, 48]))
    assert build_network("gfl_resnet18", 4, neck_channels=128).head.regression_head.conv[0][1].num_groups == 32


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"groups": 32}, "num_groups"), ({"reg_max": 0}, "at least 1"), ({"extra_levels": "on_lateral"}, "on_lateral")],
)
def test_settings_that_do_not_fit_are_refused(settings, fault):
    with pytest.raises(UserError, match=rf"(gfl_resnet18 cannot be built|settings\.reg_max: expected).*{fault}"):
        build_detector("gfl_resnet18", 2, neck_channels=24, width_mult=0.25, settings=settings)


def test_invalid_targets_are_all_named():
    network = small("gfl").network.train()
    image = torch.rand(3, 64, 64)
    good = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="expected one target for each of the 1 images, got none"):
        network([image])
    with pytest.raises(ValueError, match="each of the 2 images, got 1"):
        network([image, image], [good])
    wrong = [
        {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([3])},
        {"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(4), "labels": torch.zeros(1, dtype=torch.int64)},
        good,
    ]
    with pytest.raises(ValueError, match="Invalid targets:") as failure:
        network([image] * 4, wrong)
    message = str(failure.value)
    for part in ("0: expected labels from 0 to 2, got 3", "1: expected boxes with a width", "2: expected boxes (M, 4)"):
        assert f"image {part}" in message
    assert "image 3" not in message


def test_an_unfit_backbone_or_unfit_anchors_are_refused():
    with pytest.raises(ValueError, match="out_channels"):
        GFL(nn.Identity(), 2)
    backbone = nn.Identity()
    backbone.out_channels = 32
    with pytest.raises(ValueError, match="one square anchor per cell"):
        GFL(backbone, 2, anchor_generator=StrideAnchors((8, 16), (4.0, 5.0), (1.0,)))
