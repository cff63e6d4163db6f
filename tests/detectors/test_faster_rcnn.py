"""Faster R-CNN, opened: parity with the network's own forward, its record, its second stage on given proposals."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from two_stage_detectors import EVERY_KIND, OBJECTS, SIZES, built, detector_of, photos, targets

from understudy.detectors import open_detector
from understudy.errors import UserError
from understudy.functional import richness_masks
from understudy.methods.frs import FRS
from understudy.outputs import Outputs, Truth, flatten_levels


def with_background(truth: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{"boxes": target["boxes"].clone(), "labels": target["labels"] + 1} for target in truth]


def in_training(detector):
    """Put a detector in training mode on fixed statistics."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return detector


def network_losses(detector, images: list[Tensor], truth: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    # In training, the network's transform draws a size, of which there is one; what is drawn after it counts.
    hook = detector.network.backbone.register_forward_pre_hook(lambda *_: torch.manual_seed(7) and None)
    losses = detector.network(images, with_background(truth))
    hook.remove()
    return losses


def own_losses(detector, batch: Tensor, truth: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    outputs = detector(batch, SIZES)
    gt_index = detector.assign(outputs, truth)
    torch.manual_seed(7)
    return detector.loss(outputs, truth, gt_index)


# --- parity with the network's own forward ---------------------------------------------------------------------------


@pytest.mark.parametrize("objects", OBJECTS)
@EVERY_KIND
def test_losses_are_the_networks_own_under_the_same_seed(kind, objects):
    detector = in_training(detector_of(kind))
    images, batch = photos()
    truth = targets(OBJECTS[objects])
    wanted = network_losses(detector, images, truth)
    found = own_losses(detector, batch, truth)
    assert list(found) == list(wanted)
    assert len(found) == 4
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@EVERY_KIND
def test_both_images_without_objects(kind):
    detector = in_training(detector_of(kind))
    images, batch = photos()
    nothing = targets([], second=False)
    wanted = network_losses(detector, images, nothing)
    found = own_losses(detector, batch, nothing)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert found["loss_box_reg"] == 0
    sum(found.values()).backward()  # zero, and still connected
    assert detector.network.rpn.head.bbox_pred.weight.grad is not None


@EVERY_KIND
def test_detections_are_the_networks_own(kind):
    detector = detector_of(kind).eval()
    detector.network.roi_heads.detections_per_img = 400  # so that no class takes all of them
    images, batch = photos()
    with torch.no_grad():
        wanted = detector.network(images)
        found = detector.detect(detector(batch, SIZES), SIZES)
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(theirs["boxes"]) > 20
        assert len(theirs["labels"].unique()) > 1
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        assert torch.equal(ours["labels"] + 1, theirs["labels"])
        assert ours["labels"].min() >= 0


def test_labels_of_the_caller_are_left_alone():
    detector = in_training(detector_of("built"))
    truth = targets(OBJECTS["objects"])
    before = copy.deepcopy(truth)
    own_losses(detector, photos()[1], truth)
    for target, old in zip(truth, before, strict=True):
        assert target.keys() == old.keys()
        assert torch.equal(target["labels"], old["labels"])


@pytest.mark.parametrize("kind", ["built", "mmdet"])
def test_losses_and_detections_do_not_depend_on_the_mode(kind):
    """Which proposals are chosen depends on what they are for, not on a flag somewhere in the network."""
    detector = detector_of(kind)
    detector.network.rpn._pre_nms_top_n = {"training": 60, "testing": 30}
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    found, boxes = {}, {}
    for mode in (True, False):
        in_training(detector) if mode else detector.eval()
        found[mode] = own_losses(detector, batch, truth)
        boxes[mode] = detector.detect(detector(batch, SIZES), SIZES)
        assert detector.network.rpn.training is mode
        outputs = detector(batch, SIZES)
        many, few = detector.proposals(outputs, training=True), detector.proposals(outputs)
        assert len(many[0]) > len(few[0])
    for name in found[True]:
        torch.testing.assert_close(found[True][name], found[False][name])
    torch.testing.assert_close(boxes[True], boxes[False])


# --- the record ------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_record_is_the_rpns_in_train_and_eval(kind):
    detector = detector_of(kind)
    _, batch = photos()
    in_train, in_eval = in_training(detector)(batch, SIZES), detector.eval()(batch, SIZES)
    for field in ("stages", "features", "class_logits", "box_raw", "anchors"):
        for one, other in zip(getattr(in_train, field), getattr(in_eval, field), strict=True):
            torch.testing.assert_close(one, other)
    spec = detector.spec
    assert spec.objectness
    assert (spec.num_classes, spec.box_size, spec.box_code, spec.family) == (1, 4, "deltas", "faster_rcnn")
    assert len(spec.strides) == len(in_eval.class_logits)
    logits, deltas = detector.network.rpn.head(in_eval.features)
    for level, feature in enumerate(in_eval.features):
        cells = feature.shape[-2:]
        assert in_eval.class_logits[level].shape == (2, *cells, spec.num_anchors, 1)
        assert in_eval.box_raw[level].shape == (2, *cells, spec.num_anchors, 4)
        assert in_eval.anchors[level].shape == (*cells, spec.num_anchors, 4)
        anchor = spec.num_anchors - 1
        torch.testing.assert_close(in_eval.class_logits[level][..., anchor, 0], logits[level][:, anchor])
        torch.testing.assert_close(in_eval.box_raw[level][..., anchor, 2], deltas[level][:, anchor * 4 + 2])


def test_five_levels_of_three_anchors_from_p2_on():
    spec = detector_of("built").spec
    assert spec.strides == (4, 8, 16, 32, 64)
    assert spec.num_anchors == 3
    assert spec.channels == (16,) * 5
    assert spec.stage_strides == (4, 8, 16, 32)
    assert detector_of("mobilenet_v3").spec.num_anchors == 15
    assert detector_of("one map").spec.strides == (8,)


def test_without_image_sizes_images_fill_the_batch():
    detector = detector_of("built").eval()
    images, _ = photos()
    with torch.no_grad():
        outputs = detector(images[0][None])
        (wanted,) = detector.proposals(outputs, [SIZES[0]])
        (found,) = detector.proposals(outputs)
    torch.testing.assert_close(found, wanted)


def test_decoding_gives_the_proposals_of_every_anchor():
    detector = detector_of("built").eval()
    with torch.no_grad():
        outputs = detector(photos()[1], SIZES)
    boxes = flatten_levels(detector.decode(outputs))
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
    again = detector.network.rpn.box_coder.encode_single(boxes[1], anchors)
    torch.testing.assert_close(again, flatten_levels(outputs.box_raw)[1], rtol=1e-3, atol=1e-4)


def test_masks_are_refused():
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, box_head=nn.Identity())
    with pytest.raises(UserError, match="MaskRCNN predicts masks or keypoints"):
        open_detector(network)


def test_the_plain_network_returns_the_background_first():
    assert detector_of("built").label_names(["cat", "dog"]) == ["__background__", "cat", "dog"]


@pytest.mark.parametrize("kind", ["built", "mmdet"])
def test_under_autocast_losses_are_float32(kind):
    detector = in_training(detector_of(kind))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector(photos()[1], SIZES)
        assert outputs.class_logits[0].dtype == torch.bfloat16
        assert outputs.anchors[0].dtype == torch.float32
        losses = detector.loss(outputs, (truth := targets(OBJECTS["objects"])), detector.assign(outputs, truth))
        found = detector.detect(outputs, SIZES)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert found[0]["boxes"].dtype == torch.float32


# --- the second stage on given proposals -----------------------------------------------------------------------------

GIVEN = [torch.tensor([[4.0, 4, 60, 50], [30, 10, 90, 90]]), torch.tensor([[0.0, 0, 12, 30]])]


@EVERY_KIND
def test_roi_is_the_networks_own_second_stage(kind):
    detector = detector_of(kind).eval()
    heads = detector.network.roi_heads
    with torch.no_grad():
        outputs = detector(photos()[1], SIZES)
        found = detector.roi(outputs.features, GIVEN)
        names = detector.network.backbone(photos()[1])
        names = ["0"] if isinstance(names, Tensor) else list(names)
        pooled = heads.box_roi_pool(dict(zip(names, outputs.features, strict=True)), GIVEN, SIZES)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
    torch.testing.assert_close(found.class_logits, logits)
    torch.testing.assert_close(found.box_raw.flatten(1), deltas)
    assert found.class_logits.shape == (3, 6)
    assert found.box_raw.shape == (3, 6, 4)
    assert len(found.features) == 3


@pytest.mark.parametrize("kind", ["built", "mmdet"])
def test_gradients_reach_the_features_through_roi(kind):
    detector = detector_of(kind).eval().requires_grad_(False)
    features = [feature.requires_grad_() for feature in detector(photos()[1], SIZES).features]
    large = torch.tensor([[0.0, 0, 120, 250]])
    detector.roi(features, [GIVEN[0], large]).class_logits.square().sum().backward()
    reached = [[bool(own.abs().sum() > 0) for own in feature.grad] for feature in features[:3]]
    assert reached == [[True, False], [False, True], [False, False]]  # the larger proposal on the coarser level


@pytest.mark.parametrize("kind", ["built", "mmdet"])
def test_a_teacher_looks_at_the_students_proposals(kind):
    student = open_detector(built(neck_channels=24)).eval()
    teacher = detector_of(kind).eval().requires_grad_(False)
    _, batch = photos()
    own, theirs = student(batch, SIZES), teacher(batch, SIZES)
    proposals = student.proposals(own)
    assert all(len(boxes) > 10 and not boxes.requires_grad for boxes in proposals)
    seen, taught = student.roi(own.features, proposals), teacher.roi(theirs.features, proposals)
    assert seen.class_logits.shape == taught.class_logits.shape == (sum(map(len, proposals)), 6)
    loss = nn.functional.kl_div(
        seen.class_logits.log_softmax(-1), taught.class_logits.softmax(-1), reduction="batchmean"
    )
    loss.backward()
    assert student.network.backbone.fpn.layer_blocks[0][0].weight.grad.abs().sum() > 0


def test_no_proposals_at_all():
    for kind in ("built", "mmdet"):
        detector = detector_of(kind).eval()
        with torch.no_grad():
            outputs = detector(photos()[1], SIZES)
            found = detector.roi(outputs.features, [torch.zeros(0, 4)] * 2)
            assert found.class_logits.shape == (0, 6)
            assert found.box_raw.shape == (0, 6, 4)
            detector.network.roi_heads.score_thresh = 1.0
            assert all(len(one["boxes"]) == 0 for one in detector.detect(outputs, SIZES))


# --- distillation ----------------------------------------------------------------------------------------------------


def test_frs_takes_mask_and_scores_from_the_rpn():
    torch.manual_seed(0)
    student, teacher = open_detector(built(neck_channels=24)), detector_of("built").eval()
    method = FRS(student.spec, teacher.spec)
    assert FRS.weights["faster_rcnn"] == {"feature": 0.002, "class": 0.1}
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    outputs = student(batch, SIZES)
    with torch.no_grad():
        theirs = teacher(batch, SIZES)
    terms = method(outputs, theirs, Truth(truth, student.assign(outputs, truth)))
    assert set(terms) == {"frs_feature", "frs_class"}
    for term in terms.values():
        assert term.isfinite()
        assert term > 0
        student.zero_grad()
        term.backward(retain_graph=True)
        assert student.network.backbone.fpn.layer_blocks[0][0].weight.grad.abs().sum() > 0
    mask = richness_masks(outputs, theirs, Truth(truth, student.assign(outputs, truth)))[0]
    torch.testing.assert_close(mask, theirs.class_logits[0].sigmoid().amax((-2, -1)))


def test_a_record_without_image_sizes_is_refused_where_they_matter():
    detector = detector_of("built").eval()
    outputs = detector(photos()[1], SIZES)
    without = Outputs(**{field: getattr(outputs, field) for field in outputs.__slots__ if field != "image_sizes"})
    with pytest.raises(ValueError, match="has no image sizes"):
        detector.proposals(without)
