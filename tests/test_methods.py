"""The conformance menu over every method, on records that are made up from two Specs."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from understudy.errors import UserError
from understudy.learner import Learner
from understudy.methods import METHODS, Method, build_methods, method_class, method_options
from understudy.outputs import Outputs, Spec, Truth
from understudy.weighting import TermWeight, weighted_sum

SIZES = [(6, 8), (3, 4)]
STUDENT = Spec(channels=(6, 6), strides=(8, 16), num_anchors=2, num_classes=3, family="retinanet", name="little")
TEACHER = Spec(channels=(8, 8), strides=(8, 16), num_anchors=2, num_classes=3, family="retinanet", name="big")
EVERY = pytest.mark.parametrize("name", METHODS)


def record(spec: Spec, seed: int, images: int = 2) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    levels = list(zip(spec.channels, SIZES, strict=True))
    return Outputs(
        stages=[],
        features=[random(images, channels, *size).requires_grad_() for channels, size in levels],
        class_logits=[random(images, *size, spec.num_anchors, spec.num_classes).requires_grad_() for _, size in levels],
        box_raw=[random(images, *size, spec.num_anchors, 4).requires_grad_() for _, size in levels],
        anchors=[random(*size, spec.num_anchors, 4) for _, size in levels],
    )


def truth(objects: tuple[int, ...] = (2, 1)) -> Truth:
    """An image with two objects and one with one; the second is at times empty."""
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 30, 40]] * count).reshape(-1, 4), "labels": torch.zeros(count).long()}
        for count in objects
    ]
    gt_index = torch.full((len(objects), 2 * (48 + 12)), -1)
    for row, count in zip(gt_index, objects, strict=True):
        row[:count] = torch.arange(count)
    return Truth(targets, gt_index)


def made(name: str, student: Spec = STUDENT, **options) -> Method:
    torch.manual_seed(0)
    return METHODS[name](student, TEACHER, **options)


def tensors(outputs: Outputs) -> list[torch.Tensor]:
    return [*outputs.features, *outputs.class_logits, *outputs.box_raw]


def with_images(outputs: Outputs, index: list[int]) -> Outputs:
    def pick(levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [level[index] for level in levels]

    return Outputs([], pick(outputs.features), pick(outputs.class_logits), pick(outputs.box_raw), outputs.anchors)


def make_identity(method: Method) -> None:
    for module in method.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            nn.init.zeros_(module.bias)


@EVERY
def test_terms_are_finite_named_float32_scalars(name):
    terms = made(name)(record(STUDENT, 1), record(TEACHER, 2), truth())
    assert list(terms) == [f"{name}_{term}" for term in METHODS[name].terms]
    for term in terms.values():
        assert term.shape == ()
        assert term.dtype == torch.float32
        assert term.isfinite()


@EVERY
def test_the_students_gradient_vanishes_where_it_equals_the_teacher(name):
    method = made(name, student=TEACHER)
    make_identity(method)
    student, teacher = record(TEACHER, 2), record(TEACHER, 2)
    sum(method(student, teacher, truth()).values()).backward()
    for tensor in tensors(student):
        assert tensor.grad is None or tensor.grad.abs().max() < 1e-6


@EVERY
def test_no_gradient_reaches_the_teacher_even_where_its_record_could_carry_one(name):
    student, teacher = record(STUDENT, 1), record(TEACHER, 2)
    assert all(tensor.requires_grad for tensor in tensors(teacher))
    sum(made(name)(student, teacher, truth()).values()).backward()
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in tensors(student))
    assert all(tensor.grad is None for tensor in tensors(teacher))


@EVERY
@pytest.mark.parametrize("objects", [(0, 0), (2, 0)])
def test_images_without_objects(name, objects):
    student = record(STUDENT, 1)
    terms = made(name)(student, record(TEACHER, 2), truth(objects))
    assert all(term.isfinite() and term.requires_grad for term in terms.values())


@EVERY
def test_every_own_parameter_gets_a_gradient(name):
    method = made(name)
    sum(method(record(STUDENT, 1), record(TEACHER, 2), truth()).values()).backward()
    assert list(method.parameters())
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@EVERY
@pytest.mark.parametrize("images", [[1, 0], [0, 1, 0, 1]], ids=["permuted", "repeated"])
def test_the_order_and_the_repetition_of_images_do_not_matter(name, images):
    method = made(name)
    student, teacher, ground = record(STUDENT, 1), record(TEACHER, 2), truth()
    again = Truth([ground.targets[i] for i in images], ground.gt_index[images])
    before = method(student, teacher, ground)
    after = method(with_images(student, images), with_images(teacher, images), again)
    for term in before:
        torch.testing.assert_close(after[term], before[term], rtol=1e-5, atol=1e-6)


@EVERY
def test_bfloat16_agrees_to_one_percent(name):
    method = made(name)
    student, teacher = record(STUDENT, 1), record(TEACHER, 2)
    exact = method(student, teacher, truth())

    def rounded(outputs: Outputs) -> Outputs:
        parts = [[t.bfloat16() for t in part] for part in (outputs.features, outputs.class_logits, outputs.box_raw)]
        return Outputs([], *parts, outputs.anchors)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(rounded(student), rounded(teacher), truth())
    for term in exact:
        assert rough[term].dtype == torch.float32
        torch.testing.assert_close(rough[term], exact[term], rtol=0.01, atol=1e-3)


@EVERY
def test_state_dict_round_trip(name):
    method = made(name)
    torch.manual_seed(9)
    other = METHODS[name](STUDENT, TEACHER)
    other.load_state_dict(method.state_dict())
    pair = record(STUDENT, 1), record(TEACHER, 2)
    for term, value in method(*pair, truth()).items():
        assert torch.equal(other(*pair, truth())[term], value)


@EVERY
def test_a_pair_that_does_not_fit_is_refused_and_both_are_named(name):
    with pytest.raises(UserError) as failure:
        METHODS[name](STUDENT, replace(TEACHER, num_anchors=9, num_classes=80, strides=(8, 32)))
    for part in ("little", "big", "9", "80", "(8, 32)"):
        assert part in str(failure.value)


@EVERY
def test_every_method_says_what_it_is(name):
    method = METHODS[name]
    assert method.name == name
    assert method.source
    assert len(method.__doc__.splitlines()[0]) > 30
    for family, weights in method.weights.items():
        assert set(weights) == set(method.terms), family


# ------------------------------------------------------------------------------------------------------------------ FRS


def test_frs_against_a_slow_loop_over_levels():
    method = made("frs", student=TEACHER)
    make_identity(method)
    student, teacher = record(TEACHER, 1), record(TEACHER, 2)
    expected = 0.0
    for own, theirs, logits in zip(student.features, teacher.features, teacher.class_logits, strict=True):
        above = below = 0.0
        for n in range(2):
            for y in range(logits.shape[1]):
                for x in range(logits.shape[2]):
                    weight = torch.sigmoid(logits[n, y, x].max()).item()
                    above += weight * (own[n, :, y, x] - theirs[n, :, y, x]).square().sum().item()
                    below += weight
        expected += above / below
    assert method(student, teacher, truth())["frs_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_frs_reads_the_mask_from_the_teacher_alone_and_ignores_the_ground_truth():
    method = made("frs")
    student, teacher = record(STUDENT, 1), record(TEACHER, 2)
    first, second = method(student, teacher, truth()), method(student, teacher, truth((0, 0)))
    assert torch.equal(first["frs_feature"], second["frs_feature"])


def test_frs_threshold_makes_the_mask_binary():
    method = made("frs", threshold=0.5)
    mask = method.mask(torch.tensor([0.4, -0.4]).view(1, 1, 2, 1, 1))
    assert mask.tolist() == [[[1.0, 0.0]]]
    with pytest.raises(UserError, match="threshold"):
        made("frs", threshold=1.5)


def test_frs_normaliser_per_image_differs_from_per_batch():
    student, teacher = record(STUDENT, 1), record(TEACHER, 2)
    batch = made("frs")(student, teacher, truth())
    image = made("frs", normaliser="image")(student, teacher, truth())
    assert batch["frs_feature"].item() != pytest.approx(image["frs_feature"].item(), rel=1e-6)


def test_frs_published_weights():
    _, weights = build_methods({"frs": {}}, STUDENT, TEACHER)
    assert weights == {"frs_feature": TermWeight(0.005, 500), "frs_class": TermWeight(0.02, 500)}


# ------------------------------------------------------------------------------------------------- options and weights


def test_options_are_typed_and_all_faults_come_at_once():
    entries = {"frs": {"featur_weight": 1, "normaliser": "level", "class_weight": -1, "ramp_steps": "soon"}, "fsr": {}}
    with pytest.raises(UserError) as failure:
        build_methods(entries, STUDENT, TEACHER)
    message = str(failure.value)
    assert '[methods.frs] has no option "featur_weight"; did you mean "feature_weight"?' in message
    for part in ('"normaliser"', '"class_weight"', '"ramp_steps"', "there is no method 'fsr'; did you mean 'frs'?"):
        assert part in message


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(UserError, match="feature_weight"):
        build_methods({"frs": {"feature_weight": weight}}, STUDENT, TEACHER)


def test_a_family_without_published_weights_must_be_given_them():
    student = replace(STUDENT, family="mydetector")
    with pytest.raises(UserError, match="is published"):
        build_methods({"frs": {}}, student, TEACHER)
    build_methods({"frs": {"feature_weight": 1, "class_weight": 1}}, student, TEACHER)


class Own(Method):
    """A method of one's own, as a user would write it."""

    name = "own"
    terms = ("mean",)
    weights = {"retinanet": {"mean": 2.0}}  # noqa: RUF012
    source = "this test"

    def __init__(self, student, teacher, *, power: float = 1.0):
        super().__init__(student, teacher)
        self.power = power

    def forward(self, student, teacher, truth):
        return {"own_mean": student.features[0].float().pow(self.power).mean()}


