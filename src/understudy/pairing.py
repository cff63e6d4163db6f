"""The common ground of two detectors: levels of equal stride and classes of the same name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from understudy.class_matching import (
    NO_ALIASES,
    Aliases,
    check_aliases,
    hint_on,
    match_names,
    no_common_name,
    renamed,
    shown_pairs,
)
from understudy.errors import UserError
from understudy.folding import folded
from understudy.outputs import Outputs, QueryOutputs, Spec, Target, Truth, anchors_per_level
from understudy.text import listed


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of one detector's record that is compared.

    Attributes:
        levels: positions of the neck's levels, fine to coarse.
        stages: positions of the backbone's stages.
        labels: labels of the classes, in the order of the student's; None: the class logits stay as they are.
        finer: positions of levels that the other detector lacks, and that are folded into the first of ``levels``.
        whole: the detector's whole Spec, if levels are folded.
    """

    levels: tuple[int, ...]
    stages: tuple[int, ...]
    labels: tuple[int, ...] | None
    finer: tuple[int, ...] = ()
    whole: Spec | None = None

    def spec(self, spec: Spec) -> Spec:
        """Return the Spec of a detector reduced to this part."""
        return replace(
            spec,
            channels=_chosen(spec.channels, self.levels),
            strides=_chosen(spec.strides, self.levels),
            num_classes=spec.num_classes if self.labels is None else len(self.labels),
            stage_channels=_chosen(spec.stage_channels, self.stages),
            stage_strides=_chosen(spec.stage_strides, self.stages),
            stage_relu=_chosen(spec.stage_relu, self.stages) if spec.stage_relu else (),
            first_anchors=_chosen(spec.first_anchors, self.levels) if spec.first_anchors else (),
        )

    def record(self, outputs: Outputs) -> Outputs:
        """Reduce a record, or what was computed of it, to this part.

        Nothing is copied for whole levels and for consecutive classes.
        """
        if self.whole and outputs.class_logits:
            outputs = folded(outputs, self.whole, self.levels[0], self.finer, self.labels)
        anchors = anchors_per_level(outputs)
        return replace(
            outputs,
            stages=list(_chosen(outputs.stages, self.stages)) if outputs.stages else [],
            features=list(_chosen(outputs.features, self.levels)) if outputs.features else [],
            **self._dense(outputs),
            extra={
                name: _of_levels(value, anchors, self.levels) if value.shape[1:2] == (sum(anchors),) else value
                for name, value in outputs.extra.items()
            },
            tower_maps={},
            queries=outputs.queries and self._set(outputs.queries),
        )

    def _dense(self, outputs: Outputs) -> dict[str, list[Tensor]]:
        computed = {name: getattr(outputs, name) for name in ("class_logits", "box_raw", "anchors", "boxes")}
        chosen = {name: list(_chosen(levels, self.levels)) for name, levels in computed.items() if levels}
        if "class_logits" in chosen:
            chosen["class_logits"] = [_of_classes(logits, self.labels) for logits in chosen["class_logits"]]
        return chosen

    def _set(self, queries: QueryOutputs) -> QueryOutputs:
        return QueryOutputs([_of_classes(logits, self.labels) for logits in queries.class_logits], queries.boxes)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The common ground of a student and its teacher, as :func:`pair` finds it.

    Methods are built from the two reduced Specs and read the two reduced records: the levels of equal stride, and the
    classes of the same name in the student's order. The scores of a detector with objectness (an RPN) are not mapped.

    Attributes:
        student: the student's reduced Spec.
        teacher: the teacher's reduced Spec.
        student_part: the part of the student's record that is compared.
        teacher_part: the part of the teacher's record that is compared.
        label_of: for each of the student's classes its number among the common ones, or -1.
        teacher_labels: for each common class the teacher's own label.
        classes: the student's names of the common classes; numbers if no names were given.
        unknown: classes of the student that the teacher lacks. Their objects take no part in the distillation.
        unused: classes of the teacher that the student lacks.
        dropped_strides: strides of the levels that only one of the two has.
        folded_strides: strides of the teacher's levels that are folded into the student's finest one (:func:`.folded`).
        renamed: pairs of names of the student and the teacher that are not spelled alike.
        whole_teacher: the teacher's record is compared with all its levels and stages.
    """

    student: Spec
    teacher: Spec
    student_part: Selection
    teacher_part: Selection
    label_of: tuple[int, ...]
    teacher_labels: tuple[int, ...]
    classes: tuple[str, ...]
    unknown: tuple[str, ...]
    unused: tuple[str, ...]
    dropped_strides: tuple[int, ...]
    whole_teacher: bool
    renamed: tuple[tuple[str, str], ...] = ()
    folded_strides: tuple[int, ...] = ()

    @property
    def student_labels(self) -> tuple[int, ...]:
        """For each common class the student's own label."""
        return tuple(label for label, place in enumerate(self.label_of) if place >= 0)

    def student_record(self, outputs: Outputs) -> Outputs:
        """Reduce the student's record to the common ground."""
        return self.student_part.record(outputs)

    def teacher_record(self, outputs: Outputs) -> Outputs:
        """Reduce the teacher's record to the common ground."""
        return self.teacher_part.record(outputs)

    def truth(self, truth: Truth, outputs: Outputs) -> Truth:
        """Reduce the ground truth to the common ground.

        Objects of classes that the teacher lacks are left out, and their anchors are ignored (-2). The others, and
        their labels, are renumbered.

        Args:
            truth: of the whole record.
            outputs: the student's whole record; its level sizes decide which anchors are kept.
        """
        gt_index = truth.gt_index
        if outputs.class_logits:
            gt_index = _of_levels(gt_index, anchors_per_level(outputs), self.student_part.levels)
        if not self.unknown:
            return replace(truth, gt_index=gt_index)
        images = [
            _of_known_classes(target, row, self.label_of) for target, row in zip(truth.targets, gt_index, strict=True)
        ]
        targets, rows, left_out = zip(*images, strict=True)
        return Truth(targets, torch.stack(rows), left_out)

    @property
    def note(self) -> str:
        """One line about the classes and levels that are not compared; empty if there are none."""
        parts: list[str] = []
        if self.renamed:
            parts.append(f"classes matched under another name (student = teacher): {shown_pairs(self.renamed)}")
        if self.unknown:
            parts.append(f"classes that the teacher lacks, learned from labels alone: {listed(self.unknown)}")
        if self.unused:
            parts.append(f"unused classes of the teacher: {listed(self.unused)}")
        if self.folded_strides:
            strides, finest = listed(self.folded_strides), self.student.strides[0]
            parts.append(f"what the teacher says at strides {strides} counts in the student's cells of stride {finest}")
        if self.dropped_strides:
            parts.append(
                f"levels are compared at strides {listed(self.student.strides)}, "
                f"not at {listed(self.dropped_strides)}, which only one of the two has"
            )
        if hint := hint_on(self.unknown, self.unused):
            parts.append(hint.removesuffix("."))
        return "; ".join(parts)

    def facts(self) -> dict[str, Any]:
        """Return levels and classes as plain values, with every name."""
        return {
            "strides": list(self.student.strides),
            "strides_of_one_only": list(self.dropped_strides),
            "strides_folded": list(self.folded_strides),
            "classes": list(self.classes),
            "classes_of_another_name": dict(self.renamed),
            "classes_unknown_to_the_teacher": list(self.unknown),
            "classes_of_the_teacher_not_used": list(self.unused),
        }


