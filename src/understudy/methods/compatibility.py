"""Which terms of a method can be computed for a pair of detectors, derived from the terms' inputs (``reads``).

Most functions return reasons in words, which name both sides, or the one that lacks something; none if there is no
obstacle.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from understudy.boxes import box_code
from understudy.outputs import Spec

SAME_ANCHOR = 0.05
"""Share of its longer side, or one pixel, by which an edge of an anchor may differ: torchvision rounds its anchors."""

FIRST_STAGE_STRIDE = 64
"""Levels of a two-stage detector with at least this stride are for its first stage only; FGD, MGD and PKD omit them."""

Reasons = list[str]


def differences(student: Spec, teacher: Spec, fact: Callable[[Spec], str]) -> Reasons:
    """Compare a fact of two detectors, written in words."""
    own, theirs = fact(student), fact(teacher)
    return [] if own == theirs else [f"the student {student.name} has {own}, the teacher {teacher.name} has {theirs}"]


def level_differences(student: Spec, teacher: Spec) -> Reasons:
    """Require the same levels, since features are compared cell by cell."""
    return differences(student, teacher, lambda spec: f"levels at strides {spec.strides}")


def stage_differences(student: Spec, teacher: Spec) -> Reasons:
    """Require the same backbone stages, since they are compared cell by cell."""
    faults = differences(student, teacher, lambda spec: f"backbone stages at strides {spec.stage_strides}")
    if not (faults or student.stage_strides):
        return [f"the student {student.name} and the teacher {teacher.name} have no backbone stages in common"]
    return faults


def not_dense(role: str, spec: Spec) -> Reasons:
    """Require dense predictions of one detector."""
    return [] if spec.dense else [f"the {role} {spec.name} has no dense predictions: it has {spec.predictions}"]


def neither_dense(student: Spec, teacher: Spec) -> Reasons:
    """Require dense predictions of both detectors."""
    return not_dense("student", student) + not_dense("teacher", teacher)


def score_differences(student: Spec, teacher: Spec) -> Reasons:
    """Require scores of the same classes, since they are compared one by one."""
    return differences(student, teacher, lambda spec: spec.scored)


def anchors_per_cell(spec: Spec) -> str:
    """Return the number of anchors per cell, in words."""
    return f"{spec.num_anchors} anchor{'' if spec.num_anchors == 1 else 's'} per cell"


def anchor_differences(student: Spec, teacher: Spec, *, raw: bool = False) -> Reasons:
    """Require the same anchors in each cell, since predictions are compared anchor by anchor.

    Anchors with a size must be the same boxes, up to rounding. If scores or decoded boxes are compared, points may be
    anywhere in a cell.

    Args:
        student: the student's Spec.
        teacher: the teacher's Spec.
        raw: whether raw box outputs are compared, so that points must agree, too.
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
    """Require the same levels, classes and anchors, since predictions are compared anchor by anchor."""
    return neither_dense(student, teacher) or (
        level_differences(student, teacher) + score_differences(student, teacher) + anchor_differences(student, teacher)
    )


def raw_box_differences(student: Spec, teacher: Spec) -> Reasons:
    """Require the same levels, anchors, points and box code, since raw box outputs are compared one by one."""
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
    """Require a level that the second stage of a two-stage detector reads, too; of pairs with the same levels."""
    if level_differences(student, teacher) or levels_of_objects(student, teacher):
        return []
    return [
        f"the student {student.name} and the teacher {teacher.name} have only levels at strides {student.strides} in "
        f"common, and the second stage of a two-stage detector reads only levels below stride {FIRST_STAGE_STRIDE}"
    ]


@dataclass(frozen=True, slots=True)
class Readable:
    """An input that a term can read.

    Attributes:
        words: its description in listings.
        parts: the parts of the teacher's record that it consists of (:class:`.Needs`); None: all.
        obstacles: function that returns why it cannot be compared for a pair of detectors.
    """

    words: str
    parts: tuple[str, ...] | None
    obstacles: Callable[[Spec, Spec], Reasons] = lambda student, teacher: []


def _no_centerness(student: Spec, teacher: Spec) -> Reasons:
    return [] if teacher.centerness else [f"the teacher {teacher.name} has no centre-ness"]


def _no_second_stage(student: Spec, teacher: Spec) -> Reasons:
    return [] if teacher.two_stage else [f"the teacher {teacher.name} has no second stage"]


READS: dict[str, Readable] = {
    "features": Readable("neck features", ("features",), level_differences),
    "stages": Readable("backbone stages", ("stages",), stage_differences),
    "class_logits": Readable("class scores per anchor", ("class_logits",), prediction_differences),
    "cell_scores": Readable(
        "class scores per cell",
        ("class_logits",),
        lambda student, teacher: (
            neither_dense(student, teacher) or level_differences(student, teacher) + score_differences(student, teacher)
        ),
    ),
    "teacher_scores": Readable(
        "the teacher's class scores", ("class_logits",), lambda student, teacher: not_dense("teacher", teacher)
    ),
    "teacher_centerness": Readable("the teacher's centre-ness", ("extra",), _no_centerness),
    "boxes": Readable("boxes per anchor", ("box_raw",), prediction_differences),
    "box_raw": Readable("raw box outputs per anchor", ("box_raw",), raw_box_differences),
    "predictions": Readable("the best boxes of both detectors", ("class_logits", "box_raw"), neither_dense),
    "student_anchors": Readable("the student's anchors", (), lambda student, teacher: not_dense("student", student)),
    "objects": Readable("ground truth", ()),
    "assignment": Readable(
        "ground truth and the student's assignment", (), lambda student, teacher: not_dense("student", student)
    ),
    "second_stage": Readable("the second stages of both detectors, or the teacher's", ("features",), _no_second_stage),
    "layers": Readable("the layers of both detectors", None),
}
"""Every input that a term can read, by its name in :attr:`.Method.reads`."""

OF_DETECTORS = ("second_stage", "layers")
"""Names in :data:`READS` for which recorded outputs are not enough: the detectors themselves run."""

OF_TRUTH = ("objects", "assignment")
"""Names in :data:`READS` of the ground truth. In a batch without suitable objects, terms that read it may be zero."""


def parts_read(reads: Iterable[str]) -> frozenset[str] | None:
    """Return the parts of the teacher's record that inputs consist of; None: all.

    Examples:
        >>> sorted(parts_read(["features", "teacher_scores", "objects"]))
        ['class_logits', 'features']
    """
    parts = [READS[name].parts for name in reads]
    return None if None in parts else frozenset(part for each in parts for part in each or ())


def unreadable(reads: Sequence[str], student: Spec, teacher: Spec) -> Reasons:
    """Return why a term with these inputs cannot be computed for a pair of detectors."""
    return [reason for name in reads for reason in READS[name].obstacles(student, teacher)]


def _point(anchor: Sequence[float], stride: int) -> tuple[float, ...]:
    """Return a cell around the centre of an anchor, since only the centre of a point counts."""
    middles = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return tuple(middle + half for half in (-stride / 2, stride / 2) for middle in middles)


def _described(anchor: Sequence[float]) -> str:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return f"an anchor of {width:g} x {height:g} pixels around {_middle(anchor)}"


def _middle(anchor: Sequence[float]) -> str:
    return f"the point ({(anchor[0] + anchor[2]) / 2:g}, {(anchor[1] + anchor[3]) / 2:g})"