class Fussy(Own):
    """One that does not serve every pair."""

    name = "fussy"

    @classmethod
    def obstacles(cls, student, teacher, **options):
        return {"mean": f"{teacher.name} is not to its taste"} if teacher.num_anchors == 1 else {}


class Two(Own):
    """One that computes all terms, whichever are asked for."""

    name = "two"
    terms = ("mean", "peak")

    def forward(self, student, teacher, truth):
        return {"two_mean": student.features[0].mean(), "two_peak": student.features[0].amax()}


def test_a_method_of_ones_own_by_its_import_path():
    path = f"{__name__}:Own"
    assert method_class(path) is Own
    assert set(method_options(path).model_fields) == {"mean_weight", "ramp_steps", "power"}
    (method,), weights = build_methods({path: {"power": 2}}, STUDENT, TEACHER)
    assert method.power == 2.0
    assert weights == {"own_mean": TermWeight(2.0, 0)}
    with pytest.raises(UserError, match="cannot be imported"):
        method_class("no.such.module:Own")
    with pytest.raises(UserError, match="expected a subclass"):
        method_class("math:pi")


def test_ramps_grow_linearly_and_stay():
    weight = TermWeight(0.5, 10)
    assert [weight.at(step) for step in (0, 5, 10, 1000)] == [0, 0.25, 0.5, 0.5]
    assert TermWeight(0.5).at(0) == 0.5
    terms = {"classification": torch.tensor(1.0), "frs_feature": torch.tensor(4.0)}
    assert weighted_sum(terms, {"frs_feature": weight}, 5).item() == 2.0


