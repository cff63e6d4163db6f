"""GID: the boxes of disagreement, and its terms put together from their parts."""

from dataclasses import replace
from types import SimpleNamespace

import predictions
import pytest
import torch
from pairs import (
    BIG,
    CLASSES,
    LITTLE,
    Inputs,
    Pair,
    made_up_specs,
    record,
    tiny_detector,
    tiny_images,
    tiny_teacher,
    truth,
)
from references import NO_BOX, identity
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from understudy.boxes import decode
from understudy.errors import UserError
from understudy.functional import (
    distance_relation_loss,
    general_instances,
    losses_of_regions,
    pooled_regions,
    region_loss,
    response_box_loss,
    response_class_loss,
    scored_boxes,
)
from understudy.learner import Learner
from understudy.methods import METHODS
from understudy.methods.base import Layers
from understudy.methods.loading import build_methods
from understudy.outputs import Spec
from understudy.pairing import pair


def layers_of(spec: Spec, inputs: Inputs) -> Layers:
    """A student that assigns an anchor to a box if the middle of it lies there."""

    def assign(outputs, targets):
        anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        gt_index = torch.full((len(targets), len(anchors)), -1)
        for row, target in zip(gt_index, targets, strict=True):
            for number, box in enumerate(target["boxes"]):
                row[((middles > box[:2]) & (middles < box[2:])).all(1)] = number
        return gt_index

    detector = SimpleNamespace(spec=spec, assign=assign)
    return Layers(detector, detector, None, inputs.student, inputs.teacher)


def made_up(student: Spec, teacher: Spec) -> Inputs:
    """Made-up records."""
    inputs = Inputs(record(student, 1), record(teacher, 2), truth(student))
    return replace(inputs, layers=layers_of(student, inputs))


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_the_terms_are_those_of_its_parts(family):
    """On real detectors: predictions are compared at the anchors that the student's own rule assigns to the boxes."""
    spec = tiny_teacher(family).spec
    both = Pair(METHODS["gid"], spec, spec, METHODS["gid"].terms[: 3 if family == "gfl" else 4])
    method, inputs = identity(both.made(count=4)), both.inputs()
    terms, student, teacher = inputs.terms(method), inputs.student, inputs.teacher
    decoded = [decode(outputs, spec) for outputs in (student, teacher)]
    found = []
    for image in range(2):
        scores = [
            torch.cat([level[image].flatten(0, 2).max(-1).values.sigmoid() for level in outputs.class_logits])
            for outputs in (student, teacher)
        ]
        flat = [torch.cat([level[image].reshape(-1, 4) for level in levels]) for levels in decoded]
        found.append(general_instances(*scores, *flat, student.image_sizes[image], 4))
    assert all(torch.equal(one, other) for one, other in zip(method.find(student, teacher), found, strict=True))
    assert all(len(each) for each in found)
    own, theirs = (pooled_regions(outputs.features, found, spec.strides) for outputs in (student, teacher))
    assert terms["gid_feature"].item() == pytest.approx(region_loss(own, theirs).item(), rel=1e-5)
    relation = distance_relation_loss(own.flatten(1), theirs.flatten(1))
    assert terms["gid_relation"].item() == pytest.approx(relation.item(), rel=1e-5)
    parts = losses_of_regions(student.features, teacher.features, found, spec.strides)
    assert torch.equal(parts["relation"], relation)
    targets = [{"boxes": each, "labels": torch.full((len(each),), CLASSES - 1)} for each in found]
    chosen = inputs.layers.student.assign(student, targets) >= 0
    assert chosen.any()
    for term, field, loss in (("class", "class_logits", response_class_loss), ("box", "box_raw", response_box_loss)):
        values = []
        for outputs in (student, teacher):
            flat = torch.cat([level.flatten(1, 3) for level in getattr(outputs, field)], dim=1)
            values.append(torch.cat([image[mask] for image, mask in zip(flat, chosen, strict=True)]))
        if term in method.terms:
            assert terms[f"gid_{term}"].item() == pytest.approx(loss(*values).item(), rel=1e-5)
    again = replace(inputs, truth=replace(inputs.truth, targets=[NO_BOX, NO_BOX])).terms(method)
    assert all(torch.equal(again[term], value) for term, value in terms.items())


def test_the_values_of_the_authors_code():
    """Without the adapter, which the code builds but does not use, and with the assignment of its RetinaNet.

    The values are those of daixinghome/Distill_GID_detectron2 @ 9118c54, DistillGID.distill_losses, run with detectron2
    @ 02b5c4e, in float32.
    """

    def assign(outputs, targets):
        anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
        match = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        return torch.stack([match(box_iou(target["boxes"], anchors)) for target in targets])

    specs = predictions.spec("little"), predictions.spec("big")
    own, theirs = (
        replace(predictions.waves(spec, start), image_sizes=((48, 64), (44, 60)))
        for spec, start in zip(specs, (0.1, 0.9), strict=True)
    )
    detector = SimpleNamespace(spec=specs[0], assign=assign)
    method = identity(METHODS["gid"](*specs)).double()
    terms = method(own, theirs, predictions.truth(), Layers(detector, detector, None, own, theirs))
    expected = {"gid_feature": 1.3056547, "gid_relation": 0.0021898681, "gid_class": 1.8743687, "gid_box": 0.4131191}
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-6)


