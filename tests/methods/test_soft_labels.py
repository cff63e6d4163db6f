"""Soft labels against slow loops written from their equations."""

import itertools
from dataclasses import replace

import pytest
from predictions import CODES, divergence, entropy, pair_of, positives, record, spec, truth, waves
from references import sigmoid
from torch.nn.functional import smooth_l1_loss
from torchvision.ops import generalized_box_iou

from understudy import boxes
from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.loading import build_methods
from understudy.outputs import flatten_levels


@pytest.mark.parametrize("anchors", ["positives", "all"])
@pytest.mark.parametrize(("loss", "temperature"), [("bce", 1.0), ("bce", 3.0), ("kl", 2.0)])
def test_classes_against_a_slow_loop(anchors, loss, temperature):
    student, teacher, own, theirs = pair_of()
    method = METHODS["soft_labels"](student, teacher, anchors=anchors, loss=loss, temperature=temperature)
    ground = truth()
    logits, soft = flatten_levels(own.class_logits).tolist(), flatten_levels(theirs.class_logits).tolist()
    expected = 0.0
    for n, r in itertools.product(range(2), range(120)):
        if ground.gt_index[n, r] < (0 if anchors == "positives" else -1):
            continue
        if loss == "kl":
            expected += divergence(soft[n][r], logits[n][r], temperature) * temperature**2
            continue
        both = zip(logits[n][r], soft[n][r], strict=True)
        expected += sum(entropy(a / temperature, sigmoid(b / temperature)) for a, b in both) * temperature**2
    assert method(own, theirs, ground)["soft_labels_class"].item() == pytest.approx(expected / 8, rel=1e-4)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ["decoded", "raw"])
def test_boxes_against_a_slow_loop(code, kind):
    student, teacher, own, theirs = pair_of(code)
    method = METHODS["soft_labels"](student, teacher, boxes=kind)
    expected = 0.0
    for n, r, _ in positives(truth()):
        if kind == "raw":
            first, second = (flatten_levels(outputs.box_raw)[n, r] for outputs in (own, theirs))
            expected += smooth_l1_loss(first, second, reduction="sum").item()
            continue
        first, second = (flatten_levels(boxes.decode(outputs, student))[n, r][None] for outputs in (own, theirs))
        expected += 1 - generalized_box_iou(first, second).item()
    assert method(own, theirs, truth())["soft_labels_box"].item() == pytest.approx(expected / 8, rel=1e-4)


def test_the_values_of_other_projects_code():
    """There is no authors' code of the whole, so the parts were computed with code of other projects.

    "kl" open-mmlab/mmrazor @ 90c7af1, KLDivergence; "bce" daixinghome/Distill_GID_detectron2 @ 9118c54,
    distill_loss_response; boxes TinyTigerPan/BCKD @ 121c9aa (mmdet 2), GIoULoss and SmoothL1Loss.
    """
    student, teacher = spec("little"), spec("big")
    own, theirs = waves(student, 0.1), waves(teacher, 0.9)
    for options, score, box in (
        ({}, 1.7719967047, 0.4866236074),
        ({"loss": "kl", "temperature": 2.0, "boxes": "raw"}, 0.2194629185, 0.0581077388),
    ):
        terms = METHODS["soft_labels"](student, teacher, **options)(own, theirs, truth())
        assert terms["soft_labels_class"].item() == pytest.approx(score, rel=1e-6)
        assert terms["soft_labels_box"].item() == pytest.approx(box, rel=1e-6)


def test_boxes_of_different_codes_are_compared_as_boxes():
    student, teacher = spec("little", "deltas"), spec("big", "distributions")
    (method,), _ = build_methods({"soft_labels": {}}, student, teacher)
    terms = method(record(student, 1), record(teacher, 2), truth())
    assert all(term.isfinite() and term > 0 for term in terms.values())


def test_a_refusal_names_the_option_that_helps():
    student, teacher = spec("little", "distributions"), spec("big", "deltas")
    with pytest.raises(UserError, match=r"24 distributions, the teacher big has boxes as 4 deltas; .*boxes=decoded"):
        build_methods({"soft_labels": {"boxes": "raw"}}, student, teacher)
    single = replace(student, num_classes=1), replace(teacher, num_classes=1)
    with pytest.raises(UserError, match=r"softmax over the one class of little and big is constant; use .*\.loss=bce"):
        build_methods({"soft_labels": {"loss": "kl"}}, *single)
    build_methods({"soft_labels": {}}, *single)
    with pytest.raises(UserError, match="9 anchors per cell") as failure:
        build_methods({"soft_labels": {"boxes": "raw"}}, student, replace(teacher, num_anchors=9))
    assert "boxes=decoded" not in str(failure.value)  # it would not help


def test_first_stages_which_score_no_classes_are_refused():
    student, teacher = (replace(spec(name), num_classes=1, objectness=True) for name in ("little", "big"))
    with pytest.raises(UserError, match="first stages of little and big score no classes; use the method second_stage"):
        build_methods({"soft_labels": {}}, student, teacher)
