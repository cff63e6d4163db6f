"""BCKD against a slow loop written from its equations."""

import itertools
from dataclasses import replace

import pytest
from predictions import CODES, entropy, pair_of, record, spec, truth, waves
from references import sigmoid
from torch import Tensor
from torchvision.ops import generalized_box_iou

from understudy import boxes
from understudy.methods import METHODS
from understudy.outputs import Outputs, flatten_levels


@pytest.mark.parametrize("code", CODES)
def test_against_a_slow_loop(code):
    student, teacher, own, theirs = pair_of(code)
    ground = truth()
    ground.gt_index[:, 96:] = -1  # no object on the coarse level, which then counts nowhere
    decoded = [flatten_levels(boxes.decode(outputs, student)) for outputs in (own, theirs)]
    classes = [flatten_levels(outputs.class_logits).tolist() for outputs in (own, theirs)]
    expected = {"class": 0.0, "location": 0.0}
    for n, r in itertools.product(range(2), range(96)):
        if ground.gt_index[n, r] == -2:
            continue
        gaps = [abs(sigmoid(a) - sigmoid(b)) for a, b in zip(classes[0][n][r], classes[1][n][r], strict=True)]
        both = zip(gaps, classes[0][n][r], classes[1][n][r], strict=True)
        expected["class"] += sum(gap * entropy(a, sigmoid(b)) for gap, a, b in both)
        giou = generalized_box_iou(decoded[0][n, r][None], decoded[1][n, r][None]).item()
        expected["location"] += (1 - giou) * max(gaps)
    terms = METHODS["bckd"](student, teacher)(own, theirs, ground)
    for term, value in expected.items():
        assert terms[f"bckd_{term}"].item() == pytest.approx(value / 6, rel=1e-4)
    terms["bckd_location"].backward()
    assert all(level.grad is None for level in own.class_logits)


def test_the_values_of_the_authors_code():
    """An image without an anchor of an object counts as one anchor, an unlabelled image as none.

    The values are those of TinyTigerPan/BCKD @ 121c9aa, LDHead.loss_single with the divisor of LDHead.loss.
    """
    student, teacher = (spec(name, "distributions", num_anchors=1) for name in ("little", "big"))
    own, theirs, ground = waves(student, 0.1), waves(teacher, 0.9), truth(num_anchors=1)
    ground.gt_index[1] = -1
    method = METHODS["bckd"](student, teacher)
    terms = {term: value.item() for term, value in method(own, theirs, ground).items()}
    assert terms == pytest.approx({"bckd_class": 8.6499646256, "bckd_location": 2.4252371876}, rel=1e-6)
    ground.gt_index[1] = -2
    own, theirs = (replace(each, **_first_twice(each)) for each in (own, theirs))
    unlabelled = {term: value.item() for term, value in method(own, theirs, ground).items()}
    ground.gt_index[1] = ground.gt_index[0]
    assert unlabelled == pytest.approx({term: value.item() for term, value in method(own, theirs, ground).items()})


def _first_twice(outputs: Outputs) -> dict[str, list[Tensor]]:
    return {name: [level[[0, 0]] for level in getattr(outputs, name)] for name in ("class_logits", "box_raw")}


def test_boxes_of_different_codes_are_compared_as_boxes():
    student, teacher = spec("little", "deltas"), spec("big", "distributions")
    terms = METHODS["bckd"](student, teacher)(record(student, 1), record(teacher, 2), truth())
    assert all(term.isfinite() and term > 0 for term in terms.values())