def pair(
    student: Spec,
    teacher: Spec,
    student_classes: Sequence[str] | None = None,
    teacher_classes: Sequence[str] | None = None,
    aliases: Aliases = NO_ALIASES,
) -> Pairing:
    """Find the common ground of a student and a teacher: levels of equal stride and classes of the same name.

    Args:
        student: the student's Spec.
        teacher: the teacher's Spec.
        student_classes: names of the student's classes, by label. Order, case and surrounding blanks do not matter.
        teacher_classes: names of the teacher's classes. Without names both must have the same number of classes, which
            are then taken to be the same ones.
        aliases: names of one class, the student's and the teacher's in either order, e.g. ``{"moped": "scooter"}``.

    Raises:
        UserError: these are no Specs, there is no common level or class, or the number of names is wrong.

    Examples:
        >>> small = Spec(channels=(32, 32), strides=(8, 16), num_anchors=1, num_classes=2, name="small")
        >>> big = Spec(channels=(64, 64, 64), strides=(8, 16, 32), num_anchors=1, num_classes=3, name="big")
        >>> common = pair(small, big, ["cat", "dog"], ["dog", "cow", "cat"])
        >>> common.teacher.channels, common.unused
        ((64, 64), ('cow',))
    """
    if wrong := [type(spec).__name__ for spec in (student, teacher) if not isinstance(spec, Spec)]:
        raise UserError(f"pair() takes two Specs, student.spec and teacher.spec; got {' and '.join(wrong)}.")
    faults: list[str] = []
    if not set(student.strides) & set(teacher.strides):
        faults.append(f"no level of the same stride: {_both('strides', student, teacher)}")
    if student_classes is None and teacher_classes is None:
        if student.num_classes != teacher.num_classes and not (student.objectness or teacher.objectness):
            counts = _both("num_classes", student, teacher)
            faults.append(f"different numbers of classes: {counts}. Pass the class names of both to match them")
        student_classes = teacher_classes = tuple(map(str, range(max(student.num_classes, teacher.num_classes))))
    elif student_classes is None or teacher_classes is None:
        raise UserError("pair() got the class names of only one detector: pass both, or neither.")
    else:
        faults += _wrong_names(student, student_classes) + _wrong_names(teacher, teacher_classes)
    check_aliases(aliases, student_classes, teacher_classes)
    places = match_names(student_classes, teacher_classes, aliases)
    if all(place is None for place in places):
        faults += no_common_name("student", student_classes, "teacher", teacher_classes)
    if faults:
        raise UserError.listing(f"The student {student.name} and the teacher {teacher.name} cannot be paired:", faults)

    known = [label for label, place in enumerate(places) if place is not None]
    used = [place for place in places if place is not None]
    student_part = _selection(student, teacher, None if len(known) == len(places) else known)
    teacher_part = _with_finer(
        _selection(teacher, student, None if used == list(range(len(teacher_classes))) else used), teacher, student
    )
    finer = {teacher.strides[place] for place in teacher_part.finer}
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
        renamed=tuple(renamed(student_classes, teacher_classes, places)),
        dropped_strides=tuple(sorted((set(student.strides) ^ set(teacher.strides)) - finer)),
        folded_strides=tuple(sorted(finer)),
        whole_teacher=teacher_part.spec(teacher).strides == teacher.strides
        and teacher_part.spec(teacher).stage_strides == teacher.stage_strides,
    )


