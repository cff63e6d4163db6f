"""RetinaNet and FCOS in mmdet's conventions: mmdet's own numbers, slow loops, and the plain networks alone."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from understudy import Learner
from understudy.checkpoints.mmdet_keys import translate
from understudy.checkpoints.unpickle import read_foreign
from understudy.detectors import build_detector
from understudy.detectors.plain.gfl import choose_detections
from understudy.detectors.plain.mmdet import ClippedBoxCoder, ForcedMatcher, true_centerness
from understudy.errors import UserError
from understudy.outputs import flatten_levels

SIZES = [(80, 90), (57, 128)]  # each is padded further than to its own multiple of 32
OBJECTS = {
    "objects": [[8.0, 12, 60, 77], [30, 30, 88, 70], [2, 2, 20, 14], [33, 31, 61, 52]],
    "one pixel": [[40.0, 40, 41, 41]],
    "none": [],
}
LABELS = [0, 2, 1, 2]
ON_REGRESSION = {"norm_on_bbox": True, "centerness_on_reg": True, "conv_bias": True}
VARIANTS = {
    "retinanet": ("retinanet", {}),
    "retinanet, other anchors": ("retinanet", {"octaves": 2, "ratios": [0.4, 1.7], "stacked_convs": 1}),
    "fcos": ("fcos", {}),
    "fcos, centred": ("fcos", {"center_sampling": True, "box_loss": "giou", **ON_REGRESSION}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def small(variant: str, **options):
    """A detector that is confident here and there, so that there is something to detect."""
    torch.manual_seed(0)
    family, settings = VARIANTS[variant]
    options = {"neck_channels": 16, "width_mult": 0.25, "shorter_side": 80, "longer_side": 128, **options}
    detector = build_detector(
        f"{family}_resnet18", 3, conventions="mmdet", settings=settings, **{"norm": "frozen", **options}
    )
    head = detector.network.head
    nn.init.normal_(head.classification_head.cls_logits.weight, std=0.1)
    nn.init.constant_(head.classification_head.cls_logits.bias, -1.5)
    nn.init.normal_(head.regression_head.bbox_reg.weight, std=0.1)
    if family == "fcos":
        exponential = "norm_on_bbox" not in settings
        nn.init.constant_(head.regression_head.bbox_reg.bias, math.log(30) if exponential else 1.5)
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
    labels = torch.tensor(LABELS[: len(boxes)], dtype=torch.int64)
    second = {"boxes": torch.tensor([[5.0, 20, 70, 55]]), "labels": torch.tensor([2])}
    return [{"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels}, second]


def losses_of(detector, batch, truth):
    outputs = detector(batch, SIZES)
    return detector.loss(outputs, truth, detector.assign(outputs, truth))


# --- the plain network alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", OBJECTS)
@every_variant
def test_losses_are_the_plain_networks_own(variant, objects):
    detector = small(variant).train()
    images, batch = photos()
    truth = targets(OBJECTS[objects])
    wanted = detector.network(images, copy.deepcopy(truth))
    found = losses_of(detector, batch, truth)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.isfinite()
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-7)


@every_variant
def test_detections_are_the_plain_networks_own(variant):
    detector = small(variant).eval()
    images, batch = photos()
    with torch.no_grad():
        wanted = detector.network(images)
        found = detector.detect(detector(batch, SIZES), SIZES)
    for ours, theirs, (height, width) in zip(found, wanted, SIZES, strict=True):
        assert 20 < len(theirs["boxes"]) <= 100
        assert (ours["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-4)


@every_variant
def test_without_objects_the_box_losses_are_zeros_that_reach_every_parameter(variant):
    detector = small(variant, norm="batch").train()
    _, batch = photos()
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    losses = losses_of(detector, batch, nothing)
    assert losses["classification"] > 0
    assert all(value == 0 for name, value in losses.items() if name != "classification")
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


@every_variant
def test_the_record_is_the_same_in_train_and_eval_and_as_the_spec_says(variant):
    detector = small(variant)
    _, batch = photos()
    in_train, in_eval = detector.train()(batch, SIZES), detector.eval()(batch, SIZES)
    spec = detector.spec
    assert spec.box_code == ("deltas" if spec.family == "retinanet" else "distances in pixels")
    assert spec.strides == (8, 16, 32, 64, 128)
    for name in ("features", "class_logits", "box_raw", "anchors"):
        for one, other in zip(getattr(in_train, name), getattr(in_eval, name), strict=True):
            assert torch.equal(one, other)
    for feature, logits, box in zip(in_eval.features, in_eval.class_logits, in_eval.box_raw, strict=True):
        assert logits.shape == (2, *feature.shape[-2:], spec.num_anchors, 3)
        assert box.shape == (2, *feature.shape[-2:], spec.num_anchors, 4)
    if spec.family == "fcos":
        assert in_eval.extra["centerness"].shape == flatten_levels(in_eval.class_logits).shape[:2]


@every_variant
def test_under_autocast_anchors_stay_exact_and_losses_are_float32(variant):
    detector = small(variant).train()
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    exact, wanted = detector(batch, SIZES).anchors, losses_of(detector, batch, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        anchors, losses = detector(batch, SIZES).anchors, losses_of(detector, batch, truth)
        alone = detector.network(photos()[0], copy.deepcopy(truth))
    assert all(torch.equal(one, other) for one, other in zip(anchors, exact, strict=True))
    for name, value in losses.items():
        assert value.dtype == alone[name].dtype == torch.float32
        torch.testing.assert_close(value, wanted[name], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["fcos_resnet18", "retinanet_mobilenet_v2"])
def test_built_by_name_it_trains_a_step(name):
    torch.manual_seed(0)
    detector = build_detector(name, 5, conventions="mmdet", neck_channels=32, width_mult=0.25)
    learner = Learner(detector).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    _, batch = photos()
    before = copy.deepcopy(detector.network.state_dict())
    losses = learner(batch, targets(OBJECTS["objects"]), image_sizes=SIZES)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert not torch.equal(
        before["head.regression_head.bbox_reg.weight"], detector.network.head.regression_head.bbox_reg.weight
    )


@every_variant
def test_scores_begin_at_one_percent(variant):
    torch.manual_seed(0)
    family, settings = VARIANTS[variant]
    detector = build_detector(
        f"{family}_resnet18", 3, conventions="mmdet", settings=settings, neck_channels=16, width_mult=0.25
    ).eval()
    _, batch = photos()
    scores = flatten_levels(detector(batch).class_logits).sigmoid()
    assert scores.median().item() == pytest.approx(0.01, rel=0.1)


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

    retinanet = build_detector(
        "retinanet_resnet18", 3, head_norm="group", anchor_scale=3, settings=thresholds, **options
    )
    assert "head.regression_head.conv.3.1.weight" in retinanet.network.state_dict()
    level = retinanet(torch.zeros(1, 3, 64, 64)).anchors[1]
    torch.testing.assert_close(level[2, 1, 3], torch.tensor([-8.0, 8, 40, 56]), rtol=1e-6, atol=1e-5)


def test_caffe_style_strides_in_the_first_convolution():
    options = {"conventions": "mmdet", "neck_channels": 16, "width_mult": 0.125}
    for style, strides in {"pytorch": (1, 2), "caffe": (2, 1)}.items():
        body = build_detector("fcos_resnet50", 3, settings={"style": style}, **options).network.backbone.body
        assert (body.layer2[0].conv1.stride[0], body.layer2[0].conv2.stride[0]) == strides


@pytest.mark.parametrize(
    ("family", "settings", "fault"),
    [
        ("fcos", {"box_loss": "l1"}, "box_loss is one of iou, giou, got 'l1'"),
        ("fcos", {"extra_levels": "on_lateral"}, "got 'on_lateral'"),
        ("fcos", {"octaves": 2}, "has no setting 'octaves'"),
        ("retinanet", {"norm_on_bbox": True}, "has no setting 'norm_on_bbox'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(family, settings, fault):
    with pytest.raises(UserError, match=fault):
        build_detector(f"{family}_resnet18", 3, conventions="mmdet", settings=settings, width_mult=0.25)


# --- matching ---------------------------------------------------------------------------------------------------------


def slow_forced_match(overlaps: list[list[float]], least: float) -> list[int]:
    """Match anchor by anchor, as mmdet's MaxIoUAssigner is documented, with thresholds 0.5 and 0.4."""
    matched = []
    for anchor in range(len(overlaps[0])):
        own = [row[anchor] for row in overlaps]
        best = max(own)
        index = own.index(best) if best >= 0.5 else -1 if best < 0.4 else -2
        for number, row in enumerate(overlaps):
            if max(row) >= least and row[anchor] == max(row):
                index = number
        matched.append(index)
    return matched


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_forced_matcher_is_the_slow_loop(seed, least):
    generator = torch.Generator().manual_seed(seed)
    # Few different values, so that overlaps tie within and between objects; one object overlaps nothing well.
    overlaps = torch.randint(0, 8, (5, 40), generator=generator) / 10
    overlaps[3] = torch.randint(0, 3, (40,), generator=generator) / 10
    found = ForcedMatcher(0.5, 0.4, least)(overlaps)
    assert found.tolist() == slow_forced_match(overlaps.tolist(), least)
    assert (found == 3).any() == (least == 0)