# --------------------------------------------------------------------------------------------- terms and what they need

ONE_ANCHOR = replace(TEACHER, num_anchors=1, name="anchorless")
RPN = replace(TEACHER, num_classes=1, objectness=True, family="faster_rcnn", name="two_stage")
WEIGHTS = {"feature_weight": 1.0, "class_weight": 1.0}


def test_a_term_without_weight_is_neither_computed_nor_needs_anything():
    (method,), weights = build_methods({"frs": {"class_weight": 0}}, STUDENT, ONE_ANCHOR)
    assert weights == {"frs_feature": TermWeight(0.005, 500)}
    assert list(method(record(STUDENT, 1), record(ONE_ANCHOR, 2), truth())) == ["frs_feature"]
    (method,), weights = build_methods({"frs": {"feature_weight": 0}}, STUDENT, TEACHER)
    assert list(weights) == ["frs_class"]
    assert not list(method.parameters())  # no adapter that would never get a gradient
    assert METHODS["frs"].terms == ("feature", "class")
    with pytest.raises(UserError, match="feature_weight, class_weight: all are 0"):
        build_methods({"frs": {"feature_weight": 0, "class_weight": 0}}, STUDENT, TEACHER)


def test_a_method_that_cannot_serve_says_what_can():
    with pytest.raises(UserError) as failure:
        build_methods({"frs": {}, f"{__name__}:Fussy": {}}, STUDENT, ONE_ANCHOR)
    message = str(failure.value)
    assert "frs_class: the student little has 2 anchors per cell, the teacher anchorless has 1" in message
    assert "methods.frs.scores=cell" in message
    assert "frs can serve with methods.frs.class_weight=0" in message
    assert "Fussy_mean: anchorless is not to its taste" in message  # all faults at once
    assert "what serves the student little and the teacher anchorless: frs (feature only)" in message
    with pytest.raises(UserError, match="threshold"):
        build_methods({"frs": {"threshold": 7}}, STUDENT, TEACHER)
    with pytest.raises(UserError, match=r"the teacher distant: no method"):
        build_methods({"frs": {}}, STUDENT, replace(TEACHER, strides=(1, 2), name="distant"))


