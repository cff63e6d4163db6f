"""The error types of TIDE, and the AP that each costs (Bolya et al., ECCV 2020).

A detection is matched with an object as in COCO's AP50: best score first, each with the free object of its class that
it overlaps most, at an IoU of at least 0.5. A detection without an object is an error, the first of these that applies:

=================  ================================================================================================
localisation       IoU with an object of its class from 0.1 to 0.5 (the object that it overlaps most)
classification     IoU of at least 0.5 with an object of another class
duplicate          IoU of at least 0.5 with an object of its class, which a detection of higher score has found
background         IoU of at most 0.1 with every object
both               everything else: IoU from 0.1 to 0.5 with an object of another class
=================  ================================================================================================

``missed`` is an object that no detection found, and that no localisation or classification error would find if it were
corrected. The paper does not rank the types; the order is that of the authors' tool.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
KINDS: tuple[Kind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection finds an object, and up to which it lies on background: those of the paper."""

MOST = 100
"""Detections of an image and class that count, the best: COCO's limit. In the authors' tool: of an image."""

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Objects:
    """The ground truth of one image.

    Attributes:
        boxes: (M, 4) xyxy.
        labels: (M,).
        ignore: (M,) bool: crowds and difficult objects; detections of them are neither right nor wrong.
    """

    boxes: Floats
    labels: Ints
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: (D, 4) xyxy.
        labels: (D,), in the labels of the ground truth.
        scores: (D,).
    """

    boxes: Floats
    labels: Ints
    scores: Floats

    @classmethod
    def best_first(cls, boxes: Floats, labels: Ints, scores: Floats) -> "Detections":
        """Sort the detections of an image, and keep the 100 best of each class."""
        order = np.argsort(-scores, kind="stable")
        sorted_labels = labels[order]
        kept = [place for label in np.unique(labels) for place in np.flatnonzero(sorted_labels == label)[:MOST]]
        order = order[np.sort(np.array(kept, dtype=int))]
        return cls(boxes[order], labels[order], scores[order])

    def above(self, threshold: float) -> "Detections":
        """Return the detections of at least this score."""
        kept = self.scores >= threshold
        return Detections(self.boxes[kept], self.labels[kept], self.scores[kept])


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on the detections of one image.

    Attributes:
        kinds: for each detection ``"correct"``, ``"ignored"`` or its error.
        objects: (D,) the object that a detection found, or would find if its localisation or classification error were
            corrected; -1: none.
        found: (M,) bool, whether a detection found the object.
        missed: (M,) bool, whether the object is missed.
    """

    kinds: tuple[str, ...]
    objects: Ints
    found: NDArray[np.bool_]
    missed: NDArray[np.bool_]


def judge(objects: Objects, detections: Detections) -> Judged:
    """Match the detections of one image with its objects, and name each error; see this module's description."""
    real = np.flatnonzero(~objects.ignore)
    overlap = iou(detections.boxes, objects.boxes[real])  # (D, m), of the m objects that count
    same = detections.labels[:, None] == objects.labels[real][None]
    matched = _match(np.where(same, overlap, 0.0))
    found = np.zeros(len(real), bool)
    found[matched[matched >= 0]] = True
    ignored = _on_ignored(objects, detections)
    kinds: list[str] = []
    aimed = np.full(len(detections.scores), -1)
    for number, place in enumerate(matched.tolist()):
        kind, near = ("correct", place) if place >= 0 else ("ignored", -1)
        if place < 0 and not ignored[number]:
            kind, near = _error(overlap[number], same[number], found)
        kinds.append(kind)
        aimed[number] = near
    wanted = np.zeros(len(real), bool)
    wanted[aimed[aimed >= 0]] = True
    missed = np.zeros(len(objects.labels), bool)
    missed[real] = ~wanted
    found_of_all = np.zeros(len(objects.labels), bool)
    found_of_all[real] = found
    return Judged(tuple(kinds), np.where(aimed >= 0, np.append(real, -1)[aimed], -1), found_of_all, missed)


def _match(overlap: Floats) -> Ints:
    """Give each detection (D, M), best first, the free object that it overlaps most, or -1: (D,)."""
    matched = np.full(len(overlap), -1)
    overlap = overlap.copy()
    for number, row in enumerate(overlap if overlap.shape[1] else ()):
        place = int(row.argmax())
        if row[place] >= FOREGROUND:
            matched[number] = place
            overlap[:, place] = 0.0
    return matched


