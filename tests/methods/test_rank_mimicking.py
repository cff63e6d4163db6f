"""RM against a slow loop written from its equation."""

import itertools

import pytest
from predictions import TARGETS, divergence, pair_of, positives, spec, truth, waves
from references import sigmoid
from torchvision.ops import box_iou

from understudy import boxes
from understudy.methods import METHODS
from understudy.methods.loading import build_methods
from understudy.outputs import flatten_levels


@pytest.mark.parametrize(("score", "temperature"), [("sigmoid", 1.0), ("logit", 0.5)])
def test_against_a_slow_loop(score, temperature):
    student, teacher, own, theirs = pair_of()
    ground, weights = truth(), {"location_weight": 1}
    options = {"rank_mimicking": {**weights, "score": score, "temperature": temperature}}
    (method,), _ = build_methods(options, student, teacher)
    expected = {"class": 0.0, "location": 0.0}
    values = {}
    for whose, outputs, of in (("own", own, student), ("theirs", theirs, teacher)):
        logits, decoded = flatten_levels(outputs.class_logits), flatten_levels(boxes.decode(outputs, of))
        for n, r, m in positives(ground):
            value = logits[n, r, TARGETS[n]["labels"][m]].item()
            overlap = box_iou(decoded[n, r][None], TARGETS[n]["boxes"][m][None]).item()
            values.setdefault((n, m, "class", whose), []).append(sigmoid(value) if score == "sigmoid" else value)
            values.setdefault((n, m, "location", whose), []).append(overlap)
    for n, objects in enumerate((2, 1)):
        for m, term in itertools.product(range(objects), expected):
            ranks = values[n, m, term, "theirs"], values[n, m, term, "own"]
            expected[term] += divergence(*ranks, temperature) / objects / 2
    terms = method(own, theirs, ground)
    assert list(terms) == ["rank_mimicking_class", "rank_mimicking_location"]
    for term, value in expected.items():
        assert value > 1e-4
        assert terms[f"rank_mimicking_{term}"].item() == pytest.approx(value, rel=1e-4)
    terms["rank_mimicking_location"].backward()
    assert sum(level.grad.abs().sum() for level in own.box_raw) > 0


@pytest.mark.parametrize(("score", "value"), [("sigmoid", 0.0251678020), ("logit", 0.4867482429)])
def test_the_values_of_a_draft_implementation(score, value):
    """There is no authors' code. The values are those of open-mmlab/mmrazor @ 4a47267d, RankMimicLoss.

    It takes the scores as they are; for "sigmoid" it was given sigmoids.
    """
    student, teacher = spec("little", family="retinanet"), spec("big", family="retinanet")
    method = METHODS["rank_mimicking"](student, teacher, score=score)
    terms = method(waves(student, 0.1), waves(teacher, 0.9), truth())
    assert terms["rank_mimicking_class"].item() == pytest.approx(value, rel=1e-6)


def test_objectness_is_ranked_and_location_is_off():
    student, teacher, own, theirs = pair_of(num_classes=1, objectness=True)
    (method,), weights = build_methods({"rank_mimicking": {}}, student, teacher)
    assert {name: weight.weight for name, weight in weights.items()} == {"rank_mimicking_class": 4.0}
    terms = method(own, theirs, truth())
    assert list(terms) == ["rank_mimicking_class"]
    assert terms["rank_mimicking_class"] > 0


@pytest.mark.parametrize(
    ("family", "weight"), [("retinanet", 4.0), ("fcos", 4.0), ("mine", 4.0), ("faster_rcnn", None)]
)
def test_all_but_a_faster_rcnn_have_a_weight(family, weight):
    student, *_ = pair_of(family=family)
    assert METHODS["rank_mimicking"].default_weights(student).get("class") == weight
