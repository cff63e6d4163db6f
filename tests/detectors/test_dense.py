"""Dense detectors of every family: their records, and parity with the plain networks inside."""

import copy
from dataclasses import replace

import pytest
import torch
from dense_detectors import OBJECTS, SIZES, VARIANTS, every_variant, losses_of, nothing, photos, small, targets

from understudy.outputs import flatten_levels, unflatten_levels

FIELDS = ("stages", "features", "class_logits", "box_raw", "anchors")
BOX_CODES = {"retinanet": "deltas", "fcos": "distances in pixels", "gfl": "distributions"}
ANCHORS = {"retinanet, other anchors": 4, "retinanet": 9, "fcos": 1, "gfl": 1}
LEVELS = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))


@pytest.mark.parametrize("objects", OBJECTS)
@every_variant
def test_losses_are_the_plain_networks_own(variant, objects):
    detector = small(variant).train()
    images, batch = photos()
    truth = targets(OBJECTS[objects])
    wanted = detector.network(copy.deepcopy(images), copy.deepcopy(truth))
    found = losses_of(detector, batch, truth)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value > 0
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-7)


@every_variant
def test_detections_are_the_plain_networks_own(variant):
    detector = small(variant).eval()
    images, batch = photos()
    with torch.no_grad():
        wanted = detector.network(images)
        found = detector.detect(detector(batch, SIZES), SIZES)
    for ours, theirs, (height, width) in zip(found, wanted, SIZES, strict=True):
        assert (10 if variant == "gfl" else 20) < len(theirs["boxes"]) <= detector.network.detections_per_img
        assert (ours["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert (ours["scores"].diff() <= 0).all()
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key])


@every_variant
def test_without_objects_the_box_losses_are_zeros_that_reach_every_parameter(variant):
    detector = small(variant).train()
    images, batch = photos()
    wanted = detector.network(copy.deepcopy(images), nothing())
    outputs = detector(batch, SIZES)
    gt_index = detector.assign(outputs, nothing())
    knows_padding = variant in ("retinanet", "retinanet, other anchors", "gfl")
    assert set(gt_index.unique().tolist()) == ({-1, -2} if knows_padding else {-1})
    losses = detector.loss(outputs, nothing(), gt_index)
    for name, value in losses.items():
        torch.testing.assert_close(value, wanted[name])
    assert losses["classification"] > 0
    assert all(value == 0 for name, value in losses.items() if name != "classification")
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)


@every_variant
def test_the_record_is_the_same_in_train_and_eval_and_has_the_sizes_of_the_spec(variant):
    detector = small(variant)
    _, batch = photos()
    in_train, in_eval = detector.train()(batch, SIZES), detector.eval()(batch, SIZES)
    for name in FIELDS:
        for one, other in zip(getattr(in_train, name), getattr(in_eval, name), strict=True):
            assert torch.equal(one, other)
    spec, family = detector.spec, VARIANTS[variant][0]
    assert spec.family == family
    assert spec.box_code == ("distances in strides" if variant == "fcos, torchvision" else BOX_CODES[family])
    assert spec.box_size == (68 if family == "gfl" else 4)
    assert spec.num_anchors == ANCHORS.get(variant, ANCHORS[family])
    assert spec.strides == (8, 16, 32, 64, 128)
    assert spec.stage_strides == (8, 16, 32)
    assert tuple(feature.shape[1] for feature in in_eval.features) == spec.channels == (16,) * 5
    assert tuple(stage.shape[1] for stage in in_eval.stages) == spec.stage_channels
    levels = zip(in_eval.features, in_eval.class_logits, in_eval.box_raw, in_eval.anchors, LEVELS, strict=True)
    for feature, logits, box, anchors, cells in levels:
        assert feature.shape[-2:] == cells
        assert logits.shape == (2, *cells, spec.num_anchors, 3)
        assert box.shape == (2, *cells, spec.num_anchors, spec.box_size)
        assert anchors.shape == (*cells, spec.num_anchors, 4)
    assert ("centerness" in in_eval.extra) == (family == "fcos")
    if family == "fcos":
        assert in_eval.extra["centerness"].shape == flatten_levels(in_eval.class_logits).shape[:2]


