"""What two detectors have in common: the levels and the classes by which one can teach the other."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.outputs import Outputs, Spec, Target, Truth

SHOWN_NAMES = 12
"""Names that a line of a note or a message lists; more are counted."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of one detector's record.

    Attributes:
        levels: places of the neck's levels, fine to coarse.
        stages: places of the backbone's stages.
        labels: labels of the classes, in the order of the student's; None: the class logits stay as they are.
    """

    levels: tuple[int, ...]
    stages: tuple[int, ...]
    labels: tuple[int, ...] | None

    def spec(self, spec: Spec) -> Spec:
        """What is known of a detector of which only this part is looked at."""
        return replace(
            spec,
            channels=_chosen(spec.channels, self.levels),
            strides=_chosen(spec.strides, self.levels),
            num_classes=spec.num_classes if self.labels is None else len(self.labels),
            stage_channels=_chosen(spec.stage_channels, self.stages),
            stage_strides=_chosen(spec.stage_strides, self.stages),
            first_anchors=_chosen(spec.first_anchors, self.levels) if spec.first_anchors else (),
        )

    def record(self, outputs: Outputs) -> Outputs:
        """This part of a record; nothing is copied where whole levels, or classes that follow each other, are kept."""
        anchors = _anchors_per_level(outputs)
        return replace(
            outputs,
            stages=list(_chosen(outputs.stages, self.stages)) if outputs.stages else [],
            features=list(_chosen(outputs.features, self.levels)),
            class_logits=[_of_classes(logits, self.labels) for logits in _chosen(outputs.class_logits, self.levels)],
            box_raw=list(_chosen(outputs.box_raw, self.levels)),
            anchors=list(_chosen(outputs.anchors, self.levels)),
            extra={
                name: _of_levels(value, anchors, self.levels) if value.shape[1:2] == (sum(anchors),) else value
                for name, value in outputs.extra.items()
            },
            tower_maps={},
        )


@dataclass(frozen=True, slots=True)
class Pairing:
    """The common ground of a student and its teacher; :func:`pair` finds it.

    Methods are built from the two reduced Specs and read the two reduced records: the levels of equal stride, and the
    classes of the same name in the student's order. Detectors with objectness (an RPN) have no class scores to map.

    Attributes:
        student: what is known of the student, reduced.
        teacher: what is known of the teacher, reduced.
        student_part: what is kept of the student's record.
        teacher_part: what is kept of the teacher's.
        label_of: for each of the student's classes its number among the common ones, or -1.
        teacher_labels: for each common class the label that the teacher itself has for it.
        classes: names of the common classes, as the student calls them; numbers where no names were given.
        unknown: classes of the student that the teacher lacks: their objects take no part in the distillation.
        unused: classes of the teacher that the student lacks.
        dropped_strides: strides of the levels that only one of the two has.
    """

    student: Spec
    teacher: Spec
    student_part: Part
    teacher_part: Part
    label_of: tuple[int, ...]
    teacher_labels: tuple[int, ...]
    classes: tuple[str, ...]
    unknown: tuple[str, ...]
    unused: tuple[str, ...]
    dropped_strides: tuple[int, ...]

    def student_record(self, outputs: Outputs) -> Outputs:
        """The student's record, reduced to what is compared."""
        return self.student_part.record(outputs)

    def teacher_record(self, outputs: Outputs) -> Outputs:
        """The teacher's record, reduced to what is compared."""
        return self.teacher_part.record(outputs)

    def truth(self, truth: Truth, outputs: Outputs) -> Truth:
        """The ground truth of what is compared.

        Objects of classes that the teacher does not know are left out, and their anchors are ignored (-2); the others,
        and their labels, are numbered anew.

        Args:
            truth: of the whole record.
            outputs: the student's whole record; its level sizes say which anchors are kept.
        """
        gt_index = _of_levels(truth.gt_index, _anchors_per_level(outputs), self.student_part.levels)
        if not self.unknown:
            return replace(truth, gt_index=gt_index)
        images = [
            _of_known_classes(target, row, self.label_of) for target, row in zip(truth.targets, gt_index, strict=True)
        ]
        targets, rows, left_out = zip(*images, strict=True)
        return Truth(targets, torch.stack(rows), left_out)

    @property
    def note(self) -> str:
        """One line on what is left out; empty where the two share everything."""
        parts: list[str] = []
        if self.unknown:
            parts.append(f"classes the teacher does not know, learned from labels alone: {listed(self.unknown)}")
        if self.unused:
            parts.append(f"classes of the teacher that are not used: {listed(self.unused)}")
        if self.dropped_strides:
            parts.append(
                f"levels are compared at strides {_numbers(self.student.strides)}, "
                f"not at {_numbers(self.dropped_strides)}, which only one of the two has"
            )
        return "; ".join(parts)

    def facts(self) -> dict[str, Any]:
        """The same as plain values, with every name."""
        return {
            "strides": list(self.student.strides),
            "strides_of_one_only": list(self.dropped_strides),
            "classes": list(self.classes),
            "classes_unknown_to_the_teacher": list(self.unknown),
            "classes_of_the_teacher_not_used": list(self.unused),
        }