def test_retinanet_leaves_out_anchors_beyond_an_images_own_padding():
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


@pytest.mark.parametrize("variant", ["fcos", "fcos, centred"])
@pytest.mark.parametrize("seed", range(3))
def test_fcos_matches_as_the_slow_loop(variant, seed):
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


def test_fcos_ranges_include_both_ends():
    detector = small("fcos")
    outputs = detector(torch.zeros(1, 3, 128, 128))
    # From the point (4, 4) of the finest level the farthest side is 64 pixels away, from (8, 8) of the next 64 as well.
    for box in ([0.0, 0, 68, 68], [0.0, 0, 72, 72]):
        target = {"boxes": torch.tensor([box]), "labels": torch.tensor([0])}
        index = detector.assign(outputs, [target])[0]
        finest, second = index[: 16 * 16].view(16, 16), index[16 * 16 :][: 8 * 8].view(8, 8)
        assert finest[0, 0] == (0 if box[2] == 68 else -1)
        assert second[0, 0] == (-1 if box[2] == 68 else 0)


# --- losses, boxes and detections -------------------------------------------------------------------------------------


def focal(logit: float, wanted: bool) -> float:
    score = 1 / (1 + math.exp(-logit))
    return 0.25 * (1 - score) ** 2 * -math.log(score) if wanted else 0.75 * score**2 * -math.log(1 - score)