@every_variant
def test_under_autocast_anchors_stay_exact_and_losses_are_float32(variant):
    detector = small(variant).train()
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    exact = detector(batch, SIZES)
    assigned = detector.assign(exact, truth)
    wanted = detector.loss(exact, truth, assigned)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector(batch, SIZES)
        losses = detector.loss(outputs, truth, detector.assign(outputs, truth))
        alone = detector.network(photos()[0], copy.deepcopy(truth))
        detections = detector.detect(outputs, SIZES)
    assert outputs.class_logits[0].dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(outputs.anchors, exact.anchors, strict=True))
    assert torch.equal(detector.assign(outputs, truth), assigned)
    assert detections[0]["boxes"].dtype == torch.float32
    for name, value in losses.items():
        assert value.dtype == alone[name].dtype == torch.float32
        torch.testing.assert_close(value, wanted[name], rtol=0.05, atol=0 if variant == "gfl" else 0.01)


@every_variant
def test_the_head_takes_any_features(variant):
    detector = small(variant).eval()
    _, batch = photos()
    with torch.no_grad():
        outputs = detector(batch, SIZES)
        again = detector.head(detector.neck(outputs.stages), (96, 128))
    for one, other in zip(outputs.class_logits, again.class_logits, strict=True):
        torch.testing.assert_close(one, other)
    features = [torch.randn(1, 16, side, side, requires_grad=True) for side in (8, 4, 2, 1, 1)]
    outputs = detector.head(features, (64, 64))
    for maps in (outputs.class_logits, outputs.box_raw):
        gradients = torch.autograd.grad(flatten_levels(maps).square().sum(), features, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


@every_variant
def test_decoding_encoded_boxes_gives_the_boxes(variant):
    detector = small(variant)
    outputs = detector(photos()[1], SIZES)
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
    boxes = anchors + torch.tensor([-3.0, -2.0, 5.0, 4.0])
    head = detector.network.head
    if variant.startswith("retinanet"):
        raw = head.regression_head.box_coder.encode_single(boxes, anchors)
    elif variant.startswith("fcos"):
        raw = detector.network.box_coder.encode(anchors, boxes)
    else:  # two neighbouring distances share the whole probability, so that their mean is the true one
        distances = head.box_coder.encode(boxes, anchors)
        shares = (1 - (torch.arange(17.0) - distances[..., None]).abs()).clamp(min=0)
        raw = shares.log().clamp(min=-60).flatten(1)
    levels = unflatten_levels(raw.expand(2, -1, -1), outputs.level_sizes, detector.spec.num_anchors)
    decoded = flatten_levels(detector.decode(replace(outputs, box_raw=levels)))
    torch.testing.assert_close(decoded, boxes.expand(2, -1, -1), rtol=1e-4, atol=1e-2 if variant == "gfl" else 1e-3)


@every_variant
def test_padding_is_zero_after_normalisation(variant):
    detector = small(variant).eval()
    images, batch = photos()
    torch.testing.assert_close(detector._normalise(batch, SIZES), detector.network.transform(images)[0].tensors)
    with torch.no_grad():
        alone = detector(batch, SIZES).features[0]
        batch[0, :, :, 90:] = 0.1  # the padding has no effect
        torch.testing.assert_close(detector(batch, SIZES).features[0], alone)


def test_bytes_are_the_same_images():
    detector = small("fcos").eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(detector(pixels).class_logits[0], detector(pixels / 255).class_logits[0])


def test_detections_are_the_best_above_the_threshold_of_each_level():
    settings = {"score_threshold": 0.2, "nms_threshold": 1.0, "candidates": 4, "detections": 1000}
    detector = small("gfl", settings=settings).eval()
    with torch.no_grad():
        outputs = detector(photos()[1], SIZES)
    for number, found in enumerate(detector.detect(outputs, SIZES)):
        scores = [logits[number].sigmoid().flatten().tolist() for logits in outputs.class_logits]
        best = [sorted((score for score in level if score > 0.2), reverse=True)[:4] for level in scores]
        assert any(score < 0.2 for level in scores for score in level)
        wanted = torch.tensor(sorted((score for level in best for score in level), reverse=True))
        torch.testing.assert_close(found["scores"], wanted)
        detector.network.detections_per_img = 3
        assert torch.equal(detector.detect(outputs, SIZES)[number]["boxes"], found["boxes"][:3])
        detector.network.detections_per_img = 1000


def test_the_order_of_cells_is_row_then_column_then_anchor():
    detector = small("retinanet, torchvision")
    _, batch = photos()
    anchors = detector(batch, SIZES).anchors[1]
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    torch.testing.assert_close(centres[2, 3], torch.tensor([48.0, 32.0]).expand(9, 2))