def test_frs_compares_cells_where_anchors_differ():
    (method,), _ = build_methods({"frs": {"scores": "cell", "ramp_steps": 0}}, STUDENT, ONE_ANCHOR)
    student, teacher = record(STUDENT, 1), record(ONE_ANCHOR, 2)
    expected = 0.0
    for own, theirs in zip(student.class_logits, teacher.class_logits, strict=True):
        above = below = 0.0
        for n, y, x in itertools.product(range(2), range(own.shape[1]), range(own.shape[2])):
            weight = theirs[n, y, x].max().sigmoid().item()
            below += weight
            for k in range(3):
                score = max(own[n, y, x, a, k].sigmoid().item() for a in range(2))
                soft = theirs[n, y, x, 0, k].sigmoid().item()
                above -= weight * (soft * math.log(score) + (1 - soft) * math.log(1 - score))
        expected += above / below
    terms = method(student, teacher, truth())
    assert terms["frs_class"].item() == pytest.approx(expected, rel=1e-5)
    terms["frs_class"].backward()
    assert all(logits.grad.abs().sum() > 0 for logits in student.class_logits)


@pytest.mark.parametrize("scores", ["anchor", "cell"])
def test_objectness_is_not_compared_with_classes(scores):
    options = WEIGHTS | {"scores": scores}
    for student, teacher in ((STUDENT, RPN), (RPN, TEACHER), (replace(STUDENT, num_classes=1), RPN)):
        with pytest.raises(
            UserError, match=r"frs_class: the student \w+ has (objectness|\d classes), the teac"
        ) as failure:
            build_methods({"frs": options}, student, teacher)
        assert "scores=cell" not in str(failure.value)  # it would not help
        (method,), _ = build_methods({"frs": {"feature_weight": 1, "class_weight": 0}}, student, teacher)
        assert method(record(student, 1), record(teacher, 2), truth())["frs_feature"] > 0
    (method,), _ = build_methods({"frs": options}, RPN, RPN)
    assert method(record(RPN, 1), record(RPN, 2), truth())["frs_class"] > 0


# -------------------------------------------------------------------------------------------------------------- learner


def test_the_learner_runs_the_student_once_and_never_holds_the_teacher():
    from understudy.detectors import build_detector

    torch.manual_seed(0)
    options = {"neck_channels": 16, "width_mult": 0.35, "norm": "frozen"}
    student = build_detector("fcos_mobilenet_v2", 2, **options)
    teacher = build_detector("fcos_mobilenet_v2", 2, **{**options, "neck_channels": 32}).requires_grad_(False).eval()
    methods, _ = build_methods({"frs": {}}, student.spec, teacher.spec)
    learner = Learner(student, methods)
    passes = []
    student.network.head.register_forward_hook(lambda *_: passes.append(1))
    images = torch.rand(2, 3, 64, 64)
    targets = [{"boxes": torch.tensor([[8.0, 8, 50, 50]]), "labels": torch.tensor([1])}] * 2
    with torch.no_grad():
        theirs = teacher(images)
    losses = learner(images, targets, theirs)
    assert list(losses) == ["classification", "bbox_regression", "bbox_ctrness", "frs_feature", "frs_class"]
    assert learner.distillation_terms == ("frs_feature", "frs_class")
    assert len(passes) == 1
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in key for key in learner.state_dict())

    both = {f"{__name__}:Two": {"mean_weight": 1, "peak_weight": 0}}
    some, weights = build_methods(both, student.spec, teacher.spec)
    terms = Learner(student, some)(images, targets, theirs)
    assert [name for name in terms if name.startswith("two")] == ["two_mean"] == list(weights)

    with pytest.raises(UserError, match="give it the teacher's outputs"):
        learner(images, targets)
    with torch.no_grad():
        smaller = teacher(images[..., :32])
    with pytest.raises(UserError, match=r"student fcos_\S+ \[\(8, 8\).*teacher fcos_\S+ \[\(8, 4\)"):
        Learner(student, methods)(images, targets, smaller)
