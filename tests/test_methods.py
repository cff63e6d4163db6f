"""The conformance menu over every method, on records that are made up from two Specs.

It follows ``METHODS``: for each entry it looks for pairs of detectors that the method serves (``pairs.py``), real ones
where the method runs their layers. A new method needs no line here, unless one of the exceptions below is true of it.
"""

import inspect
import itertools
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from pairs import (
    BIG,
    LITTLE,
    Pair,
    all_terms,
    home,
    made_up_specs,
    pairs_of,
    record,
    some_objects,
    tiny_detector,
    tiny_images,
    tiny_teacher,
    truth,
)
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.functional import richness_mask
from understudy.learner import Learner
from understudy.methods import METHODS, Method, build_methods, method_class, method_options
from understudy.outputs import Outputs, Spec
from understudy.weighting import TermWeight, weighted_sum

EVERY = pytest.mark.parametrize("name", METHODS)
LINES_OF_A_METHOD = 100

# Exceptions: method to the reason.
GRADIENT_WHERE_EQUAL: dict[str, str] = {
    "dist2": "the teacher's layers are to find the ground truth, and not what they find already",
    "overhaul": "a zero of the teacher's becomes a margin below zero, which the same zero is drawn down to",
    "crosskd": "maps are aligned to six digits only, and the distance of scores has a kink where it is zero",
}
"""Methods whose gradient does not vanish where student and teacher are the same and adapters the identity."""

CHANGED_BY_REPETITION: dict[str, str] = {
    "ld": "two of its terms are sums over anchors, as the authors have them",
    "nonlocal": "its value is a 2-norm over the batch",
    "fkd": "its values are 2-norms over the batch",
    "pkd": "the unbiased deviation depends on the number of cells",
    "mgd": "other cells of an image are hidden",
    "gid": "its relation term is divided by the number of pairs of boxes, those of a box with its copy among them",
}
"""Methods whose value changes where every image comes twice."""

CHANGED_BY_ORDER: dict[str, str] = {
    "mgd": "other cells of an image are hidden",
}
"""Methods whose value depends on the order of the images."""

COARSE_IN_BFLOAT16: dict[str, str] = {}
"""Methods whose value in bfloat16 is farther than 1 % from that in float32."""

EMPTY_LEVELS: dict[str, str] = {
    "defeat": "no object is large enough for the coarse level",
    "fgd": "an object covers the coarse level, which has no background then",
}
"""Methods of which one term alone gives the adapter of a level a gradient that is zero, for these objects."""


def terms_of(pair: Pair, method: Method, inputs) -> dict[str, Tensor]:
    """Run a method; what it draws at random is the same every time."""
    torch.manual_seed(1)
    return inputs.terms(method)


def tensors(outputs: Outputs) -> list[Tensor]:
    """The leaves of a record."""
    parts = [*outputs.stages, *outputs.features, *outputs.class_logits, *outputs.box_raw, *outputs.extra.values()]
    return [tensor for tensor in parts if tensor.is_leaf]


def gradients(outputs: Outputs) -> float:
    """The largest gradient at any leaf of a record."""
    return max((tensor.grad.abs().max().item() for tensor in tensors(outputs) if tensor.grad is not None), default=0.0)


