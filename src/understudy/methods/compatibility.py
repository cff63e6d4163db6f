"""Which terms of a method can be computed for a pair of detectors: it follows from what they read.

Every function returns reasons in words, each naming both sides; none where there is no obstacle.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from understudy.boxes import box_code
from understudy.outputs import Spec

SAME_ANCHOR = 0.05
"""Share of its longer side, or one pixel, by which an edge of an anchor may differ: torchvision rounds its anchors."""

FIRST_STAGE_STRIDE = 64
"""Stride from which on the levels of a two-stage detector serve its first stage alone; FGD, MGD and PKD omit them."""

Reasons = list[str]


def differences(student: Spec, teacher: Spec, fact: Callable[[Spec], str]) -> Reasons:
    """Compare a fact of two detectors, written in words."""
    own, theirs = fact(student), fact(teacher)
    return [] if own == theirs else [f"the student {student.name} has {own}, the teacher {teacher.name} has {theirs}"]


def level_differences(student: Spec, teacher: Spec) -> Reasons:
    """Features are compared cell by cell: both need the same levels."""
    return differences(student, teacher, lambda spec: f"levels at strides {spec.strides}")


def stage_differences(student: Spec, teacher: Spec) -> Reasons:
    """Backbone stages are compared cell by cell: both need the same ones."""
    faults = differences(student, teacher, lambda spec: f"backbone stages at strides {spec.stage_strides}")
    if not (faults or student.stage_strides):
        return [f"the student {student.name} and the teacher {teacher.name} have no backbone stages in common"]
    return faults


def not_dense(role: str, spec: Spec) -> Reasons:
    """A term reads dense predictions of one detector."""
    return [] if spec.dense else [f"the {role} {spec.name} has no dense predictions: it has {spec.predictions}"]


def neither_dense(student: Spec, teacher: Spec) -> Reasons:
    """A term reads dense predictions of both."""
    return not_dense("student", student) + not_dense("teacher", teacher)


def score_differences(student: Spec, teacher: Spec) -> Reasons:
    """Class scores are compared one by one: both must score the same classes."""
    return differences(student, teacher, lambda spec: spec.scored)


def anchors_per_cell(spec: Spec) -> str:
    """Return the number of anchors per cell, in words."""
    return f"{spec.num_anchors} anchor{'' if spec.num_anchors == 1 else 's'} per cell"


def anchor_differences(student: Spec, teacher: Spec, *, raw: bool = False) -> Reasons:
    """Predictions are compared anchor by anchor: both need the same number of them per cell, and the same ones.

    Anchors with a size must be the same boxes, up to rounding. Where scores or decoded boxes are compared, points may
    lie anywhere in a cell.

    Args:
        student: the student's Spec.
        teacher: the teacher's Spec.
        raw: raw box outputs are compared, so points must lie at the same places, too.
    """
    numbers = differences(student, teacher, anchors_per_cell)
    boxes = student.box_code == teacher.box_code and box_code(student).anchored
    if numbers or not (raw or boxes) or student.strides != teacher.strides:
        return numbers
    for stride, *anchors in zip(student.strides, student.first_anchors, teacher.first_anchors, strict=False):
        for own, theirs in zip(*anchors, strict=True):
            if not boxes:
                own, theirs = (_point(anchor, stride) for anchor in (own, theirs))
            size = max(own[2] - own[0], own[3] - own[1])
            if max(abs(edge - other) for edge, other in zip(own, theirs, strict=True)) > max(SAME_ANCHOR * size, 1.0):
                described = _described if boxes else _middle
                return [
                    f"in the first cell of stride {stride} the student {student.name} has {described(own)}, the "
                    f"teacher {teacher.name} {described(theirs)}"
                ]
    return []


def prediction_differences(student: Spec, teacher: Spec) -> Reasons:
    """Predictions are compared anchor by anchor: same levels, same classes, same anchors."""
    return neither_dense(student, teacher) or (
        level_differences(student, teacher) + score_differences(student, teacher) + anchor_differences(student, teacher)
    )


def raw_box_differences(student: Spec, teacher: Spec) -> Reasons:
    """Raw box outputs are compared one by one: same levels, same anchors at the same places, same box code."""
    return neither_dense(student, teacher) or (
        level_differences(student, teacher)
        + anchor_differences(student, teacher, raw=True)
        + differences(student, teacher, lambda spec: f"boxes as {spec.box_size} {spec.box_code}")
    )


def levels_of_objects(student: Spec, teacher: Spec) -> int:
    """Count the common levels, from the finest; for a two-stage detector those that its second stage reads, too."""
    two_stage = student.two_stage or teacher.two_stage
    return sum(stride < FIRST_STAGE_STRIDE or not two_stage for stride in student.strides)


def missing_levels(student: Spec, teacher: Spec) -> Reasons:
    """A term reads levels of objects, and there are none."""
    if levels_of_objects(student, teacher):
        return []
    return [
        f"the student {student.name} and the teacher {teacher.name} have only levels at strides {student.strides} in "
        f"common, and the second stage of a two-stage detector reads none from stride {FIRST_STAGE_STRIDE} on"
    ]


@dataclass(frozen=True, slots=True)
class Readable:
    """Something that a term can read.

    Attributes:
        words: what it is, for listings.
        obstacles: why a pair of detectors does not have it in a comparable form.
    """

    words: str
    obstacles: Callable[[Spec, Spec], Reasons] = lambda student, teacher: []


def _no_centerness(student: Spec, teacher: Spec) -> Reasons:
    return [] if teacher.centerness else [f"the teacher {teacher.name} has no centre-ness"]


READS: dict[str, Readable] = {
    "features": Readable("neck features", level_differences),
    "stages": Readable("backbone stages", stage_differences),
    "class_logits": Readable("class scores, anchor by anchor", prediction_differences),
    "cell_scores": Readable(
        "class scores, cell by cell",
        lambda student, teacher: (
            neither_dense(student, teacher) or level_differences(student, teacher) + score_differences(student, teacher)
        ),
    ),
    "teacher_scores": Readable("the teacher's class scores", lambda student, teacher: not_dense("teacher", teacher)),
    "teacher_centerness": Readable("the teacher's centre-ness", _no_centerness),
    "boxes": Readable("boxes, anchor by anchor", prediction_differences),
    "box_raw": Readable("raw box outputs, anchor by anchor", raw_box_differences),
    "predictions": Readable("the best boxes of both", neither_dense),
    "student_anchors": Readable("the student's anchors", lambda student, teacher: not_dense("student", student)),
    "objects": Readable("ground truth"),
    "assignment": Readable(
        "ground truth and the student's assignment", lambda student, teacher: not_dense("student", student)
    ),
    "layers": Readable("the layers of both detectors"),
}
"""Everything that a term can read, by its name in :attr:`.Method.reads`."""

OF_TRUTH = ("objects", "assignment")
"""Names in :data:`READS` of the ground truth: a batch may leave a term that reads it nothing to compare."""


def unreadable(reads: Sequence[str], student: Spec, teacher: Spec) -> Reasons:
    """Return why a pair of detectors does not have what a term reads."""
    return [reason for name in reads for reason in READS[name].obstacles(student, teacher)]


def _point(anchor: Sequence[float], stride: int) -> tuple[float, ...]:
    """Return a cell around the centre of an anchor, which is all that counts of a point."""
    middles = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return tuple(middle + half for half in (-stride / 2, stride / 2) for middle in middles)


def _described(anchor: Sequence[float]) -> str:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return f"an anchor of {width:g} x {height:g} pixels around {_middle(anchor)}"


def _middle(anchor: Sequence[float]) -> str:
    return f"the point ({(anchor[0] + anchor[2]) / 2:g}, {(anchor[1] + anchor[3]) / 2:g})"
