"""FGFI on made-up records, and the levels on which it imitates an FCOS."""

from dataclasses import replace

import predictions
import pytest
import torch
from pairs import BIG, CLASSES, LITTLE, record, truth
from references import SIDE, boxes, ground, identity, pyramid, strides_reached, waved

from understudy.detectors import build_detector
from understudy.functional import imitated_cells, imitation_loss, widened_points
from understudy.methods.fine_grained import FineGrained


def test_it_is_the_mean_over_levels():
    method = identity(FineGrained(BIG, BIG))
    student, teacher, whole = record(BIG, 1), record(BIG, 2), truth(BIG)
    masks = imitated_cells(student.anchors, whole.targets)
    assert all((level < 0).any() for level in student.features)  # the adapter has no ReLU
    levels = [
        imitation_loss(own, theirs, mask)
        for own, theirs, mask in zip(student.features, teacher.features, masks, strict=True)
    ]
    found = method(student, teacher, whole)["fine_grained_feature"]
    assert found.item() == pytest.approx(sum(levels).item() / 2, rel=1e-6)
    first = FineGrained(LITTLE, BIG).adapters[0]
    assert 0 < first.weight.std() < 2e-4
    assert not first.bias.any()


def test_the_value_of_the_authors_code_on_one_level():
    """The value is that of twangnh/Distilling-Object-Detectors @ c6583f3, with weight 1.

    The mask is that of its anchor_target_layer.py, the loss that of its trainval_net_sup.py.
    """
    student = predictions.spec("little", family="retinanet")
    teacher = predictions.spec("big", family="retinanet", channels=(6, 6))
    own, theirs = (
        replace(outputs, features=outputs.features[:1], anchors=outputs.anchors[:1])
        for outputs in (predictions.waves(student, 0.1), predictions.waves(teacher, 0.9))
    )
    first = [replace(each, channels=each.channels[:1], strides=(8,)) for each in (student, teacher)]
    terms = waved(FineGrained(*first))(own, theirs, predictions.truth())
    assert terms["fine_grained_feature"].item() == pytest.approx(33.5050687161, rel=1e-6)


@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
def test_an_fcos_is_imitated_on_the_levels_of_the_objects_size(conventions):
    detector = build_detector("fcos_resnet18", CLASSES, neck_channels=16, width_mult=1 / 8, conventions=conventions)
    assert detector.spec.points
    with torch.no_grad():
        outputs = detector(torch.zeros(1, 3, SIDE, SIDE))
    method = FineGrained(detector.spec, detector.spec)
    for side in (50, 100, 200, 400):
        corner = (SIDE - side) / 2 + 3
        target = boxes((corner, corner, corner + side, corner + side))
        levels = detector.assign(outputs, [target]).split([level[..., 0].numel() for level in outputs.anchors], dim=1)
        assigned = {s for s, level in zip(detector.spec.strides, levels, strict=True) if (level >= 0).any()}
        student = replace(outputs, features=pyramid(detector.spec).features)
        reached = strides_reached(method, "fine_grained_feature", student, ground(target))
        assert assigned
        assert assigned <= reached
        assert len(reached) <= 2


def test_anchors_with_a_size_are_taken_as_they_are():
    method, student, teacher = FineGrained(BIG, BIG), record(BIG, 1), record(BIG, 2)
    moved = replace(student, anchors=widened_points(student.anchors, BIG.strides))
    values = [method(each, teacher, truth(BIG))["fine_grained_feature"].item() for each in (student, moved)]
    assert values[0] != values[1]