def shaken(method: Method) -> Method:
    """Move every parameter a little: a last layer that begins at zero keeps the gradient from those before it."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return method


def make_identity(method: Method) -> None:
    """Make every adapter pass on what it gets, features that are not negative provided."""
    for module in method.eval().modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight, module.groups)
        elif isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def not_negative(outputs: Outputs) -> Outputs:
    """A record whose maps are, as behind a ReLU, not negative."""
    maps = {
        name: [tensor.detach().abs().requires_grad_() for tensor in getattr(outputs, name)]
        for name in ("stages", "features")
    }
    return replace(outputs, **maps)


@EVERY
def test_terms_are_finite_named_float32_scalars_on_every_pair_that_is_served(name):
    pairs = pairs_of(name)
    assert pairs, f"{name} serves no pair of one family"
    for pair in pairs:
        terms = terms_of(pair, pair.made(), pair.inputs())
        assert set(terms) >= {f"{name}_{term}" for term in pair.method.terms}
        for term in terms.values():
            assert term.shape == ()
            assert term.dtype == torch.float32
            assert term.isfinite()
            assert term.requires_grad


@EVERY
def test_the_home_pair_is_one_for_which_everything_can_be_computed(name):
    assert home(name).method.terms == all_terms(METHODS[name])


@EVERY
def test_the_students_gradient_vanishes_where_it_equals_the_teacher(name):
    pair = home(name)
    pair = replace(pair, student=pair.teacher)
    method = pair.made()
    make_identity(method)
    same, other = pair.inputs(alike=True), pair.inputs()
    if not method.uses_layers:
        same = replace(same, student=not_negative(same.student), teacher=not_negative(same.teacher))
    for inputs in (same, other) if other.student.features[0].shape == same.student.features[0].shape else (same,):
        sum(terms_of(pair, method, inputs).values()).backward()
    usual = gradients(other.student) or 1.0
    assert (gradients(same.student) < 1e-5 * usual) == (name not in GRADIENT_WHERE_EQUAL)


@EVERY
def test_every_term_reaches_the_student_and_none_the_teacher_even_where_its_record_could_carry_a_gradient(name):
    pair = home(name)
    for term in pair.method.terms:
        inputs, method = pair.inputs(), shaken(pair.made())
        assert all(tensor.requires_grad for tensor in tensors(inputs.teacher))
        terms_of(pair, method, inputs)[f"{name}_{term}"].backward()
        assert gradients(inputs.student) > 0, term
        assert all(tensor.grad is None for tensor in tensors(inputs.teacher)), term
        if inputs.layers:
            assert all(parameter.grad is None for parameter in inputs.layers.teacher.parameters()), term


@EVERY
@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_images_without_objects(name, counts):
    pair = home(name)
    inputs, method = pair.inputs(counts), pair.made()
    terms = terms_of(pair, method, inputs)
    assert all(term.isfinite() and term.requires_grad for term in terms.values())
    sum(terms.values()).backward()
    for tensor in (*tensors(inputs.student), *method.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in method.parameters())  # a process without objects, in DDP


@EVERY
def test_every_own_parameter_gets_a_gradient_also_of_one_term_alone(name):
    pair = home(name)
    for terms in {pair.method.terms, *((term,) for term in pair.method.terms)}:
        one = replace(pair, method=METHODS[name].narrowed(terms))
        method = shaken(one.made())
        sum(terms_of(one, method, one.inputs())[f"{name}_{term}"] for term in terms).backward()
        for key, parameter in method.named_parameters():
            assert parameter.grad is not None, (terms, key)
            assert parameter.grad.abs().sum() > 0 or (len(terms) == 1 and name in EMPTY_LEVELS), (terms, key)


def same_after(name: str, images: list[int]) -> bool:
    pair = home(name)
    method, inputs = pair.made(), pair.inputs()
    before, after = terms_of(pair, method, inputs), terms_of(pair, method, inputs.of_images(images))
    return all(after[term].item() == pytest.approx(before[term].item(), rel=1e-4, abs=1e-6) for term in before)


@EVERY
def test_the_order_of_the_images_does_not_matter(name):
    assert same_after(name, [1, 0]) == (name not in CHANGED_BY_ORDER)


@EVERY
def test_the_repetition_of_the_images_does_not_matter(name):
    assert same_after(name, [0, 1, 0, 1]) == (name not in CHANGED_BY_REPETITION)


@EVERY
def test_bfloat16_agrees_to_one_percent(name):
    pair = home(name)
    method, inputs = pair.made(), pair.inputs()
    exact = terms_of(pair, method, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = terms_of(pair, method, inputs.rounded())
    assert all(term.dtype == torch.float32 and term.isfinite() for term in rough.values())
    close = all(rough[term].item() == pytest.approx(exact[term].item(), rel=0.01, abs=1e-3) for term in exact)
    assert close == (name not in COARSE_IN_BFLOAT16)


@EVERY
def test_state_dict_round_trip(name):
    pair = home(name)
    method, other = shaken(pair.made()), pair.made()
    other.load_state_dict(method.state_dict())
    inputs = pair.inputs()
    before, after = terms_of(pair, method.eval(), inputs), terms_of(pair, other.eval(), inputs)
    assert all(torch.equal(after[term], before[term]) for term in before)


@EVERY
def test_levels_that_do_not_fit_are_refused_and_both_are_named(name):
    student, teacher = home(name).student, home(name).teacher
    moved = {part: tuple(2 * stride for stride in getattr(teacher, part)) for part in ("strides", "stage_strides")}
    with pytest.raises(UserError) as failure:
        METHODS[name](student, replace(teacher, **moved, name="elsewhere"))
    for part in (student.name, "elsewhere", "stride"):
        assert part in str(failure.value)


DIFFERENT = {
    "anchors": {"num_anchors": 9},
    "classes": {"num_classes": 80},
    "what is scored": {"num_classes": 1, "objectness": True},
    "what boxes are": {"box_code": "distances in pixels", "box_size": 4},
    "bins": {"box_code": "distributions", "box_size": 68},
}


@EVERY
@pytest.mark.parametrize("what", DIFFERENT)
def test_a_pair_that_differs_is_served_or_refused_with_both_named(name, what):
    student, teacher = home(name).student, replace(home(name).teacher, name="other", **DIFFERENT[what])
    reasons = METHODS[name].obstacles(student, teacher)
    assert set(reasons) <= set(all_terms(METHODS[name]))
    for reason in reasons.values():
        assert student.name in reason
        assert "other" in reason
    weights = {f"{term}_weight": 1.0 for term in all_terms(METHODS[name])}
    if reasons:
        with pytest.raises(UserError, match="what serves the student"):
            build_methods({name: weights}, student, teacher)
    elif not METHODS[name].uses_layers:
        (method,), _ = build_methods({name: weights}, student, teacher)
        terms = method(record(student, 1), record(teacher, 2), truth(student))
        assert all(term.isfinite() for term in terms.values())


@EVERY
def test_a_record_that_says_nothing_of_padding_is_one_without(name):
    pair = home(name)
    if not METHODS[name].uses_layers:
        inputs = pair.inputs()
        bare = replace(
            inputs, student=replace(inputs.student, image_sizes=None), teacher=replace(inputs.teacher, image_sizes=None)
        )
        assert all(term.isfinite() for term in terms_of(pair, pair.made(), bare).values())


@EVERY
def test_every_method_says_what_it_is_in_one_short_file(name):
    method = METHODS[name]
    assert method.name == name
    assert method.source
    assert len(method.__doc__.splitlines()[0]) > 30
    assert method.__doc__.splitlines()[0].endswith(".")
    for family, weights in method.weights.items():
        assert set(weights) == set(method.terms), family  # optional ones have no published weight
        assert all(weight >= 0 and math.isfinite(weight) for weight in weights.values()), family
    assert method.__module__.rstrip("_") == f"understudy.methods.{name}"  # nonlocal is a word of Python
    assert len(Path(inspect.getfile(method)).read_text().splitlines()) <= LINES_OF_A_METHOD


READABLE = {field.name for field in fields(Outputs)} - {"anchors", "image_sizes"} | {"truth", "layers"}


class Watched:
    """Stands before a record and notes what is read of it."""

    def __init__(self, watched, read: set[str], name: str = ""):
        self._watched, self._read, self._name = watched, read, name

    def __getattr__(self, field: str):
        self._read |= {self._name or field} & READABLE
        return getattr(self._watched, field)


@EVERY
def test_a_method_reads_no_more_than_it_says(name):
    pair = home(name)
    assert METHODS[name].reads
    assert set(METHODS[name].reads) <= READABLE
    assert ("layers" in METHODS[name].reads) == METHODS[name].uses_layers
    if not METHODS[name].uses_layers:
        inputs, read = pair.inputs(), set()
        watched = (Watched(inputs.student, read), Watched(inputs.teacher, read), Watched(inputs.truth, read, "truth"))
        pair.made()(*watched)
        assert read <= set(METHODS[name].reads)


# ------------------------------------------------------------------------------------------------------------------ FRS


def made(name: str, student: Spec = LITTLE, **options) -> Method:
    torch.manual_seed(0)
    return METHODS[name](student, BIG, **options)


def test_frs_against_a_slow_loop_over_levels():
    method = made("frs", student=BIG)
    make_identity(method)
    student, teacher = record(BIG, 1), record(BIG, 2)
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
    assert method(student, teacher, truth(LITTLE))["frs_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_frs_reads_the_mask_from_the_teacher_alone_and_ignores_the_ground_truth():
    method = made("frs")
    student, teacher = record(LITTLE, 1), record(BIG, 2)
    first, second = method(student, teacher, truth(LITTLE)), method(student, teacher, truth(LITTLE, (0, 0)))
    assert torch.equal(first["frs_feature"], second["frs_feature"])


def test_frs_threshold_makes_the_mask_binary():
    mask = richness_mask(torch.tensor([0.6, 0.4]).view(1, 1, 2), threshold=0.5)
    assert mask.tolist() == [[[1.0, 0.0]]]
    with pytest.raises(UserError, match="threshold"):
        made("frs", threshold=1.5)


def test_frs_normaliser_per_image_differs_from_per_batch():
    student, teacher = record(LITTLE, 1), record(BIG, 2)
    batch = made("frs")(student, teacher, truth(LITTLE))
    image = made("frs", normaliser="image")(student, teacher, truth(LITTLE))
    assert batch["frs_feature"].item() != pytest.approx(image["frs_feature"].item(), rel=1e-6)


def test_frs_published_weights():
    _, weights = build_methods({"frs": {}}, LITTLE, BIG)
    assert weights == {"frs_feature": TermWeight(0.005, 500), "frs_class": TermWeight(0.02, 500)}


# ------------------------------------------------------------------------------------------------- options and weights


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(UserError, match="feature_weight"):
        build_methods({"frs": {"feature_weight": weight}}, LITTLE, BIG)


def test_a_family_without_published_weights_must_be_given_them():
    student = replace(LITTLE, family="mydetector")
    message = "no weight of 'feature', 'class' is known for a mydetector student; give methods.frs.feature_weight, meth"
    with pytest.raises(UserError, match=message):
        build_methods({"frs": {}}, student, BIG)
    build_methods({"frs": {"feature_weight": 1, "class_weight": 1}}, student, BIG)


@EVERY
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_every_weight_of_every_method_is_a_number_from_zero_on(name, weight):
    entries = {name: {f"{term}_weight": weight for term in all_terms(METHODS[name])}}
    with pytest.raises(UserError) as failure:
        build_methods(entries, home(name).student, home(name).teacher)
    for term in all_terms(METHODS[name]):
        assert f"methods.{name}.{term}_weight: expected a number of at least 0" in str(failure.value)


def test_two_entries_of_one_name_are_refused():
    elsewhere = f"{METHODS['frs'].__module__}:FRS"
    with pytest.raises(UserError, match=f"frs and {elsewhere} are both called 'frs'"):
        build_methods({"frs": {}, elsewhere: {}}, LITTLE, BIG)
    detector = tiny_detector("fcos", 16, seed=0)
    twice = [METHODS["frs"](detector.spec, detector.spec) for _ in range(2)]
    with pytest.raises(UserError, match="Several methods are called frs"):
        Learner(detector, twice)


def test_what_cannot_be_served_is_said_before_a_weight_is_asked_for():
    """LD's weights are known for GFL alone; for a RetinaNet it is of no use to ask for others."""
    with pytest.raises(UserError) as failure:
        build_methods({"ld": {}}, LITTLE, BIG)
    message = str(failure.value)
    assert "ld_location, ld_vlr, ld_class: boxes are not distributions of both: the student little has" in message
    assert "the teacher big" in message
    assert "what serves the student little and the teacher big: frs, " in message
    assert "location_weight" not in message
    gfl = made_up_specs("gfl")
    with pytest.raises(UserError, match=r"give methods.ld.location_weight"):  # here it helps
        build_methods({"ld": {}}, replace(gfl[0], family="mine"), gfl[1])


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.uses_layers])
def test_methods_that_run_the_teachers_layers_refuse_its_recorded_outputs_alone(name):
    family, width = home(name).student.family, home(name).student.channels[0]
    student, teacher = tiny_detector(family, width, seed=0), tiny_teacher(family)
    learner = Learner(student, [METHODS[name](student.spec, teacher.spec)])
    images, targets = tiny_images(), some_objects((2, 1))
    with torch.no_grad():
        teacher_outputs = teacher(images)
    with pytest.raises(UserError, match=rf"{name} .*: give the learner the teacher itself"):
        learner(images, targets, teacher_outputs)
    learner(images, targets, teacher_outputs, teacher=teacher)


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
    (method,), weights = build_methods({path: {"power": 2}}, LITTLE, BIG)
    assert method.power == 2.0
    assert weights == {"own_mean": TermWeight(2.0, 0)}
    with pytest.raises(UserError, match=rf"methods.{path}.power: expected a number, got much"):
        build_methods({path: {"power": "much"}}, LITTLE, BIG)