def slow_focal(logits: Tensor, truth, gt_index: Tensor) -> float:
    total = 0.0
    for image, index, target in zip(logits.tolist(), gt_index.tolist(), truth, strict=True):
        for scores, number in zip(image, index, strict=True):
            label = target["labels"].tolist()[number] if number >= 0 else -1
            total += sum(focal(logit, k == label) for k, logit in enumerate(scores)) if number > -2 else 0
    return total


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


@pytest.mark.parametrize("variant", ["fcos", "fcos, centred"])
@pytest.mark.parametrize("objects", ["objects", "none"])
def test_fcos_losses_are_those_of_the_slow_loop(variant, objects):
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


def test_fcos_decodes_distances_round_the_middle_of_each_cell():
    detector = small("fcos")
    _, batch = photos()
    outputs = detector(batch, SIZES)
    box, raw = detector.decode(outputs)[1][0, 2, 3, 0], outputs.box_raw[1][0, 2, 3, 0]
    torch.testing.assert_close(box, torch.stack([56 - raw[0], 40 - raw[1], 56 + raw[2], 40 + raw[3]]))


def test_deltas_neither_shrink_nor_grow_a_side_beyond_the_limit():
    coder = ClippedBoxCoder((1.0, 1.0, 2.0, 2.0))
    anchor = torch.tensor([[0.0, 0, 62.5, 62.5]])
    boxes = coder.decode_single(torch.tensor([[0.0, 0, -20, 20, 0, 0, 2, 0]]), anchor)
    middle, half = 31.25, 62.5**2 / 2
    wanted = [middle - 0.5, middle - half, middle + 0.5, middle + half]
    torch.testing.assert_close(boxes[0, :4], torch.tensor(wanted))
    assert boxes[0, 6] - boxes[0, 4] == pytest.approx(62.5 * math.e)


def test_quality_multiplies_a_score_once_the_candidates_are_chosen():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10], [200, 0, 210, 10]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.06], [0.7, 0.0], [0.95, 0.0]])
    quality = torch.tensor([0.1, 1.0, 1.0, 1.0])
    rules = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections": 100}
    found = choose_detections([(scores, quality, boxes.__getitem__)], (100, 100), candidates=10, **rules)
    # The first is outdone by the third, which lies on it; the last lies outside of the image.
    torch.testing.assert_close(found["scores"], torch.tensor([0.8, 0.7, 0.06]))
    assert found["labels"].tolist() == [0, 0, 1]
    assert found["boxes"][2].tolist() == [50, 50, 60, 60]
    fewer = choose_detections([(scores, quality, boxes.__getitem__)], (100, 100), candidates=2, **rules)
    torch.testing.assert_close(fewer["scores"], torch.tensor([0.09]))  # of the best two only the first is visible


