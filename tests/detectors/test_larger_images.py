"""A teacher of larger images than its student's: its own record, in the pixels of the student's batch."""

import pytest
import torch
from small_detectors import BACKBONES, IMAGES, NAMES, SIZES, TARGETS, small
from torch.nn import functional as F

from understudy import Learner, build_methods, pair
from understudy.boxes import decode
from understudy.detectors.larger_images import at_own_size, nearest_scale, with_larger_images
from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.outputs import flatten_levels

LARGE = F.interpolate(IMAGES, scale_factor=2, mode="bilinear")
LARGE_SIZES = [(2 * height, 2 * width) for height, width in SIZES]
LARGE_TARGETS = [{**target, "boxes": 2 * target["boxes"]} for target in TARGETS]


@pytest.fixture(params=BACKBONES, scope="module")
def both(request):
    """A detector, and the same one with images of twice the size."""
    detector = small(request.param).requires_grad_(False).eval()
    return detector, with_larger_images(detector, 2)


def test_the_record_is_that_of_the_larger_images_in_pixels_of_the_batch(both):
    own, larger = both
    there, here = own(LARGE, LARGE_SIZES), larger(LARGE, LARGE_SIZES)
    assert (here.size, here.image_sizes) == (tuple(IMAGES.shape[-2:]), tuple(SIZES))
    for name in ("stages", "features", "class_logits"):
        assert all(map(torch.equal, getattr(here, name), getattr(there, name)))
    assert all(torch.equal(2 * small, large) for small, large in zip(here.anchors, there.anchors, strict=True))
    boxes, expected = flatten_levels(larger.decode(here)), flatten_levels(own.decode(there)) / 2
    torch.testing.assert_close(boxes, expected)
    torch.testing.assert_close(flatten_levels(decode(here, larger.spec)), expected)  # by the record and the Spec alone
    assert larger.spec.strides == tuple(stride // 2 for stride in own.spec.strides)
    laid = zip(larger.lay_anchors((64, 96)), here.anchors, strict=True)
    assert all(torch.equal(one, other) for one, other in laid)


def test_detections_assignment_and_losses_are_those_of_the_larger_images(both):
    own, larger = both
    there, here = own(LARGE, LARGE_SIZES), larger(LARGE, LARGE_SIZES)
    for found, expected in zip(larger.detect(here, SIZES), own.detect(there, LARGE_SIZES), strict=True):
        torch.testing.assert_close(found["boxes"], expected["boxes"] / 2)
        assert torch.equal(found["labels"], expected["labels"])
    gt_index = own.assign(there, LARGE_TARGETS)
    assert torch.equal(larger.assign(here, TARGETS), gt_index)
    torch.manual_seed(0)  # a two-stage detector draws samples
    expected = own.loss(there, LARGE_TARGETS, gt_index)
    torch.manual_seed(0)
    torch.testing.assert_close(larger.loss(here, TARGETS, gt_index), expected)
    again = larger.head(here.features, (64, 96))
    torch.testing.assert_close(again.box_raw, here.box_raw)
    assert all(map(torch.equal, again.anchors, here.anchors))
    if own.spec.two_stage:
        boxes = [target["boxes"] for target in TARGETS]
        logits, corrected = larger.score_boxes(here.features, boxes)
        other_logits, other = own.score_boxes(there.features, [target["boxes"] for target in LARGE_TARGETS])
        torch.testing.assert_close(logits, other_logits)
        torch.testing.assert_close(corrected, other / 2)
        proposals = zip(larger.proposals(here), own.proposals(there), strict=True)
        assert all(torch.allclose(found, large / 2) for found, large in proposals)


def test_the_methods_that_serve_a_pair_serve_it_with_larger_images(both):
    own, teacher = both
    student = small(own.spec.family).train()
    common = pair(student.spec, teacher.spec, NAMES, NAMES)
    assert set(common.student.strides) == set(student.spec.strides) & set(teacher.spec.strides)
    served = [
        name for name in METHODS if not METHODS[name].obstacles(student.spec, own.spec).keys() & {*METHODS[name].terms}
    ]
    assert {"dist2", "pkd", "hint", "second_stage" if own.spec.two_stage else "crosskd"} <= {*served}
    silent = []
    for name in served:
        methods, _ = build_methods({name: {}}, common.student, common.teacher, balance=0.5)
        learner = Learner(student, methods, common).train()
        with torch.no_grad():
            outputs = teacher(LARGE, LARGE_SIZES, needs=learner.needs)
        losses = learner(IMAGES, TARGETS, outputs, SIZES, teacher=teacher)
        total = torch.stack([losses[term] for term in learner.distillation_terms]).sum()
        assert total.isfinite(), name
        student.zero_grad()
        total.backward()
        if not any(weight.grad is not None and weight.grad.any() for weight in student.parameters()):
            silent.append(name)
    assert set(silent) <= {"gid"}  # networks of random weights score all boxes alike


def test_towers_are_those_of_the_detector():
    own = small("gfl").requires_grad_(False).eval()
    larger = with_larger_images(own, 2)
    with larger.keeping(1):
        here = larger(LARGE)
    maps = larger.tower_maps(here, 1)
    assert maps is here.tower_maps[1]
    crossed = larger.head_from(maps, 1, here)
    torch.testing.assert_close(crossed.box_raw, here.box_raw)
    assert all(map(torch.equal, crossed.anchors, here.anchors))
    assert not larger(LARGE).tower_maps


def test_it_holds_no_weight_twice_and_changes_mode_as_a_whole():
    own = small("fcos")
    larger = with_larger_images(own, 4)
    assert len(list(larger.parameters())) == len(list(own.parameters()))
    assert len(larger.state_dict()) == len(own.state_dict())
    assert larger.network is own.network
    assert not larger.eval().detector.training
    assert at_own_size(larger) is own
    assert at_own_size(own) is own
    assert with_larger_images(own, 1) is own


@pytest.mark.parametrize(("scale", "message"), [(3, "a power of two, got 3"), (0, "got 0"), (16, r"16, is above .* 8")])
def test_a_scale_that_cannot_be_is_refused(scale, message):
    with pytest.raises(UserError, match=message):
        with_larger_images(small("gfl"), scale)


def test_the_nearest_scale_is_between_1_and_4():
    found = [nearest_scale(*sides) for sides in ((320, 320), (320, 240), (320, 200), (800, 160), (800, 96), (160, 320))]
    assert found == [1, 1, 2, 4, 4, 1]