def _error(overlap: Floats, same: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[str, int]:
    """Name the error of a detection that found nothing, and the object that it would find if corrected, or -1."""
    if not len(overlap):
        return "background", -1
    own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    if BACKGROUND <= own.max() < FOREGROUND:
        return "localisation", int(own.argmax())
    if other.max() >= FOREGROUND:
        return "classification", int(other.argmax())
    if np.where(found, own, 0.0).max() >= FOREGROUND:
        return "duplicate", -1
    return ("background" if overlap.max() <= BACKGROUND else "both"), -1


def _on_ignored(objects: Objects, detections: Detections) -> NDArray[np.bool_]:
    """Mark the detections (D,) of which at least half lies in an ignored object of their class, as COCO does."""
    boxes, labels = objects.boxes[objects.ignore], objects.labels[objects.ignore]
    if not len(boxes):
        return np.zeros(len(detections.scores), bool)
    share = iou(detections.boxes, boxes, of_first=True)
    return ((share >= FOREGROUND) & (detections.labels[:, None] == labels[None])).any(1)


def iou(boxes: Floats, others: Floats, *, of_first: bool = False) -> Floats:
    """Compute the IoU (D, M) of boxes (D, 4) and (M, 4) xyxy, or the share of each first box inside the second."""
    start, end = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    both = (end - start).clip(0).prod(2)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others))
    total = np.broadcast_to(areas[:, None], both.shape) if of_first else areas[:, None] + other_areas - both
    return np.divide(both, total, out=np.zeros_like(both), where=total > 0)


# ----------------------------------------------------------------------------------------------------- AP and its costs


@dataclass(frozen=True, slots=True)
class Costs:
    """AP50 of a model, and what each type of error costs.

    Attributes:
        ap50: the mean over the classes that have objects, 0..1; nan without any.
        cost: for each type, the AP50 after an oracle corrected its errors, minus the AP50.
    """

    ap50: float
    cost: dict[str, float]


def costs(images: Sequence[tuple[Objects, Detections, Judged]]) -> Costs:
    """Compute AP50, and the AP50 that each type of error costs: TIDE's dAP, one oracle at a time.

    The oracle of ``classification`` gives a detection the class, that of ``localisation`` the box of the object that it
    aims at. If several detections aim at one object, the best is corrected and the others are removed, as are those
    that aim at an object that was found. The oracles of ``both``, ``duplicate`` and ``background`` remove the
    detections, that of ``missed`` removes the objects.
    """
    rows = _rows(images)
    counts: dict[int, int] = {}
    missed: dict[int, int] = {}
    for objects, _, judged in images:
        for label, ignore, gone in zip(objects.labels.tolist(), objects.ignore, judged.missed, strict=True):
            counts[label] = counts.get(label, 0) + (not ignore)
            missed[label] = missed.get(label, 0) + bool(gone)
    counts = {label: count for label, count in counts.items() if count}
    plain = _mean_ap(rows, counts)
    cost: dict[str, float] = {kind: _mean_ap(_corrected(rows, kind), counts) - plain for kind in KINDS[:-1]}
    cost["missed"] = _mean_ap(rows, {label: count - missed[label] for label, count in counts.items()}) - plain
    return Costs(plain, cost)


@dataclass(frozen=True, slots=True)
class _Row:
    """A detection: its score, kind, label, and the object that it aims at, if it was not found by another one."""

    score: float
    kind: str
    label: int
    aimed: tuple[int, int] | None = None
    aimed_label: int = -1


def _rows(images: Sequence[tuple[Objects, Detections, Judged]]) -> list[_Row]:
    rows = []
    for number, (objects, detections, judged) in enumerate(images):
        parts = zip(
            detections.scores.tolist(), judged.kinds, detections.labels.tolist(), judged.objects.tolist(), strict=True
        )
        for score, kind, label, place in parts:
            if kind == "ignored":
                continue
            free = place >= 0 and not judged.found[place]
            aimed = ((number, place), int(objects.labels[place])) if free else (None, -1)
            rows.append(_Row(score, kind, label, *aimed))
    return rows


def _corrected(rows: Sequence[_Row], kind: Kind) -> list[_Row]:
    """Return the detections after an oracle corrected all errors of one kind."""
    kept = [row for row in rows if row.kind != kind]
    if kind not in ("classification", "localisation"):
        return kept
    best: dict[tuple[int, int], _Row] = {}
    for row in rows:
        if row.kind == kind and row.aimed and (row.aimed not in best or row.score > best[row.aimed].score):
            best[row.aimed] = row
    return kept + [_Row(row.score, "correct", row.aimed_label) for row in best.values()]


def _mean_ap(rows: Sequence[_Row], counts: Mapping[int, int]) -> float:
    """Average the AP over classes; counts are their numbers of objects."""
    aps = []
    for label, count in counts.items():
        mine = [row for row in rows if row.label == label]
        correct = np.array([row.kind == "correct" for row in mine], bool)
        aps.append(average_precision(np.array([row.score for row in mine]), correct, count))
    return sum(aps) / len(aps) if aps else math.nan


def average_precision(scores: Floats, correct: NDArray[np.bool_], count: int) -> float:
    """Compute COCO's average precision of one class: the mean of 101 points of the precision envelope over recall.

    Args:
        scores: (D,) of the detections of the class in all images.
        correct: (D,) whether each found an object.
        count: number of objects; 0 gives 0.

    Examples:
        >>> average_precision(np.array([0.9, 0.8]), np.array([True, True]), count=2)
        1.0
    """
    if not count:
        return 0.0
    correct = correct[np.argsort(-scores, kind="stable")]
    right = correct.cumsum()
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    places = np.searchsorted(right / count, np.linspace(0, 1, 101), side="left")
    return float(envelope[places].mean())
