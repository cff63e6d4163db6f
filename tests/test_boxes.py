"""Boxes of a record: decoded, compared in pairs, and read where there is an object."""

import itertools
from dataclasses import replace

import pytest
import torch
from predictions import TARGETS, pair_of, truth
from predictions import positives as slow_positives

from understudy import boxes
from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.outputs import flatten_levels

DETECTORS = list(itertools.product(("retinanet", "fcos", "gfl", "faster_rcnn"), ("torchvision", "mmdet")))


@pytest.mark.parametrize(("family", "conventions"), DETECTORS)
def test_boxes_are_decoded_as_by_the_detector_itself(family, conventions):
    options = {"neck_channels": 16, "width_mult": 0.35, "conventions": conventions}
    detector = build_detector(f"{family}_mobilenet_v2", 2, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = detector(torch.rand(2, 3, 64, 96, generator=generator))
    # A head without training emits next to nothing; what it may emit is of either sign and large.
    scale = {"deltas": 2.0, "distances in pixels": 500.0}.get(detector.spec.box_code, 5.0)
    raw = [torch.randn(level.shape, generator=generator) * scale for level in outputs.box_raw]
    if detector.spec.box_code == "deltas" and conventions == "mmdet":  # whose sides shrink no further
        raw = [level.clamp(min=-4) for level in raw]
    outputs = replace(outputs, box_raw=raw)
    for own, theirs in zip(boxes.decode(outputs, detector.spec), detector.decode(outputs), strict=True):
        assert own.shape == theirs.shape
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-3)
    if family != "gfl":
        assert any(level.max() > 1000 for level in boxes.decode(outputs, detector.spec))


def test_an_unknown_box_code_is_refused():
    student, _, outputs, _ = pair_of()
    with pytest.raises(UserError, match=r"little has the unknown box code 'corners'; expected 'deltas'.*BOX_CODES"):
        boxes.decode(outputs, replace(student, box_code="corners"))


def test_boxes_stay_exact_under_autocast():
    student, _, outputs, _ = pair_of("distributions")
    exact = boxes.decode(outputs, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = boxes.decode(outputs, student)
    assert all(torch.equal(own, other) for own, other in zip(exact, rough, strict=True))


def test_positives_are_read_where_they_are():
    student, _, outputs, _ = pair_of()
    ground = truth()
    found = boxes.positives(ground, outputs)
    flat, decoded = flatten_levels(outputs.class_logits), flatten_levels(boxes.decode(outputs, student))
    expected = {
        (n, r): (flat[n, r], decoded[n, r], 2 * n + m, TARGETS[n]["labels"][m]) for n, r, m in slow_positives(ground)
    }
    assert found.counts == (2, 1)
    assert found.image.tolist() == [0, 0, 1]
    start = 0
    for level, (image, place) in enumerate(found.levels):
        for n, r in zip(image.tolist(), place.tolist(), strict=True):
            logits, box, number, label = expected.pop((n, r + 96 * level))
            assert torch.equal(found.of(outputs.class_logits)[start], logits)
            torch.testing.assert_close(found.boxes(outputs, student)[start], box)
            assert (found.objects[start], found.labels[start]) == (number, label)
            assert torch.equal(found.true_boxes[start], TARGETS[n]["boxes"][number - 2 * n])
            start += 1
    assert not expected
