"""The confusion matrix of a detector: which class it detects for the objects of each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from understudy.evaluation.arrays import Found, Objects
from understudy.text import listed

BACKGROUND = "background"
SCORE, IOU = 0.3, 0.5
"""Lowest score of a detection that counts, and least overlap with its object."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often objects of each class are detected as which class.

    Attributes:
        classes: the K names.
        counts: K + 1 rows of K + 1: rows are the true class, columns the detected one, the last of both is the
            background. ``counts[k][K]`` objects of class k are missed, ``counts[K][k]`` detections of class k are
            without an object.
        score_threshold: lowest score of a detection that counts.
        iou_threshold: least IoU of a detection and its object.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    score_threshold: float
    iou_threshold: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; ``classes`` ends with the background."""
        return {
            "classes": [*self.classes, BACKGROUND],
            "counts": [list(row) for row in self.counts],
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert :meth:`to_dict`."""
        counts = tuple(tuple(row) for row in values["counts"])
        return cls(tuple(values["classes"][:-1]), counts, values["score_threshold"], values["iou_threshold"])

    @property
    def sentence(self) -> str:
        """The counts in words, with the most frequent confusions of classes."""
        counts = np.array(self.counts)
        objects, right = int(counts[:-1].sum()), int(counts[:-1, :-1].trace())
        confused = [
            (int(counts[true, found]), f"{self.classes[true]} as {self.classes[found]}")
            for true, found in np.argwhere(counts[:-1, :-1]).tolist()
            if true != found
        ]
        named = [f"{count} {words}" for count, words in sorted(confused, key=lambda pair: -pair[0])]
        return (
            f"At scores of at least {self.score_threshold:.2f} and IoU {self.iou_threshold:.2f}: {right} of {objects} "
            f"objects are detected, {sum(count for count, _ in confused)} as another class"
            f"{f' ({listed(named, 3)})' if named else ''}, {int(counts[:-1, -1].sum())} are missed; "
            f"{int(counts[-1].sum())} detections are without an object."
        )


def confusion_matrix(
    classes: Sequence[str],
    objects: Objects,
    found: Found,
    score_threshold: float = SCORE,
    iou_threshold: float = IOU,
) -> Confusion:
    """Count how often objects of each class are detected as which class.

    In each image the detections take objects, the highest score first, each the free object that it overlaps most:
    first objects of their own class, then what is left of any class. A detection that takes no object is without one,
    unless it overlaps an ignored object (COCO's crowd, VOC's difficult).

    Args:
        classes: of the split.
        objects: of the split.
        found: the detections.
        score_threshold: lowest score of a detection that counts, 0..1.
        iou_threshold: least IoU of a detection and its object.
    """
    background = len(classes)
    counts = np.zeros((background + 1, background + 1), np.int64)
    kept = np.flatnonzero(found.scores >= score_threshold)
    kept = kept[np.lexsort((-found.scores[kept], found.images[kept]))]
    mine = np.argsort(objects.images, kind="stable")
    images = np.union1d(objects.images, found.images[kept])
    object_ends, found_ends = (
        np.searchsorted(values, images, "right") for values in (objects.images[mine], found.images[kept])
    )
    starts = zip([0, *object_ends[:-1]], object_ends, [0, *found_ends[:-1]], found_ends, strict=True)
    for object_start, object_end, found_start, found_end in starts if len(images) else ():
        truth, detected = mine[object_start:object_end], kept[found_start:found_end]
        labels, names = objects.labels[truth], found.labels[detected]
        ignore = objects.ignore[truth]
        overlaps = _iou(found.boxes[detected], objects.corners[truth])
        matched = _matched(np.where(ignore, 0.0, overlaps), labels == names[:, None], iou_threshold)
        for number, other in enumerate(matched):
            if other >= 0:
                counts[labels[other], names[number]] += 1
            elif not (overlaps[number, ignore] >= iou_threshold).any():
                counts[background, names[number]] += 1
        missed = ~ignore
        missed[[other for other in matched if other >= 0]] = False
        np.add.at(counts[:, background], labels[missed], 1)
    return Confusion(tuple(classes), tuple(map(tuple, counts.tolist())), score_threshold, iou_threshold)


def _matched(overlaps: NDArray[np.float64], same: NDArray[np.bool_], threshold: float) -> list[int]:
    """Return the object that each detection takes, or -1, from overlaps (D, O); the best detections come first."""
    free = np.ones(overlaps.shape[1], bool)
    taken = [-1] * len(overlaps)
    for allowed in (same, np.ones_like(same)) if overlaps.size else ():
        for number, overlap in enumerate(overlaps):
            if taken[number] >= 0:
                continue
            candidates = np.where(free & allowed[number], overlap, -1.0)
            best = int(candidates.argmax())
            if candidates[best] >= threshold:
                taken[number], free[best] = best, False
    return taken


def _iou(xywh: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the IoU (D, O) of detections (D, 4) xywh with objects (O, 4) xyxy."""
    ends = xywh[:, :2] + xywh[:, 2:]
    sides = np.minimum(ends[:, None], corners[None, :, 2:]) - np.maximum(xywh[:, None, :2], corners[None, :, :2])
    common = sides.clip(0).prod(2)
    union = xywh[:, 2:].prod(1)[:, None] + (corners[:, 2:] - corners[:, :2]).prod(1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