def pair(
    student: Spec,
    teacher: Spec,
    student_classes: Sequence[str] | None = None,
    teacher_classes: Sequence[str] | None = None,
) -> Pairing:
    """Find by what a teacher can teach a student: levels of equal stride and classes of the same name.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        student_classes: names of the student's classes, by label. Order, case and surrounding blanks do not matter.
        teacher_classes: names of the teacher's. Without names both must have the same number of classes, and are taken
            to have the same ones.

    Raises:
        UserError: these are no Specs, have no level or no class in common, or the names are not theirs.
    """
    if wrong := [type(spec).__name__ for spec in (student, teacher) if not isinstance(spec, Spec)]:
        raise UserError(f"pair() takes two Specs, student.spec and teacher.spec; got {' and '.join(wrong)}.")
    faults: list[str] = []
    if not set(student.strides) & set(teacher.strides):
        faults.append(f"no level of the same stride: {_both('strides', student, teacher)}")
    if student_classes is None and teacher_classes is None:
        if student.num_classes != teacher.num_classes and not (student.objectness or teacher.objectness):
            counts = _both("num_classes", student, teacher)
            faults.append(f"other numbers of classes: {counts}. Give the names of both, by which they are matched")
        student_classes = teacher_classes = tuple(map(str, range(max(student.num_classes, teacher.num_classes))))
    elif student_classes is None or teacher_classes is None:
        raise UserError("pair() was given the class names of one of the two: give both, or neither.")
    else:
        faults += _wrong_names(student, student_classes) + _wrong_names(teacher, teacher_classes)
    places = match_names(student_classes, teacher_classes)
    if all(place is None for place in places):
        faults += no_common_name("student", student_classes, "teacher", teacher_classes)
    if faults:
        raise UserError.listing(
            f"The teacher {teacher.name} and the student {student.name} cannot be compared:", faults
        )

    known = [label for label, place in enumerate(places) if place is not None]
    used = [place for place in places if place is not None]
    student_part = _part(student, teacher, None if len(known) == len(places) else known)
    teacher_part = _part(teacher, student, None if used == list(range(len(teacher_classes))) else used)
    return Pairing(
        student=student_part.spec(student),
        teacher=teacher_part.spec(teacher),
        student_part=student_part,
        teacher_part=teacher_part,
        label_of=tuple(known.index(label) if label in known else -1 for label in range(len(places))),
        teacher_labels=tuple(used),
        classes=tuple(student_classes[label] for label in known),
        unknown=tuple(name for name, place in zip(student_classes, places, strict=True) if place is None),
        unused=tuple(name for place, name in enumerate(teacher_classes) if place not in used),
        dropped_strides=tuple(sorted(set(student.strides) ^ set(teacher.strides))),
    )


def match_names(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """The place of each name among others, None where it is not; case and surrounding blanks do not matter."""
    exact = {name: place for place, name in enumerate(others)}
    alike = {_folded(name): place for place, name in enumerate(others) if name not in names}
    return [exact.get(name, alike.get(_folded(name))) for name in names]


def no_common_name(whose: str, names: Sequence[str], whose_others: str, others: Sequence[str]) -> list[str]:
    """Lines of a message: both label spaces, of which no name is in both, and names that are nearly the same."""
    folded = {_folded(other): other for other in others}
    close = [
        f"{name!r} of the {whose} is close to {folded[match]!r} of the {whose_others}: the same? Then rename one"
        for name in names
        for match in difflib.get_close_matches(_folded(name), folded, n=1)
    ]
    return [
        f"no class of the same name: the {whose} has {listed(names)}; the {whose_others} has {listed(others)}",
        *close[:SHOWN_NAMES],
    ]


def listed(names: Sequence[str]) -> str:
    """Names in one line; of many the first, and the number of the others."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _part(own: Spec, other: Spec, labels: Sequence[int] | None) -> Part:
    return Part(
        levels=_places_in(own.strides, other.strides),
        stages=_places_in(own.stage_strides, other.stage_strides),
        labels=None if labels is None or own.objectness else tuple(labels),
    )


def _places_in(strides: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for place, stride in enumerate(strides) if stride in others)


def _wrong_names(spec: Spec, names: Sequence[str]) -> list[str]:
    if spec.objectness or len(names) == spec.num_classes:
        return []
    return [f"{spec.name} has {spec.num_classes} classes, and {len(names)} names were given for them: {listed(names)}"]


def _both(what: str, student: Spec, teacher: Spec) -> str:
    return (
        f"the student {student.name} has {getattr(student, what)}, the teacher {teacher.name} {getattr(teacher, what)}"
    )


def _folded(name: str) -> str:
    return name.strip().casefold()


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _chosen(values: Sequence, places: Sequence[int]) -> tuple:
    return tuple(values[place] for place in places)


def _of_classes(logits: Tensor, labels: tuple[int, ...] | None) -> Tensor:
    if labels is None:
        return logits
    first, last = labels[0], labels[-1] + 1
    if labels == tuple(range(first, last)):
        return logits[..., first:last]
    return logits.index_select(-1, torch.tensor(labels, device=logits.device))


def _anchors_per_level(outputs: Outputs) -> list[int]:
    return [math.prod(logits.shape[1:4]) for logits in outputs.class_logits]


def _of_levels(flat: Tensor, anchors: Sequence[int], levels: Sequence[int]) -> Tensor:
    """The anchors of some levels, from (N, R) or (N, R, X)."""
    if len(levels) == len(anchors):
        return flat
    parts = flat.split(list(anchors), dim=1)
    return torch.cat([parts[level] for level in levels], dim=1)


def _of_known_classes(target: Target, gt_index: Tensor, label_of: Sequence[int]) -> tuple[Target, Tensor, Tensor]:
    """The objects of one image that both detectors know, its assignment (R,) to them, and the boxes of the others."""
    labels = torch.tensor(label_of, device=gt_index.device)[target["labels"]]
    known = labels >= 0
    number = torch.where(known, known.cumsum(0) - 1, -2)
    # Indices below zero count from the end, so background (-1) and ignored (-2) find themselves there.
    number = torch.cat([number, number.new_tensor([-2, -1])])
    boxes = target["boxes"]
    return {"boxes": boxes[known], "labels": labels[known]}, number[gt_index], boxes[~known]
