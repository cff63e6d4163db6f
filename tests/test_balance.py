"""The weights that follow from shares of the gradient: where and when it is measured, bounds, checkpoints, faults."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import understudy
from understudy import balance as module
from understudy.balance import Balance
from understudy.errors import RunError, UserError
from understudy.files import read_rows
from understudy.methods.loading import build_methods
from understudy.methods.weighting import TermWeight
from understudy.outputs import Spec

SPEC = Spec(channels=(8,) * 5, strides=(8, 16, 32, 64, 128), num_anchors=1, num_classes=3)


class Toy:
    """A learner of three numbers, whose losses have gradients of known norms at its shared map."""

    def __init__(self):
        self.map = torch.zeros(2, requires_grad=True)
        self.shared_maps: tuple[torch.Tensor, ...] = (self.map,)
        self.keeps_shared_maps = False
        self.student = SimpleNamespace(parameters=lambda: iter([self.map]))

    def losses(self, own: float, **terms: float) -> dict[str, torch.Tensor]:
        """Losses whose gradients have these norms; the student's own and the terms' are perpendicular."""
        x, y = self.map
        return {"own": own * x} | {name: norm * y for name, norm in terms.items()}


def weights_of(**shares: float | None) -> dict[str, TermWeight]:
    return {name: TermWeight(0.5 if share is None else 0.0, share=share) for name, share in shares.items()}


def test_each_term_has_its_share_at_once():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.3, score=0.1, fixed=None))
    assert toy.keeps_shared_maps
    total = balance(toy.losses(2.0, feature=1e4, score=0.01, fixed=1.0))
    # 2 is 60 % of the gradient without the fixed term, so the others have norms of 1 and of 1/3.
    assert balance.last == pytest.approx({"feature": 1e-4, "score": 100 / 3, "fixed": 0.5})
    assert torch.autograd.grad(total, toy.map)[0].tolist() == pytest.approx([2.0, 1 + 1 / 3 + 0.5])
    assert balance.reading.terms["feature"] / balance.reading.terms["score"] == pytest.approx(3)
    assert balance.reading.distillation == pytest.approx((11 / 6) / (2 + 11 / 6))


def test_measurements_become_rare_and_maps_are_kept_for_them_alone():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.4))
    measured = []
    for step in range(301):
        if toy.keeps_shared_maps:
            measured.append(step)
        balance(toy.losses(1.0, feature=1.0))
    assert measured == [0, 5, 10, 15, 20, 30, 40, 50, 75, 125, 250]


def test_a_term_without_a_gradient_is_measured_until_it_has_one():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.4))
    balance(toy.losses(1.0, feature=0.0))
    assert balance.last == {"feature": 0.0}
    assert balance.is_due(1)
    balance(toy.losses(1.0, feature=2.0))
    assert balance.last["feature"] == pytest.approx(0.4 / 0.6 / 2)
    assert not balance.is_due(2)


@given(st.lists(st.floats(0, 1e30, allow_subnormal=False), min_size=1, max_size=40), st.floats(0.01, 0.9))
def test_weights_are_bounded_and_finite_whatever_the_norms(norms, share):
    balance = Balance(Toy(), weights_of(feature=share))
    for number, norm in enumerate(norms):
        balance.step = 125 * number
        balance._follow(1.0, {"feature": norm})
        if "feature" in balance.reference:
            ratio = balance.found["feature"] / balance.reference["feature"]
            assert 1 / module.LARGEST_CHANGE * 0.999 <= ratio <= module.LARGEST_CHANGE * 1.001
        assert all(math.isfinite(weight) and weight > 0 for weight in balance.found.values())


def test_a_constant_ratio_is_reached_without_oscillation():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.5))
    balance(toy.losses(1.0, feature=1.0))
    found = []
    for number in range(1, 8):
        balance.step = 10 * number
        balance.measure(toy.losses(1.0, feature=0.25))
        found.append(balance.found["feature"])
    assert found == sorted(found)
    assert 3.9 < found[-1] < 4


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (500, 0.6), (1000, 0.2)])
def test_shares_change_towards_the_end(step, factor):
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.5), steps=1000, end=0.2)
    balance.step = step
    balance.measure(toy.losses(1.0, feature=1.0))
    assert balance.weights["feature"].weight == pytest.approx(0.5 * factor / (1 - 0.5 * factor))


def test_shares_that_fall_are_not_held_by_the_bound():
    """From 80 to 0 % a weight falls without limit, though the norms have one."""
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.8), steps=1000, end=0.0)
    for step in (0, 125, 1000):
        balance.step = step
        balance(toy.losses(1.0, feature=1.0))
    assert balance.last["feature"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 2.0, "steps": 9}, "from 0 to 1, got 2.0 and 1.0"),
        ({"until": -0.1, "steps": 9}, "from 0 to 1, got 1.0 and -0.1"),
        ({"end": 0.5}, "needs the number of steps"),
    ],
)
def test_a_course_of_the_shares_that_is_impossible(options, message):
    with pytest.raises(UserError, match=message):
        Balance(Toy(), weights_of(feature=0.8), **options)


def test_weights_stay_after_a_part_of_the_run():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.5), steps=1000, until=0.1)
    for step, norm in ((0, 1.0), (250, 100.0)):
        balance.step = step
        balance(toy.losses(1.0, feature=norm))
    assert balance.last["feature"] == pytest.approx(1.0)
    assert balance.reading.terms["feature"] == pytest.approx(100 / 101)  # the share is still measured


def test_a_term_without_a_gradient_by_then_is_still_measured_once():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.25, late=0.25), steps=1000, until=0.01)
    for step in range(130):
        balance(toy.losses(1.0 if step < 12 else 8.0, feature=1.0, late=0.0 if step < 12 else 1.0 + step))
    assert balance.last == pytest.approx({"feature": 0.5, "late": 0.5 * 8 / 13})


def test_a_checkpoint_holds_the_state():
    toy = Toy()
    one, other, fresh = (Balance(toy, weights_of(feature=0.5)) for _ in range(3))
    for step in range(0, 500, 125):
        one.step = step
        one(toy.losses(1.0, feature=1.0 + step))
    other.load_state_dict(one.state_dict())
    fresh.step = one.step
    for balance in (one, other, fresh):
        balance.step = 500
        balance(toy.losses(1.0, feature=7.0))
    assert one.last == other.last != fresh.last


def test_without_shared_maps_all_weights_count():
    toy = Toy()
    toy.shared_maps = ()
    balance = Balance(toy, weights_of(feature=0.5))
    balance(toy.losses(3.0, feature=1.0))
    assert balance.last["feature"] == pytest.approx(3.0)


def half(toy: Toy) -> Toy:
    """The learner whose shared map is in float16, whose largest number is 65504."""
    toy.map = torch.zeros(2, dtype=torch.float16, requires_grad=True)
    toy.shared_maps = (toy.map,)
    return toy


@pytest.mark.parametrize("norm", [2.0**-22, 1.0, 1000.0, 60000.0])
def test_a_gradient_in_float16_is_measured_whatever_its_size(norm):
    """Small ones become 0 without a large factor, and large ones become infinite with it."""
    toy = half(Toy())
    balance = Balance(toy, weights_of(large=0.25, small=0.25))
    balance(toy.losses(1.0, large=norm, small=2.0**-20))
    assert balance.reading.norms == pytest.approx({"large": norm, "small": 2.0**-20}, rel=1e-3)
    assert balance.last == pytest.approx({"large": 0.5 / norm, "small": 0.5 * 2**20}, rel=1e-3)
    assert not balance.is_due(1)


def losses_of(toy: Toy, **norms: float) -> dict[str, torch.Tensor]:
    """Losses of any norms, also infinite ones, of a map whose values are 0."""
    return {name: (norm * toy.map[1] if math.isfinite(norm) else toy.map[1].sqrt()) for name, norm in norms.items()}


def test_a_term_whose_gradient_is_not_finite_at_first_has_no_weight_and_leaves_the_shares_of_others():
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.25, broken=0.25))
    balance(losses_of(toy, own=1.0, feature=1.0, broken=math.inf))
    assert balance.last == {"feature": 0.5, "broken": 0.0}
    assert balance.reading.distillation == pytest.approx(1 / 3)
    assert balance.reading.terms == pytest.approx({"feature": 1 / 3, "broken": 0})
    balance(losses_of(toy, own=1.0, feature=1.0, broken=1.0))
    assert balance.last["broken"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("norms", "steps", "free", "named"),
    [
        ({"own": 1.0, "feature": math.inf}, None, 100, "feature"),
        ({"own": math.inf, "feature": 1.0}, 1000, 100, "the student's own losses"),
        ({"own": 1.0, "feature": math.inf}, 7, 7, "feature"),  # a short run
    ],
)
def test_gradients_that_are_never_finite_end_the_run(norms, steps, free, named):
    toy = Toy()
    balance = Balance(toy, weights_of(feature=0.5), steps=steps)
    for _ in range(free - 1):
        balance(losses_of(toy, **norms))
    assert balance.reading is None or math.isfinite(balance.reading.distillation)
    with pytest.raises(RunError, match=f"No finite gradient in {free} steps: {named}. .* precision=bf16"):
        balance(losses_of(toy, **norms))


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "shares"),
    [
        ({"frs": {}}, {"frs_feature": 0.2, "frs_class": 0.2}),
        ({"frs": {"feature_share": 0.3}}, {"frs_feature": 0.3, "frs_class": 0.1}),
        ({"frs": {"share": 0.6}}, {"frs_feature": 0.3, "frs_class": 0.3}),
        ({"frs": {"share": 0.4, "feature_share": 0.27, "class_share": 0.14}}, {"frs_feature": 0.27, "frs_class": 0.14}),
        ({"frs": {}, "hint": {"share": 0.1}}, {"frs_feature": 0.15, "frs_class": 0.15, "hint_feature": 0.1}),
        ({"frs": {"class_weight": 0.02}}, {"frs_feature": 0.4, "frs_class": None}),
        ({"frs": {"class_weight": 0}}, {"frs_feature": 0.4}),
        ({"frs": {"box_share": 0.1}}, {"frs_feature": 0.15, "frs_class": 0.15, "frs_box": 0.1}),
        ({"rank_mimicking": {}}, {"rank_mimicking_class": 0.1}),  # a method that states the largest share it takes
        ({"mgd": {}}, {"mgd_feature": 0.2}),
        ({"score_l2": {}}, {"score_l2_feature": 0.2}),
        ({"rank_mimicking": {}, "hint": {}}, {"rank_mimicking_class": 0.1, "hint_feature": 0.3}),
        ({"rank_mimicking": {"share": 0.3}, "hint": {}}, {"rank_mimicking_class": 0.3, "hint_feature": 0.1}),
    ],
)
def test_shares_of_methods_and_terms(methods, shares):
    _, weights = build_methods(methods, SPEC, SPEC, balance=0.4)
    assert {name: weight.share for name, weight in weights.items()} == pytest.approx(shares)
    assert all((weight.weight > 0) == (weight.share is None) for weight in weights.values())
    assert not any(weight.ramp_steps for weight in weights.values())


@pytest.mark.parametrize(("family", "share"), [("faster_rcnn", 0.4), ("retinanet", 0.8)])
def test_the_largest_share_of_a_method_may_depend_on_the_family(family, share):
    spec = replace(SPEC, family=family)
    for options, expected in (({}, share), ({"share": 0.7}, 0.7)):
        _, weights = build_methods({"pairwise": options}, spec, spec, balance=0.8)
        assert weights["pairwise_relation"].share == pytest.approx(expected)


SUMMED = "methods.frs.share={} contradicts feature_share={} + class_share=0.1 = {}: leave out share, or let"


@pytest.mark.parametrize(
    ("methods", "balance", "message"),
    [
        ({"frs": {"share": 0.4}, "hint": {}}, 0.4, "the shares of the methods frs 0.4 leave nothing of balance=0.4"),
        ({"frs": {"feature_share": 0.5}}, 0.4, "the shares of the terms feature 0.5 leave nothing of the share 0.4 of"),
        ({"frs": {"share": 0.6}, "hint": {"share": 0.4}}, 0.4, "frs 0.6, hint 0.4 leave nothing of balance=0.4"),
        ({"frs": {"feature_share": 0.1}}, None, "methods.frs.feature_share has no effect with balance=off"),
        ({"frs": {"share": 0.1}}, None, "methods.frs.share has no effect with balance=off"),
        ({"hint": {"feature_share": 0.1, "feature_weight": 1}}, 0.4, "feature_weight and feature_share contradict"),
        ({"hint": {"share": 0.1, "feature_weight": 1}}, 0.4, "methods.hint.share has no effect, since all terms have"),
        (
            {"frs": {"share": 0.6, "feature_share": 0.1, "class_share": 0.1}, "hint": {}},
            0.8,
            SUMMED.format(0.6, 0.1, 0.2),
        ),
        ({"frs": {"share": 0.1, "feature_share": 0.4, "class_share": 0.1}}, 0.8, SUMMED.format(0.1, 0.4, 0.5)),
        (
            {"frs": {"share": 0.2, "feature_share": 0.4, "class_weight": 1}},
            0.8,
            "methods.frs.share=0.2 contradicts feature_share=0.4: leave out share, or",
        ),
        ({"hint": {"share": 1.5}}, 0.4, "methods.hint.share: expected a number above 0 and below 1 or null, got 1.5"),
    ],
)
def test_shares_without_sense_are_refused(methods, balance, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_methods(methods, SPEC, SPEC, balance=balance)


def test_a_run_with_published_weights(tiny, trained, tmp_path):
    run = understudy.distill(
        tiny, teacher=trained, run=tmp_path / "run", balance="off", log_every=1, **{"schedule.epochs": 1}
    )
    rows = read_rows(run / "losses.csv")
    # FRS grows over 500 steps, and the first of these counts as 0.
    assert [float(row["frs_feature_weight"]) for row in rows] == pytest.approx([0.01 * step / 500 for step in range(4)])
    assert rows[0]["distillation_share"] == "0.0000"


def test_a_loop_of_ones_own():
    """The class in the docs: methods built with a balance, and the total from calling it."""
    torch.manual_seed(0)
    student, teacher = (understudy.build_detector("fcos_mobilenet_v2", num_classes=3, neck_channels=8) for _ in "st")
    teacher.requires_grad_(False).eval()
    methods, weights = understudy.build_methods({"frs": {}, "hint": {}}, student.spec, teacher.spec, balance=0.4)
    learner = understudy.Learner(student, methods)
    balance = understudy.Balance(learner, weights)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        outputs = teacher(images, needs=learner.needs)
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
    loss = balance(learner(images, targets, outputs))
    loss.backward()
    assert balance.reading.terms == pytest.approx({"frs_feature": 0.1, "frs_class": 0.1, "hint_feature": 0.2}, rel=1e-4)
    # The norms are those at the outputs of the backbone's stages.
    stages = learner.shared_maps
    assert [level.shape[1] for level in stages] == [
        student.spec.stage_channels[number] for number in range(len(stages))
    ]
