"""GFL: its losses and its matching against slow loops, mmdet's own numbers, and the plain file alone."""

import copy
import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from understudy.checkpoints.mmdet_keys import translate
from understudy.checkpoints.unpickle import read_foreign
from understudy.detectors import build_detector, open_detector
from understudy.detectors.plain import build_network
from understudy.detectors.plain import gfl as plain
from understudy.errors import UserError
from understudy.outputs import flatten_levels, unflatten_levels

SIZES = [(80, 90), (57, 128)]  # each is padded further than to its own multiple of 32
OBJECTS = {
    "objects": [[8.0, 12, 60, 77], [30, 30, 88, 70], [2, 2, 20, 14], [33, 31, 61, 52]],
    "one pixel": [[40.0, 40, 41, 41]],
    "none": [],
}
LABELS = [0, 2, 1, 2]


def small(**options):
    """A GFL that is confident here and there, so that there is something to detect."""
    torch.manual_seed(0)
    options = {"neck_channels": 16, "width_mult": 0.25, "shorter_side": 80, "longer_side": 128, **options}
    detector = build_detector("gfl_resnet18", 3, **{"norm": "frozen", **options})
    head = detector.network.head
    nn.init.constant_(head.classification_head.cls_logits.bias, -1.5)
    nn.init.normal_(head.classification_head.cls_logits.weight, std=0.1)
    nn.init.normal_(head.regression_head.bbox_reg.weight, std=0.1)
    nn.init.uniform_(head.regression_head.scales, 0.8, 1.2)
    return detector


