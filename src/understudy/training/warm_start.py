"""Start a detector with the weights of a checkpoint, layer by layer where names, shapes and meaning agree."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from understudy.checkpoints import Checkpoint
from understudy.class_matching import NO_ALIASES, Aliases, match_names
from understudy.detectors import Detector
from understudy.detectors.families import family_of
from understudy.errors import UserError
from understudy.inheritance import CLASS_LAYERS, fitting, has_same_head
from understudy.training.fingerprints import weights_digest

COUNTER = "num_batches_tracked"
"""The counter of a batch normalisation, which a frozen one lacks, and which nothing here reads."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a detector has taken from a checkpoint.

    Attributes:
        source: the checkpoint.
        taken: names of the tensors that are the checkpoint's.
        by_class: names of those of which the rows of some classes are.
        classes: names of these classes.
        own: names of the other tensors, which keep their own initialisation.
        remarks: for the user.
    """

    source: Checkpoint
    taken: tuple[str, ...]
    by_class: tuple[str, ...]
    classes: tuple[str, ...]
    own: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def note(self) -> str:
        """One line for the user."""
        total = len(self.taken) + len(self.by_class) + len(self.own)
        parts = [f"init: {len(self.taken)} of the {total} tensors of the detector are those of {self.source.path}"]
        if self.by_class:
            parts.append(f"{len(self.by_class)} have its values for the classes {', '.join(self.classes)}")
        if self.own:
            groups = Counter(".".join(name.split(".")[:2]) for name in self.own)
            parts.append(f"not taken: {', '.join(f'{count} of {group}' for group, count in groups.items())}")
        return "; ".join([*parts, *self.remarks])

    def facts(self) -> dict[str, Any]:
        """Return the checkpoint, the digest of its weights, and the names, as plain values."""
        names = {key: list(getattr(self, key)) for key in ("taken", "by_class", "classes", "own")}
        return {"checkpoint": str(self.source.path), "weights": weights_digest(self.source.detector), **names}


def warm_start(
    student: Detector, source: Checkpoint, classes: Sequence[str], aliases: Aliases = NO_ALIASES
) -> WarmStart:
    """Copy the weights of a checkpoint into a detector where they fit.

    They fit under the conditions of :func:`understudy.inheritance.inherit`. If the classes differ, the layers of class
    scores take the values of the classes of the same name.

    Args:
        student: changed in place.
        source: a detector and its classes.
        classes: names of the student's classes.
        aliases: other names of classes, see :func:`understudy.class_matching.match_names`.

    Raises:
        UserError: no layer fits.
    """
    own, theirs = student.network.state_dict(), source.detector.network.state_dict()
    names = [name for name in own if not name.endswith(COUNTER)]
    places = match_names(classes, source.classes, aliases)
    same = places == list(range(len(source.classes)))
    taken = fitting(student, source.detector, names, same_classes=same)
    if not any(own[name].dim() > 1 for name in taken):
        raise UserError(
            f"init={source.path}: no layer of its detector, {source.detector.spec.name}, fits {student.spec.name}. Use "
            "its backbone and width, or its family and neck_channels, for detector, or leave init out."
        )
    matched = {} if same else {place: other for place, other in enumerate(places) if other is not None}
    by_class = {}
    if matched and has_same_head(student, source.detector):
        by_class = dict(_by_class(student, own, theirs, matched, (len(classes), len(source.classes))))
    student.network.load_state_dict({name: theirs[name] for name in taken} | by_class, strict=False)
    left = tuple(name for name in names if name not in taken and name not in by_class)
    known = tuple(classes[place] for place in matched) if by_class else ()
    return WarmStart(source, taken, tuple(by_class), known, left, tuple(_remarks(student, source.detector)))


def has_same_backbone(source: Checkpoint, options: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has the backbone of a detector's build options, so that it needs no other weights."""
    one, other = (
        (_backbone(each["name"]), each.get("width_mult"), (each.get("settings") or {}).get("style"))
        for each in (source.meta["build"], options)
    )
    return one == other


def _backbone(detector: str) -> str:
    family = family_of(detector)
    return detector.removeprefix(f"{family.name}_") if family else detector


def _by_class(
    student: Detector,
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    matched: Mapping[int, int],
    counts: tuple[int, int],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the layers of class scores with the source's values of some classes, and the student's own of the rest.

    Args:
        student: the detector.
        own: its tensors.
        theirs: the source's.
        matched: the source's class for each of these classes of the student.
        counts: numbers of the student's and of the source's classes.
    """
    for name in (name for name in own if name.startswith(CLASS_LAYERS) and name in theirs):
        # The rows of a dense head are anchors x classes; those of a second stage begin with the background.
        second_stage = int(name.startswith(CLASS_LAYERS[1]))
        anchors = 1 if second_stage else student.spec.num_anchors
        shapes = [(anchors, count + second_stage, -1) for count in counts]
        if any(len(each[name]) % math.prod(shape) for each, shape in zip((own, theirs), shapes, strict=True)):
            continue  # the boxes of a second stage that are the same for all classes
        mixed, found = own[name].clone().unflatten(0, shapes[0]), theirs[name].unflatten(0, shapes[1])
        if mixed.shape[2:] != found.shape[2:]:
            continue
        for place, other in [(-1, -1)] * second_stage + [*matched.items()]:
            mixed[:, place + second_stage] = found[:, other + second_stage]
        yield name, mixed.flatten(0, 2)


def _remarks(student: Detector, source: Detector) -> Iterator[str]:
    """Remark on pixels that the two detectors normalise differently."""
    for key in ("image_mean", "image_std"):
        values = [list(map(float, getattr(each.network.transform, key, ()))) for each in (student, source)]
        if values[0] != values[1]:
            yield f"it was trained with another {key}: set detector.{key}='{values[1]}'"
