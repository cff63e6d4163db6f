"""Every method's conformance to the rules, on records that are made up from two Specs.

The tests follow ``METHODS``: for each entry they find pairs of detectors that the method serves (``pairs.py``), real
ones where the method runs their layers. A new method needs no line here, unless one of the exceptions below applies.
"""

import ast
import inspect
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pairs import (
    FAMILIES,
    MADE_UP_SIZE,
    home,
    pairs_of,
    record,
    runs_layers,
    some_objects,
    tiny_detector,
    tiny_images,
    tiny_teacher,
    truth,
)
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.learner import Learner
from understudy.methods import METHODS, Method
from understudy.methods.base import CHECKS, EVERY_FAMILY
from understudy.methods.loading import build_methods
from understudy.outputs import Outputs

EVERY = pytest.mark.parametrize("name", METHODS)
OF_RECORDS = pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not runs_layers(method)])
LINES_OF_A_METHOD, LETTERS_OF_A_SUMMARY = 110, 116

# Exceptions: method to the reason.
GRADIENT_WHERE_EQUAL: dict[str, str] = {
    "dist2": "the teacher's layers must detect the ground truth, not what they detect already",
    "overhaul": "a zero of the teacher becomes a margin below zero, towards which the same zero is moved",
    "crosskd": "maps are aligned to six digits only, and the distance of scores has a kink at zero",
    "second_stage": "the background weighs more in the cross-entropy, as published",
}
"""Methods whose gradient does not vanish where student and teacher are the same and adapters the identity."""

CHANGED_BY_REPETITION: dict[str, str] = {
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
"""Methods whose value in bfloat16 differs by more than 1 % from that in float32."""

ON_ANY_LEVELS: dict[str, str] = {
    "second_stage": "boxes are compared, not cells",
}
"""Methods for which the levels of student and teacher may differ."""

EMPTY_LEVELS: dict[str, str] = {
    "defeat": "no object is large enough for the coarse level",
    "fgd": "an object covers the coarse level, which has no background then",
}
"""Methods of which one term alone gives the adapter of a level a gradient of zero, for these objects."""


def terms_of(method: Method, inputs) -> dict[str, Tensor]:
    """Run a method; its random numbers are the same every time."""
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
    """Make every adapter return its input, if this is not negative."""
    for module in method.eval().modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight, module.groups)
        elif isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def not_negative(outputs: Outputs) -> Outputs:
    """A record whose maps are not negative, as after a ReLU."""
    maps = {
        name: [tensor.detach().abs().requires_grad_() for tensor in getattr(outputs, name)]
        for name in ("stages", "features")
    }
    return replace(outputs, **maps)


# --- values and gradients ---------------------------------------------------------------------------------------------


@EVERY
def test_terms_are_finite_named_float32_scalars_on_every_pair_that_is_served(name):
    pairs = pairs_of(name)
    assert pairs, f"{name} serves no pair of one family"
    for pair in pairs:
        method = pair.made()
        assert method.terms == pair.terms
        terms = terms_of(method, pair.inputs())
        assert set(terms) >= {f"{name}_{term}" for term in pair.terms}
        for term in terms.values():
            assert term.shape == ()
            assert term.dtype == torch.float32
            assert term.isfinite()
            assert term.requires_grad


@EVERY
def test_the_home_pair_is_one_for_which_every_term_can_be_computed(name):
    assert home(name).terms == METHODS[name].all_terms()


@EVERY
def test_the_students_gradient_vanishes_where_it_equals_the_teacher(name):
    pair = home(name)
    pair = replace(pair, student=pair.teacher)
    method = pair.made()
    make_identity(method)
    same, other = pair.inputs(alike=True), pair.inputs()
    if not runs_layers(pair.method):
        same = replace(same, student=not_negative(same.student), teacher=not_negative(same.teacher))
    for inputs in (same, other) if other.student.features[0].shape == same.student.features[0].shape else (same,):
        sum(terms_of(method, inputs).values()).backward()
    usual = gradients(other.student) or 1.0
    assert (gradients(same.student) < 1e-5 * usual) == (name not in GRADIENT_WHERE_EQUAL)


@EVERY
def test_every_term_reaches_the_student_and_none_the_teacher_even_where_its_record_could_carry_a_gradient(name):
    pair = home(name)
    for term in pair.terms:
        inputs, method = pair.inputs(), shaken(pair.made())
        assert all(tensor.requires_grad for tensor in tensors(inputs.teacher))
        terms_of(method, inputs)[f"{name}_{term}"].backward()
        assert gradients(inputs.student) > 0, term
        for tensor in tensors(inputs.teacher):
            assert tensor.grad is None, f"{term}: detach the teacher (comparable in functional/precision.py)"
        if inputs.layers:
            assert all(parameter.grad is None for parameter in inputs.layers.teacher.parameters()), term