def test_it_assigns_on_all_of_the_students_levels_and_compares_on_the_common_ones():
    """The boxes have no class: it changes nothing that the teacher lacks the student's first one."""
    student, teacher = tiny_detector("retinanet", 16, seed=5), tiny_teacher("retinanet")
    pairing = pair(student.spec, replace(teacher.spec, strides=(4, 16, 32, 64, 128)), ["a", "b", "c"], ["x", "c", "b"])
    assert pairing.unknown == ("a",)
    assert pairing.student_part.levels == pairing.teacher_part.levels == (1, 2, 3, 4)
    (method,), _ = build_methods({"gid": {"count": 3}}, pairing.student, pairing.teacher)
    images, targets = tiny_images(), truth(LITTLE).targets
    with torch.no_grad():
        theirs = teacher(images)
    losses = Learner(student, [method], pairing)(images, targets, theirs, teacher=teacher)
    with torch.no_grad():
        own = student(images)
    reduced = pairing.student_record(own), pairing.teacher_record(theirs)
    objects = [{"boxes": each, "labels": torch.zeros(len(each)).long()} for each in method.find(*reduced)]
    assigned = student.assign(own, objects)[:, own.class_logits[0][0, ..., 0].numel() :] >= 0
    assert assigned.any()
    values = [torch.cat([level.flatten(1, 3) for level in each.class_logits], dim=1)[assigned] for each in reduced]
    assert losses["gid_class"].item() == pytest.approx(response_class_loss(*values).item(), rel=1e-4)


def test_distances_in_pixels_are_compared_as_if_they_were_in_strides():
    student, teacher = made_up_specs("fcos")
    method = METHODS["gid"](student, teacher)
    in_pixels = METHODS["gid"](*(replace(spec, box_code="distances in pixels") for spec in (student, teacher)))
    in_pixels.load_state_dict(method.state_dict())
    inputs = made_up(student, teacher)
    pixels = [
        replace(each, box_raw=[raw * stride for raw, stride in zip(each.box_raw, student.strides, strict=True)])
        for each in (inputs.student, inputs.teacher)
    ]
    terms = inputs.terms(method)
    found = replace(inputs, student=pixels[0], teacher=pixels[1]).terms(in_pixels)
    assert terms["gid_box"] > 0
    for term, value in terms.items():
        torch.testing.assert_close(found[term], value)


def test_where_anchors_differ_features_are_compared_by_the_best_anchor_of_each_cell():
    """No term needs the detectors themselves then: records are enough."""
    single = replace(BIG, num_anchors=1, name="single")
    with pytest.raises(UserError, match="little has 2 anchors per cell, the teacher single has 1"):
        METHODS["gid"](LITTLE, single)
    weights = {"class_weight": 0, "box_weight": 0}
    (method,), _ = build_methods({"gid": weights}, LITTLE, single)
    inputs = replace(made_up(LITTLE, single), layers=None)
    terms, student = inputs.terms(method), inputs.student
    assert list(terms) == ["gid_feature", "gid_relation"]
    assert all(term > 0 for term in terms.values())
    scores, places = scored_boxes(student.class_logits, decode(student, LITTLE), per_cell=True)
    logits, own = student.class_logits[0][1, 2, 3], decode(student, LITTLE)[0][1, 2, 3]
    best = logits.amax(-1).argmax()
    assert scores.shape == (2, 48 + 12)
    assert scores[1, 2 * 8 + 3].item() == pytest.approx(logits.max().sigmoid().item())
    assert torch.equal(places[1, 2 * 8 + 3], own[best])


def test_without_a_box_to_compare_it_is_a_connected_zero():
    method, inputs = METHODS["gid"](LITTLE, BIG), made_up(LITTLE, BIG)
    student, teacher = (
        replace(each, anchors=[level / 100 for level in each.anchors]) for each in (inputs.student, inputs.teacher)
    )
    terms = replace(inputs, student=student, teacher=teacher).terms(method)
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in method.parameters())
    assert not student.class_logits[0].grad.any()


def test_refusals():
    with pytest.raises(UserError, match=r"share one adapter, and the student uneven has the channels \(6, 7\), the t"):
        METHODS["gid"](replace(LITTLE, channels=(6, 7), name="uneven"), BIG)
    student, teacher = made_up_specs("gfl")
    with pytest.raises(UserError, match=r"gid_box: the sides of little and big are distributions"):
        METHODS["gid"](student, teacher)
    (method,), weights = build_methods({"gid": {}}, student, teacher)  # by default it is off there
    assert list(weights) == ["gid_feature", "gid_relation", "gid_class"]
    assert made_up(student, teacher).terms(method)["gid_class"] > 0
    with pytest.raises(UserError, match=r"methods\.gid\.count: expected an integer above 0, got 0"):
        build_methods({"gid": {"count": 0}}, LITTLE, BIG)
    inputs = replace(made_up(LITTLE, BIG), layers=None)
    with pytest.raises(UserError, match=r"gid reads the layers of both detectors: call forward\(\.\.\., layers=Layers"):
        inputs.terms(METHODS["gid"](LITTLE, BIG))