def _selection(own: Spec, other: Spec, labels: Sequence[int] | None) -> Selection:
    return Selection(
        levels=_places_in(own.strides, other.strides),
        stages=_places_in(own.stage_strides, other.stage_strides),
        labels=None if labels is None or own.objectness else tuple(labels),
    )


def _with_finer(part: Selection, own: Spec, other: Spec) -> Selection:
    """Fold the levels of a teacher of larger images that are finer than all of the student's."""
    first = min(other.strides)
    if own.scale == 1 or not own.dense or own.strides[part.levels[0]] != first:
        return part
    finer = tuple(place for place, stride in enumerate(own.strides) if stride < first)
    return replace(part, finer=finer, whole=own) if finer else part


def _places_in(strides: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for place, stride in enumerate(strides) if stride in others)


def _wrong_names(spec: Spec, names: Sequence[str]) -> list[str]:
    if spec.objectness or len(names) == spec.num_classes:
        return []
    return [f"{spec.name} has {spec.num_classes} classes, got {len(names)} names: {listed(names)}"]


def _both(what: str, student: Spec, teacher: Spec) -> str:
    return (
        f"the student {student.name} has {getattr(student, what)}, the teacher {teacher.name} {getattr(teacher, what)}"
    )


def _chosen(values: Sequence, places: Sequence[int]) -> tuple:
    return tuple(values[place] for place in places)


def _of_classes(logits: Tensor, labels: tuple[int, ...] | None) -> Tensor:
    if labels is None:
        return logits
    first, last = labels[0], labels[-1] + 1
    if labels == tuple(range(first, last)):
        return logits[..., first:last]
    return logits.index_select(-1, torch.tensor(labels, device=logits.device))


def _of_levels(flat: Tensor, anchors: Sequence[int], levels: Sequence[int]) -> Tensor:
    """Select the anchors of some levels from (N, R) or (N, R, X)."""
    if len(levels) == len(anchors):
        return flat
    parts = flat.split(list(anchors), dim=1)
    return torch.cat([parts[level] for level in levels], dim=1)


def _of_known_classes(target: Target, gt_index: Tensor, label_of: Sequence[int]) -> tuple[Target, Tensor, Tensor]:
    """Select the objects of one image whose class is common: targets, assignment (R,), and the boxes of the others."""
    labels = torch.tensor(label_of, device=gt_index.device)[target["labels"]]
    known = labels >= 0
    number = torch.where(known, known.cumsum(0) - 1, -2)
    # Indices below zero count from the end, where background (-1) and ignored (-2) are appended.
    number = torch.cat([number, number.new_tensor([-2, -1])])
    boxes = target["boxes"]
    return {"boxes": boxes[known], "labels": labels[known]}, number[gt_index], boxes[~known]