@EVERY
@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_images_without_objects(name, counts):
    pair = home(name)
    inputs, method = pair.inputs(counts), pair.made()
    terms = terms_of(method, inputs)
    for key, term in terms.items():
        assert term.isfinite(), key
        assert term.requires_grad, f"{key} is a constant: sum an empty selection instead of returning a new tensor"
    sum(terms.values()).backward()
    for tensor in (*tensors(inputs.student), *method.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient: in DDP, a process without objects would wait"


@EVERY
def test_every_own_parameter_gets_a_gradient_also_of_one_term_alone(name):
    pair = home(name)
    for terms in {pair.terms, *((term,) for term in pair.terms)}:
        one = replace(pair, terms=terms)
        method = shaken(one.made())
        sum(terms_of(method, one.inputs())[f"{name}_{term}"] for term in terms).backward()
        for key, parameter in method.named_parameters():
            assert parameter.grad is not None, (terms, key)
            assert parameter.grad.abs().sum() > 0 or (len(terms) == 1 and name in EMPTY_LEVELS), (terms, key)


def same_after(name: str, images: list[int]) -> bool:
    pair = home(name)
    method, inputs = pair.made(), pair.inputs()
    before, after = terms_of(method, inputs), terms_of(method, inputs.of_images(images))
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
    exact = terms_of(method, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = terms_of(method, inputs.rounded())
    for key, term in rough.items():
        assert term.dtype == torch.float32, f"{key}: compute in float32 (functional/precision.py)"
        assert term.isfinite(), key
    close = all(rough[term].item() == pytest.approx(exact[term].item(), rel=0.01, abs=1e-6) for term in exact)
    assert close == (name not in COARSE_IN_BFLOAT16)


@EVERY
def test_state_dict_round_trip(name):
    pair = home(name)
    method, other = shaken(pair.made()), pair.made()
    other.load_state_dict(method.state_dict())
    inputs = pair.inputs()
    before, after = terms_of(method.eval(), inputs), terms_of(other.eval(), inputs)
    assert after == before


@OF_RECORDS
def test_a_record_without_image_sizes_is_one_without_padding(name):
    pair = home(name)
    inputs = pair.inputs()
    bare, whole = (
        replace(
            inputs,
            student=replace(inputs.student, image_sizes=sizes),
            teacher=replace(inputs.teacher, image_sizes=sizes),
        )
        for sizes in (None, (MADE_UP_SIZE, MADE_UP_SIZE))
    )
    assert terms_of(pair.made(), bare) == terms_of(pair.made(), whole)


# --- pairs of detectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ON_ANY_LEVELS])
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
WHATEVER_THE_HEADS = {"features", "stages", "objects", "student_anchors", "teacher_scores"}
"""Names of ``reads`` for which the heads of the two detectors may differ."""


@EVERY
@pytest.mark.parametrize("what", DIFFERENT)
def test_a_pair_that_differs_is_served_or_refused_with_both_named(name, what):
    student, teacher = home(name).student, replace(home(name).teacher, name="other", **DIFFERENT[what])
    method = METHODS[name]
    reasons = method.obstacles(student, teacher)
    assert set(reasons) <= {term for term, reads in method.reads.items() if not set(reads) <= WHATEVER_THE_HEADS}
    for reason in reasons.values():
        assert student.name in reason
        assert "other" in reason
    weights = {f"{term}_weight": 1.0 for term in method.all_terms()}
    if reasons:
        with pytest.raises(UserError, match="available for the student"):
            build_methods({name: weights}, student, teacher)
    elif not runs_layers(method):
        (built,), _ = build_methods({name: weights}, student, teacher)
        terms = built(record(student, 1), record(teacher, 2), truth(student))
        for key, term in terms.items():
            assert term.isfinite(), key


@pytest.mark.parametrize("name", [name for name in METHODS if runs_layers(METHODS[name])])
def test_methods_that_run_layers_refuse_the_teachers_recorded_outputs(name):
    family, width = home(name).student.family, home(name).student.channels[0]
    student, teacher = tiny_detector(family, width, seed=0), tiny_teacher(family)
    learner = Learner(student, [METHODS[name](student.spec, teacher.spec)])
    images, targets = tiny_images(), some_objects((2, 1))
    with torch.no_grad():
        outputs = teacher(images)
    with pytest.raises(UserError, match=rf"{name} reads the layers .* recorded outputs are not enough: pass the teach"):
        learner(images, targets, outputs)
    learner(images, targets, outputs, teacher=teacher)


ONE_CELL = [
    name
    for name, method in METHODS.items()
    if {read for term in method.terms for read in method.reads[term]} <= {"features", "teacher_scores", "class_logits"}
]
"""Methods that read features and scores alone."""


@pytest.mark.parametrize("name", ONE_CELL)
def test_levels_of_one_cell_and_one_image(name):
    pair = home(name)
    sizes = 8, 4, 2, 1, 1
    spec = replace(pair.teacher, channels=(8,) * 5, strides=(8, 16, 32, 64, 128))
    own, theirs = (
        replace(
            outputs,
            features=[torch.randn(1, 8, size, size).requires_grad_() for size in sizes],
            class_logits=[torch.randn(1, size, size, spec.num_anchors, 3) for size in sizes],
        )
        for outputs in (record(pair.student, 1), record(pair.student, 2))
    )
    loss = sum(METHODS[name](spec, spec)(own, theirs, None).values())
    loss.backward()
    assert loss.isfinite()
    assert all(features.grad.isfinite().all() for features in own.features if features.grad is not None)


# --- class attributes, documentation and reads ------------------------------------------------------------------------


@EVERY
def test_class_attributes_are_complete(name):
    method = METHODS[name]
    assert method.name == name
    assert method.source
    assert method.checked.startswith(tuple(CHECKS)), (
        f"state in `checked` what the arithmetic was compared with: {CHECKS}"
    )
    for family, weights in method.weights.items():
        assert family in (*FAMILIES, EVERY_FAMILY)
        assert set(weights) in (set(method.terms), set()), family  # optional ones have no default weight
        assert all(weight >= 0 and math.isfinite(weight) for weight in weights.values()), family


@EVERY
def test_a_method_is_one_short_file(name):
    method = METHODS[name]
    assert method.__module__.rstrip("_") == f"understudy.methods.{name}"  # nonlocal is a keyword
    text = Path(inspect.getfile(method)).read_text(encoding="utf-8")
    (node,) = [each for each in ast.parse(text).body if getattr(each, "name", "") == method.__name__]
    docstring = node.body[0]
    assert len(text.splitlines()) - (docstring.end_lineno - docstring.lineno + 1) <= LINES_OF_A_METHOD


@EVERY
def test_the_docstring_has_a_summary_formulas_every_term_and_the_evidence(name):
    document = inspect.getdoc(METHODS[name])
    summary, _, rest = document.partition("\n")
    assert 30 < len(summary) < LETTERS_OF_A_SUMMARY
    assert summary.endswith(".")
    body = rest.partition("\n\nEvidence:\n")[0]
    assert "\n.. math::\n" in body, f"the docstring of {name} has no formula"
    for term in METHODS[name].all_terms():
        described = rf"L_\text{{{term}}}" in body or f"``{term}``" in body  # one formula may hold for several terms
        assert described, f"the docstring of {name} does not describe the term {term}"
    assert "\n\nEvidence:\n    " in rest
    for option, field in METHODS[name].Options.model_fields.items():
        assert field.description, f"the option {option} of {name} has no docstring"


DENSE = {"class_logits", "box_raw", "anchors"}
FIELDS = {
    "features": ({"features"}, {"features"}, set()),
    "stages": ({"stages"}, {"stages"}, set()),
    "class_logits": ({"class_logits"}, {"class_logits"}, set()),
    "cell_scores": ({"class_logits"}, {"class_logits"}, set()),
    "teacher_scores": (set(), {"class_logits"}, set()),
    "teacher_centerness": (set(), {"extra"}, set()),
    "boxes": ({"box_raw", "anchors"}, {"box_raw", "anchors"}, set()),
    "box_raw": ({"box_raw"}, {"box_raw"}, set()),
    "predictions": (DENSE, DENSE, set()),
    "student_anchors": ({"anchors"}, set(), set()),
    "objects": (set(), set(), {"targets", "labelled", "left_out"}),
    "assignment": (set(), set(), {"targets", "labelled", "left_out", "gt_index"}),
}
"""Fields of the student's record, the teacher's and the ground truth, by the names of ``reads``."""


class Watched:
    """A record that notes which of its fields are read."""

    def __init__(self, watched):
        self._watched, self._read = watched, set()

    def __getattr__(self, field: str):
        self._read.add(field)
        return getattr(self._watched, field)


@OF_RECORDS
def test_a_method_reads_what_it_states_and_no_more(name):
    pair = home(name)
    inputs, method = pair.inputs(), pair.made()
    watched = [Watched(each) for each in (inputs.student, inputs.teacher, inputs.truth)]
    method(*watched)
    stated = {read for reads in method.reads.values() for read in reads}
    for place, each in enumerate(watched):
        fields = set().union(*(FIELDS[read][place] for read in stated))
        assert each._read - {"image_sizes", "level_sizes"} <= fields
    for read in stated:
        assert any(fields & each._read for fields, each in zip(FIELDS[read], watched, strict=True)), read
