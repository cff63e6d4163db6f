"""PFI against a slow loop written from its equation."""

import itertools
import math
from dataclasses import replace

import pytest
from predictions import CLASSES, pair_of, record, spec, truth, waves
from references import sigmoid

from understudy.errors import UserError
from understudy.functional import deviation
from understudy.methods import METHODS
from understudy.methods.loading import build_methods


@pytest.mark.parametrize("score", ["logit", "sigmoid"])
@pytest.mark.parametrize(("power", "normaliser"), [(2, "mean"), (1, "mean"), (1, "norm")])
def test_against_a_slow_loop(score, power, normaliser):
    student, teacher, own, theirs = pair_of()
    options = {"score": score, "power": power, "normaliser": normaliser}
    expected = 0.0
    change = sigmoid if score == "sigmoid" else float
    levels = zip(own.features, theirs.features, own.class_logits, theirs.class_logits, strict=True)
    for feature, other, logits, soft in levels:
        products = []
        for n, y, x in itertools.product(range(2), range(logits.shape[1]), range(logits.shape[2])):
            gaps = zip(logits[n, y, x].flatten().tolist(), soft[n, y, x].flatten().tolist(), strict=True)
            prediction = sum((change(a) - change(b)) ** 2 for a, b in gaps) / (2 * CLASSES)
            distance = (feature[n, :, y, x] - other[n, :, y, x]).square().sum().item() / 5
            products.append((prediction * distance) ** power)
        total = sum(products) if normaliser == "mean" else math.sqrt(sum(value**2 for value in products))
        expected += total / len(products) / 2
    method = METHODS["pfi"](student, teacher, **options)
    assert method(own, theirs, truth())["pfi_feature"].item() == pytest.approx(expected, rel=1e-4)
    assert not list(method.parameters())


@pytest.mark.parametrize(
    ("normaliser", "images", "value"), [("mean", [0, 1], 0.8215166506), ("norm", [0], 0.1803188413)]
)
def test_the_values_of_a_draft_implementation(normaliser, images, value):
    """There is no authors' code. The values are those of open-mmlab/mmrazor, PredictionGuidedFeatureImitation.

    The mean is that of commit 4a47267d, the norm, which it takes image by image, that of d5c36191.
    """
    student, teacher = (spec(name, family="retinanet") for name in ("little", "big"))
    own, theirs = (waves(each, start).of_images(images) for each, start in ((student, 0.1), (teacher, 0.9)))
    terms = METHODS["pfi"](student, teacher, normaliser=normaliser)(own, theirs, truth())
    assert terms["pfi_feature"].item() == pytest.approx(value, rel=1e-6)


def test_detached_predictions_and_adapters():
    student, teacher, own, theirs = pair_of()
    METHODS["pfi"](student, teacher, detach=True)(own, theirs, truth())["pfi_feature"].backward()
    assert all(level.grad is None for level in own.class_logits)
    assert len(list(METHODS["pfi"](student, teacher, adapter="always").parameters())) == 4
    method = METHODS["pfi"](student, replace(teacher, channels=(5, 7)))
    assert [tuple(parameter.shape) for parameter in method.parameters()] == [(7, 5, 1, 1), (7,)]
    assert method(own, record(method.teacher, 2), truth())["pfi_feature"] > 0


@pytest.mark.parametrize("each", ["level", "channel"])
def test_standardised_features_are_those_in_units_of_the_teachers_deviation(each):
    student, teacher, own, theirs = pair_of()
    sizes = [deviation(level, each) for level in theirs.features]
    divided = [
        replace(outputs, features=[level / size for level, size in zip(outputs.features, sizes, strict=True)])
        for outputs in (own, theirs)
    ]
    found = METHODS["pfi"](student, teacher, standardise=each)(own, theirs, truth())["pfi_feature"]
    expected = METHODS["pfi"](student, teacher)(*divided, truth())["pfi_feature"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert all(level.grad.any() for level in own.features)
    assert all(level.grad is None for level in theirs.features)


def test_the_default_is_the_mean_of_the_product():
    student, teacher, own, theirs = pair_of()
    values = [METHODS["pfi"](student, teacher, **options)(own, theirs, truth())["pfi_feature"].item()
              for options in ({}, {"power": 1, "normaliser": "mean", "score": "logit"}, {"power": 2})]  # fmt: skip
    assert values[0] == values[1] != values[2]


def test_only_a_retinanet_has_a_weight_and_only_for_the_product_itself():
    assert METHODS["pfi"].weights == {"retinanet": {"feature": 1.5}}
    student, teacher, *_ = pair_of()
    student, teacher = (replace(spec, family="retinanet") for spec in (student, teacher))
    _, weights = build_methods({"pfi": {}}, student, teacher)
    assert weights["pfi_feature"].weight == 1.5
    with pytest.raises(UserError, match=r"no default weight of 'feature' .* family retinanet with power=2: set "
                       r"methods\.pfi\.feature_weight so that"):  # fmt: skip
        build_methods({"pfi": {"power": 2}}, student, teacher)
    _, weights = build_methods({"pfi": {"power": 2, "feature_weight": 0.1}}, student, teacher)
    assert weights["pfi_feature"].weight == 0.1
    with pytest.raises(UserError, match="family fcos: set "):  # the option is not the reason
        build_methods({"pfi": {"power": 2}}, replace(student, family="fcos"), teacher)