def test_ramps_grow_linearly_and_stay():
    weight = TermWeight(0.5, 10)
    assert [weight.at(step) for step in (0, 5, 10, 1000)] == [0, 0.25, 0.5, 0.5]
    assert TermWeight(0.5).at(0) == 0.5
    terms = {"classification": torch.tensor(1.0), "frs_feature": torch.tensor(4.0)}
    assert weighted_sum(terms, {"frs_feature": weight}, 5).item() == 2.0


# --------------------------------------------------------------------------------------------- terms and what they need

ONE_ANCHOR = replace(BIG, num_anchors=1, name="anchorless")
RPN = replace(BIG, num_classes=1, objectness=True, family="faster_rcnn", name="two_stage")
WEIGHTS = {"feature_weight": 1.0, "class_weight": 1.0}


def test_a_term_without_weight_is_neither_computed_nor_needs_anything():
    (method,), weights = build_methods({"frs": {"class_weight": 0}}, LITTLE, ONE_ANCHOR)
    assert weights == {"frs_feature": TermWeight(0.005, 500)}
    assert list(method(record(LITTLE, 1), record(ONE_ANCHOR, 2), truth(LITTLE))) == ["frs_feature"]
    (method,), weights = build_methods({"frs": {"feature_weight": 0}}, LITTLE, BIG)
    assert list(weights) == ["frs_class"]
    assert not list(method.parameters())  # no adapter that would never get a gradient
    assert METHODS["frs"].terms == ("feature", "class")
    with pytest.raises(UserError, match="feature_weight, class_weight: all are 0"):
        build_methods({"frs": {"feature_weight": 0, "class_weight": 0}}, LITTLE, BIG)