def photos() -> tuple[list[Tensor], Tensor]:
    """Two images as a list, as torchvision takes them, and as our padded batch."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES]
    batch = torch.full((2, 3, 96, 128), 0.7)  # whatever lies in the padding must not matter
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, batch


def targets(boxes: list[list[float]]) -> list[dict[str, Tensor]]:
    first = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(LABELS[: len(boxes)], dtype=torch.int64),
    }
    return [first, {"boxes": torch.tensor([[5.0, 20, 70, 55]]), "labels": torch.tensor([2])}]


# --- slow loops, written from the papers' equations -------------------------------------------------------------------


def slow_iou(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def slow_giou(one: list[float], other: list[float]) -> float:
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    iou = slow_iou(one, other)
    union = sum(areas) / (1 + iou)
    return iou - (hull - union) / hull


def slow_atss(levels: list[list[list[float]]], boxes: list[list[float]], candidates: int) -> list[int]:
    anchors = [anchor for level in levels for anchor in level]
    claims: list[list[tuple[float, int]]] = [[] for _ in anchors]
    for number, box in enumerate(boxes):
        chosen, start = [], 0
        for level in levels:

            def distance(cell: int, start=start, box=box) -> float:
                x, y = (sum(anchors[start + cell][side::2]) / 2 - sum(box[side::2]) / 2 for side in (0, 1))
                return math.hypot(x, y)

            chosen += [start + cell for cell in sorted(range(len(level)), key=distance)[:candidates]]
            start += len(level)
        overlaps = [slow_iou(anchors[cell], box) for cell in chosen]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for cell, overlap in zip(chosen, overlaps, strict=True):
            x, y = (sum(anchors[cell][side::2]) / 2 for side in (0, 1))
            if overlap >= threshold and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
                claims[cell].append((overlap, number))
    return [max(claim)[1] if claim else -1 for claim in claims]


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
                wanted[int(target["labels"][number])] = slow_iou(found, box)
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
    detector = small(settings={"reg_max": reg_max})
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


@pytest.mark.parametrize("seed", range(5))
def test_atss_is_the_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    grid = plain.StrideAnchors((8, 16, 32, 64, 128), (8.0,), (1.0,))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    levels = [grid.level(stride, *size, torch.device("cpu")) for stride, size in zip(grid.strides, sizes, strict=True)]
    corners = torch.rand(12, 2, generator=generator) * torch.tensor([150.0, 100])
    boxes = torch.cat([corners, corners + torch.rand(12, 2, generator=generator) ** 2 * 90 + 1], dim=1)
    found = plain.atss(levels, boxes)
    assert found.tolist() == slow_atss([level.tolist() for level in levels], boxes.tolist(), 9)
    assert len(found.unique()) > 5
    fewer = plain.atss(levels, boxes, candidates=3)
    assert fewer.tolist() == slow_atss([level.tolist() for level in levels], boxes.tolist(), 3)


def test_the_parts_at_known_values():
    bins = torch.zeros(2, 4 * 17)
    bins[1, 17 * 2 + 9] = 50.0  # the right side is nine strides away, the others anywhere
    torch.testing.assert_close(plain.integral(bins), torch.tensor([[8.0, 8, 8, 8], [8, 8, 9, 8]]))
    logits = torch.tensor([0.3, -2.0])
    torch.testing.assert_close(plain.quality_focal_loss(logits, logits.sigmoid()), torch.zeros(2))
    shares = torch.tensor([0.0, 0.25, 0.75, 0.0])
    least = plain.distribution_focal_loss(shares.log().clamp(min=-50), torch.tensor(1.75))
    assert least.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


# --- the plain network and the opened one -----------------------------------------------------------------------------


@pytest.mark.parametrize("objects", OBJECTS)
def test_losses_are_the_plain_networks_own(objects):
    detector = small().train()
    images, batch = photos()
    truth = targets(OBJECTS[objects])
    wanted = detector.network(copy.deepcopy(images), copy.deepcopy(truth))
    outputs = detector(batch, SIZES)
    found = detector.loss(outputs, truth, detector.assign(outputs, truth))
    assert found.keys() == wanted.keys()
    for loss, value in wanted.items():
        assert value > 0
        torch.testing.assert_close(found[loss], value, rtol=1e-6, atol=1e-7)


def test_detections_are_the_plain_networks_own():
    detector = small().eval()
    images, batch = photos()
    with torch.no_grad():
        wanted = detector.network(images)
        found = detector.detect(detector(batch, SIZES), SIZES)
    for ours, theirs, (height, width) in zip(found, wanted, SIZES, strict=True):
        assert len(theirs["boxes"]) > 10
        assert (theirs["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (theirs["scores"].diff() <= 0).all()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key])


def test_detections_are_the_best_above_the_threshold_of_each_level():
    settings = {"score_threshold": 0.2, "nms_threshold": 1.0, "candidates": 4, "detections": 1000}
    detector = small(settings=settings).eval()
    _, batch = photos()
    with torch.no_grad():
        outputs = detector(batch, SIZES)
    for number, found in enumerate(detector.detect(outputs, SIZES)):
        scores = [logits[number].sigmoid().flatten().tolist() for logits in outputs.class_logits]
        best = [sorted((score for score in level if score > 0.2), reverse=True)[:4] for level in scores]
        assert any(score < 0.2 for level in scores for score in level)
        wanted = torch.tensor(sorted((score for level in best for score in level), reverse=True))
        torch.testing.assert_close(found["scores"], wanted)
        detector.network.detections_per_img = 3
        assert torch.equal(detector.detect(outputs, SIZES)[number]["boxes"], found["boxes"][:3])
        detector.network.detections_per_img = 1000


def test_boxes_without_an_area_are_no_detections():
    detector = small().eval()
    _, batch = photos()
    with torch.no_grad():
        outputs = detector(batch, SIZES)
    for raw in outputs.box_raw:
        raw.unflatten(-1, (4, 17))[..., 0] = 300.0  # every side at distance zero
    assert [len(found["boxes"]) for found in detector.detect(outputs, SIZES)] == [0, 0]


def test_quality_and_weights_are_constants_to_the_gradient():
    detector = small().train()
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


def test_without_objects_the_losses_are_zeros_that_reach_every_parameter():
    detector = small().train()
    _, batch = photos()
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in batch]
    outputs = detector(batch, SIZES)
    gt_index = detector.assign(outputs, nothing)
    assert set(gt_index.unique().tolist()) == {-1, -2}
    losses = detector.loss(outputs, nothing, gt_index)
    assert losses["bbox_regression"] == losses["distribution"] == 0
    assert losses["classification"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)


def test_anchors_beyond_an_images_own_padding_are_left_out():
    detector = small()
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


def test_decoding_encoded_boxes_gives_the_boxes():
    detector = small()
    _, batch = photos()
    outputs = detector(batch, SIZES)
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
    boxes = anchors + torch.tensor([-3.0, -2.0, 5.0, 4.0])
    distances = detector.network.head.box_coder.encode(boxes, anchors)
    # Two neighbouring distances share the whole probability, so that their mean is the true one.
    shares = (1 - (torch.arange(17.0) - distances[..., None]).abs()).clamp(min=0)
    raw = unflatten_levels(shares.log().clamp(min=-60).flatten(1).expand(2, -1, -1), outputs.level_sizes, 1)
    decoded = detector.decode(type(outputs)(**{f: getattr(outputs, f) for f in outputs.__slots__} | {"box_raw": raw}))
    torch.testing.assert_close(flatten_levels(decoded), boxes.expand(2, -1, -1), rtol=1e-4, atol=1e-2)


def test_the_record_is_the_same_in_train_and_eval_and_as_the_spec_says():
    detector = small()
    _, batch = photos()
    in_train, in_eval = detector.train()(batch, SIZES), detector.eval()(batch, SIZES)
    for field in ("stages", "features", "class_logits", "box_raw", "anchors"):
        for one, other in zip(getattr(in_train, field), getattr(in_eval, field), strict=True):
            torch.testing.assert_close(one, other)
    spec = detector.spec
    assert (spec.family, spec.box_code, spec.box_size, spec.num_anchors) == ("gfl", "distributions", 68, 1)
    assert spec.strides == (8, 16, 32, 64, 128)
    for logits, box, anchors, stride in zip(
        in_eval.class_logits, in_eval.box_raw, in_eval.anchors, spec.strides, strict=True
    ):
        height, width = math.ceil(96 / stride), math.ceil(128 / stride)
        assert logits.shape == (2, height, width, 1, 3)
        assert box.shape == (2, height, width, 1, 68)
        torch.testing.assert_close(anchors[0, 0, 0], torch.tensor([-4.0, -4, 4, 4]) * stride)
        torch.testing.assert_close(anchors[-1, -1, 0, :2], torch.tensor([width - 5.0, height - 5]) * stride)


def test_the_head_passes_gradients_to_any_features():
    detector = small().eval()
    features = [torch.randn(1, 16, side, side, requires_grad=True) for side in (8, 4, 2, 1, 1)]
    outputs = detector.head(features, (64, 64))
    flatten_levels(outputs.class_logits).sum().backward(retain_graph=True)
    assert all(feature.grad.abs().sum() > 0 for feature in features)
    scales = detector.network.head.regression_head.scales
    flatten_levels(outputs.box_raw).square().sum().backward()
    assert (scales.grad.abs() > 0).all()
    with pytest.raises(ValueError, match="each of 5 levels, got 4"):
        detector.head(features[:4], (64, 64))


def test_under_autocast_anchors_stay_exact_and_losses_are_float32():
    detector = small()
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector(batch, SIZES)
        assert outputs.class_logits[0].dtype == torch.bfloat16
        losses = detector.loss(outputs, truth, detector.assign(outputs, truth))
        detections = detector.detect(outputs, SIZES)
    exact = detector(batch, SIZES)
    for one, other in zip(outputs.anchors, exact.anchors, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(detector.assign(outputs, truth), detector.assign(exact, truth))
    assert detections[0]["boxes"].dtype == torch.float32
    for loss, value in detector.loss(exact, truth, detector.assign(exact, truth)).items():
        assert losses[loss].dtype == torch.float32
        torch.testing.assert_close(losses[loss], value, rtol=0.05, atol=0)


def test_it_learns_to_find_what_it_was_shown():
    detector = small(norm="batch", neck_channels=32).train()
    _, batch = photos()
    truth = targets(OBJECTS["objects"][:2])
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    for _ in range(50):
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
            assert slow_iou(best.tolist(), box.tolist()) > 0.6


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
    with pytest.raises(UserError, match=rf"gfl_resnet18 cannot be built.*{fault}"):
        build_detector("gfl_resnet18", 2, neck_channels=24, width_mult=0.25, settings=settings)


def test_scores_begin_at_one_percent():
    detector = build_detector("gfl_resnet18", 3, neck_channels=16, width_mult=0.25).eval()
    with torch.no_grad():
        scores = flatten_levels(detector(torch.rand(1, 3, 64, 64)).class_logits).sigmoid()
    assert 0.005 < scores.min() < scores.max() < 0.02


# --- the file alone ---------------------------------------------------------------------------------------------------


def test_the_file_works_with_torchvision_alone(monkeypatch):
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    for name in [name for name in sys.modules if name.split(".")[0] == "understudy"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    spec = importlib.util.spec_from_file_location("gfl_alone", plain.__file__)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)

    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, **levels)
    model = alone.GFL(backbone, num_classes=3, min_size=64, max_size=128)
    images = [torch.rand(3, 50, 60), torch.rand(3, 64, 40)]
    truth = [
        {"boxes": torch.tensor([[5.0, 5, 40, 45], [1, 1, 10, 9]]), "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    losses = model.train()(images, truth)
    assert set(losses) == {"classification", "bbox_regression", "distribution"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)

    nn.init.constant_(model.head.classification_head.cls_logits.bias, -1.0)
    with torch.no_grad():
        detections = model.eval()(images)
    for found, image in zip(detections, images, strict=True):
        height, width = image.shape[-2:]
        assert 0 < len(found["boxes"]) <= 100
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2) + 1e-4).all()
        assert found["labels"].max() < 3
    with torch.no_grad():
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -9.0)
        assert [len(found["boxes"]) for found in model(images)] == [0, 0]


def test_targets_that_cannot_be_trained_on_are_all_named():
    network = small().network.train()
    image = torch.rand(3, 64, 64)
    good = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"one target for each of the 1 images, got none"):
        network([image])
    with pytest.raises(ValueError, match=r"each of the 2 images, got 1"):
        network([image, image], [good])
    wrong = [
        {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([3])},
        {"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(4), "labels": torch.zeros(1, dtype=torch.int64)},
        good,
    ]
    with pytest.raises(ValueError, match="cannot be trained on") as failure:
        network([image] * 4, wrong)
    message = str(failure.value)
    for part in ("image 0: labels are 0 to 2, got 3", "image 1: boxes have", "image 2: boxes are (M, 4)"):
        assert part in message
    assert "image 3" not in message


def test_what_a_gfl_cannot_be_built_from_is_refused():
    with pytest.raises(ValueError, match="out_channels"):
        plain.GFL(nn.Identity(), 2)
    backbone = nn.Identity()
    backbone.out_channels = 32
    with pytest.raises(ValueError, match="one square anchor per cell"):
        plain.GFL(backbone, 2, anchor_generator=plain.StrideAnchors((8, 16), (4.0, 5.0), (1.0,)))


# --- mmdet ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mmdet(shared):
    """A detector with the weights that mmdet ran with, its images as a batch, and what mmdet computed."""
    folder: Path = shared / "reference/mmdet/gfl"
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "outputs.npz") as arrays:
        wanted = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    detector = build_detector(
        f"gfl_resnet{meta['depth']}",
        meta["num_classes"],
        neck_channels=meta["fpn_channels"],
        width_mult=meta["base_channels"] / 64,
        norm="frozen",
        conventions="mmdet",
        settings={"groups": 32},
        image_mean=[value / 255 for value in (123.675, 116.28, 103.53)],
        image_std=[value / 255 for value in (58.395, 57.12, 57.375)],
    ).eval()
    weights = read_foreign(folder / "checkpoint.pth").value["state_dict"]
    detector.network.load_state_dict(translate(weights, "gfl"))
    sizes = [tuple(size) for size in meta["image_sizes"]]
    batch = torch.rand(2, 3, *wanted["input"].shape[-2:])
    for number, (height, width) in enumerate(sizes):
        batch[number, :, :height, :width] = wanted[f"image{number}"].flip(-1).permute(2, 0, 1) / 255
    with torch.no_grad():
        outputs = detector(batch, sizes)
    return detector, outputs, sizes, wanted, meta["losses"]


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_backbone_neck_and_head_compute_what_mmdet_computes(mmdet):
    _, outputs, _, wanted, _ = mmdet
    for level, stage in enumerate(outputs.stages):
        assert_equal(stage, wanted[f"backbone{level + 1}"])
    for level in range(5):
        assert_equal(outputs.features[level], wanted[f"neck{level}"])
        assert_equal(outputs.class_logits[level].squeeze(3).permute(0, 3, 1, 2), wanted[f"cls{level}"])
        assert_equal(outputs.box_raw[level].squeeze(3).permute(0, 3, 1, 2), wanted[f"box{level}"])


def test_detections_are_mmdets(mmdet):
    detector, outputs, sizes, wanted, _ = mmdet
    for number, found in enumerate(detector.detect(outputs, sizes)):
        assert torch.equal(found["labels"], wanted[f"det{number}_labels"])
        assert_equal(found["boxes"], wanted[f"det{number}_boxes"])
        assert_equal(found["scores"], wanted[f"det{number}_scores"])


def test_losses_are_mmdets(mmdet):
    detector, outputs, _, wanted, losses = mmdet
    truth = [{"boxes": wanted[f"gt{number}_boxes"], "labels": wanted[f"gt{number}_labels"]} for number in range(2)]
    found = detector.loss(outputs, truth, detector.assign(outputs, truth))
    names = {"classification": "loss_cls", "bbox_regression": "loss_bbox", "distribution": "loss_dfl"}
    for ours, theirs in names.items():
        assert found[ours].item() == pytest.approx(losses[theirs], rel=1e-4)
