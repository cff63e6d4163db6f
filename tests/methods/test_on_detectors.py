"""Every method on tiny real detectors, through the Learner, for a few real steps.

For each family all methods that serve it train one student together, its own loss included, in float32 and in bfloat16
autocast; across families one pair for each student and each teacher. Alone, on the family of its home pair, each method
overfits one batch for `STEPS` steps, in which each of its terms must fall.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from pairs import FAMILIES, OBJECTS, home, tiny_detector, tiny_images, tiny_teacher

from understudy.detectors import Detector
from understudy.learner import Learner
from understudy.methods import METHODS, Method
from understudy.outputs import Outputs
from understudy.pairing import Pairing, pair

STEPS = 15
LOWEST = 0.95
"""Share of its value in the first three steps to which a term must fall in the last three."""
OVERFITTED: dict[str, str] = {"crosskd": "gfl"}  # a RetinaNet's boxes hardly fall in so few steps
"""Methods that overfit a batch on another family than that of their home pair."""
WIDTHS = (16, 24)
"""Channels of the student's neck: fewer than the teacher's where the method can, else as many."""


@cache
def first_student(family: str, width: int) -> Detector:
    """A student before its first step, not to be changed."""
    return tiny_detector(family, width, seed=5, opinionated=False)


@cache
def teacher_outputs(family: str) -> Outputs:
    """The teacher's record of the batch, computed once: neither changes."""
    with torch.no_grad():
        return tiny_teacher(family)(tiny_images())


@cache
def pairing_of(student: str, width: int, teacher: str) -> Pairing:
    """The common ground of a student and a teacher."""
    return pair(first_student(student, width).spec, tiny_teacher(teacher).spec)


@dataclass(frozen=True)
class Case:
    """A method for a pair of families.

    Attributes:
        name: of the method.
        student: its family.
        teacher: likewise.
        width: channels of the student's neck.
        terms: those it can compute.
    """

    name: str
    student: str
    teacher: str
    width: int
    terms: tuple[str, ...]

    def method(self) -> Method:
        """The method with its first weights."""
        common = pairing_of(self.student, self.width, self.teacher)
        torch.manual_seed(0)
        options = {"strategies": ("N2N", "N2B")} if self.name == "dist2" else {}  # all four: in test_dist2.py
        return METHODS[self.name](common.student, common.teacher, terms=self.terms, **options)


def case(name: str, student: str, teacher: str) -> Case | None:
    """A method with a student as narrow as it can; None if it serves no term of the pair."""
    for width in WIDTHS:
        common = pairing_of(student, width, teacher)
        obstacles = METHODS[name].obstacles(common.student, common.teacher)
        if terms := tuple(term for term in METHODS[name].all_terms() if term not in obstacles):
            return Case(name, student, teacher, width, terms)
    return None


def train(together: Sequence[Case], steps: int, *, bfloat16: bool = False, alone: bool = False) -> list[dict]:
    """Take some steps on one batch with methods of one pair; their terms in each step, by name.

    Args:
        together: the methods.
        steps: how many.
        bfloat16: in autocast.
        alone: without the student's own loss, which is not even computed.
    """
    student, teacher, width = together[0].student, together[0].teacher, together[0].width
    network, methods = copy.deepcopy(first_student(student, width)), [each.method() for each in together]
    if alone:
        network.loss = lambda *_: {}
        if not any("stages" in reads for reads in methods[0].reads.values()):
            network.network.backbone.body.requires_grad_(False)  # the neck is enough, and a third faster
    learner = Learner(network, methods, pairing_of(student, width, teacher))
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([each for each in learner.parameters() if each.requires_grad], 1e-2, fused=True)
    history: list[dict] = []
    weights: dict[str, float] = {}
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            losses = learner(tiny_images(), OBJECTS, teacher_outputs(teacher), teacher=tiny_teacher(teacher))
        if not history:  # all terms count alike, whatever their size
            weights = {name: 1 / max(losses[name].item(), 1e-6) for name in learner.distillation_terms}
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({name: losses[name].detach() for name in learner.distillation_terms})
    return history


ACROSS = list(zip(FAMILIES, (*FAMILIES[1:], FAMILIES[0]), strict=True))
"""Each family as a student and as a teacher of another."""

TOGETHER = [
    *((family, family, bfloat16) for family in FAMILIES for bfloat16 in (False, True)),
    *((student, teacher, False) for student, teacher in ACROSS),
]


@pytest.mark.parametrize(("student", "teacher", "bfloat16"), TOGETHER)
def test_all_methods_that_serve_a_pair_train_its_student_together(student, teacher, bfloat16):
    found = [each for name in METHODS if (each := case(name, student, teacher))]
    for _, group in itertools.groupby(sorted(found, key=lambda each: each.width), key=lambda each: each.width):
        together = list(group)
        terms = {f"{each.name}_{term}" for each in together for term in each.terms}
        for step in train(together, 2, bfloat16=bfloat16):
            assert set(step) == terms
            wrong = {name: term for name, term in step.items() if term.dtype != torch.float32 or not term.isfinite()}
            assert not wrong


@pytest.mark.parametrize("name", METHODS)
def test_the_terms_fall_where_a_batch_is_overfitted(name):
    family = OVERFITTED.get(name, home(name).student.family)
    history = train([case(name, family, family)], STEPS, alone=True)
    for term in history[0]:
        first, last = (sum(step[term].item() for step in part) / 3 for part in (history[:3], history[-3:]))
        assert first > 0, term
        assert last < LOWEST * first, (term, first, last)