def test_a_method_that_cannot_serve_says_what_can():
    with pytest.raises(UserError) as failure:
        build_methods({"frs": {}, f"{__name__}:Fussy": {}}, LITTLE, ONE_ANCHOR)
    message = str(failure.value)
    assert "frs_class: the student little has 2 anchors per cell, the teacher anchorless has 1" in message
    assert "methods.frs.scores=cell" in message
    assert "frs can serve with methods.frs.class_weight=0" in message
    assert "Fussy_mean: anchorless is not to its taste" in message  # all faults at once
    assert "what serves the student little and the teacher anchorless: frs (feature only)" in message
    with pytest.raises(UserError, match="threshold"):
        build_methods({"frs": {"threshold": 7}}, LITTLE, BIG)
    with pytest.raises(UserError, match=r"the teacher distant: no method"):
        build_methods({"frs": {}}, LITTLE, replace(BIG, strides=(1, 2), stage_strides=(1, 2), name="distant"))


def test_frs_compares_cells_where_anchors_differ():
    (method,), _ = build_methods({"frs": {"scores": "cell", "ramp_steps": 0}}, LITTLE, ONE_ANCHOR)
    student, teacher = record(LITTLE, 1), record(ONE_ANCHOR, 2)
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
    terms = method(student, teacher, truth(LITTLE))
    assert terms["frs_class"].item() == pytest.approx(expected, rel=1e-5)
    terms["frs_class"].backward()
    assert all(logits.grad.abs().sum() > 0 for logits in student.class_logits)


@pytest.mark.parametrize("scores", ["anchor", "cell"])
def test_objectness_is_not_compared_with_classes(scores):
    options = WEIGHTS | {"scores": scores}
    for student, teacher in ((LITTLE, RPN), (RPN, BIG), (replace(LITTLE, num_classes=1), RPN)):
        with pytest.raises(
            UserError, match=r"frs_class: the student \w+ has (objectness|3 classes|1 class), the teac"
        ) as failure:
            build_methods({"frs": options}, student, teacher)
        assert "scores=cell" not in str(failure.value)  # it would not help
        (method,), _ = build_methods({"frs": {"feature_weight": 1, "class_weight": 0}}, student, teacher)
        assert method(record(student, 1), record(teacher, 2), truth(LITTLE))["frs_feature"] > 0
    (method,), _ = build_methods({"frs": options}, RPN, RPN)
    assert method(record(RPN, 1), record(RPN, 2), truth(LITTLE))["frs_class"] > 0


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