def test_centreness_at_known_values():
    distances = torch.tensor([[5.0, 3, 5, 3], [1.0, 4, 4, 1], [0.0, 2, 3, 2]])
    torch.testing.assert_close(true_centerness(distances), torch.tensor([1.0, 0.25, 0.0]))


# --- mmdet's own numbers ----------------------------------------------------------------------------------------------

TORCHVISION_PIXELS = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
CAFFE_PIXELS = ([122.7717, 115.9465, 102.9801], [1.0, 1.0, 1.0])


@pytest.fixture(scope="module", params=["retinanet", "fcos"])
def mmdet(request, shared):
    """A detector with mmdet's weights, its batch, and what mmdet computes."""
    family = request.param
    folder = shared / "reference" / "mmdet" / family
    meta, wanted = json.loads((folder / "meta.json").read_text()), dict(np.load(folder / "outputs.npz"))
    mean, std = CAFFE_PIXELS if family == "fcos" else TORCHVISION_PIXELS
    detector = build_detector(
        f"{family}_resnet{meta['depth']}",
        meta["num_classes"],
        neck_channels=meta["fpn_channels"],
        width_mult=meta["base_channels"] / 64,
        norm="frozen",
        image_mean=[value / 255 for value in mean],
        image_std=[value / 255 for value in std],
        conventions="mmdet",
        settings={"style": "caffe", "groups": 32} if family == "fcos" else {},
    )
    weights = translate(read_foreign(folder / "checkpoint.pth").value["state_dict"], family)
    if family == "fcos":  # its images are blue, green, red
        weights["backbone.body.conv1.weight"] = weights["backbone.body.conv1.weight"].flip(1)
    detector.network.load_state_dict(weights)
    sizes = [tuple(size) for size in meta["image_sizes"]]
    batch = torch.full(wanted["input"].shape, 0.3)
    for image, (height, width) in enumerate(sizes):
        pixels = torch.from_numpy(wanted[f"image{image}"][..., ::-1].copy())
        batch[image, :, :height, :width] = pixels.permute(2, 0, 1) / 255
    return detector, batch, sizes, wanted, meta["losses"]


def agree(found: Tensor, wanted: np.ndarray) -> None:
    """Equal to 1e-4, relative to the size of the map's values."""
    wanted = torch.from_numpy(np.asarray(wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().mean().item())


@torch.no_grad()
def test_neck_and_head_compute_what_mmdet_computes(mmdet):
    detector, batch, sizes, wanted, _ = mmdet
    outputs = detector.eval()(batch, sizes)
    centerness = outputs.extra.get("centerness")
    for level, (height, width) in enumerate(outputs.level_sizes):
        agree(outputs.features[level], wanted[f"neck{level}"])
        agree(outputs.class_logits[level].flatten(3).permute(0, 3, 1, 2), wanted[f"cls{level}"])
        agree(outputs.box_raw[level].flatten(3).permute(0, 3, 1, 2), wanted[f"box{level}"])
        if centerness is not None:
            own, centerness = centerness.split([height * width, centerness.shape[1] - height * width], dim=1)
            agree(own.view(2, 1, height, width), wanted[f"extra{level}"])


@torch.no_grad()
def test_detections_are_mmdets(mmdet):
    detector, batch, sizes, wanted, _ = mmdet
    for image, found in enumerate(detector.eval().detect(detector(batch, sizes), sizes)):
        assert found["labels"].tolist() == wanted[f"det{image}_labels"].tolist()
        agree(found["scores"], wanted[f"det{image}_scores"])
        agree(found["boxes"], wanted[f"det{image}_boxes"])


def test_losses_are_mmdets(mmdet):
    detector, batch, sizes, wanted, losses = mmdet
    truth = [
        {name: torch.from_numpy(wanted[f"gt{image}_{name}"]) for name in ("boxes", "labels")} for image in range(2)
    ]
    outputs = detector.train()(batch, sizes)
    found = detector.loss(outputs, truth, detector.assign(outputs, truth))
    names = {"classification": "loss_cls", "bbox_regression": "loss_bbox", "bbox_ctrness": "loss_centerness"}
    assert {names[name]: value.item() for name, value in found.items()} == pytest.approx(losses, rel=1e-4)
