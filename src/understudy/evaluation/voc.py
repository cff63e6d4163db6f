"""PASCAL VOC's average precision, by the rules of its devkit."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from understudy.data import DetectionData
from understudy.evaluation.arrays import Detection, Detections, Found, Objects

Array = NDArray[np.float64]
Curve = tuple[Array, Array]
"""Recall and precision of one class, each (D,), best detections first."""


def voc_numbers(classes: Sequence[str], objects: Objects, found: Found) -> tuple[dict[str, float], dict[str, float]]:
    """Compute VOC's ``AP50`` (area) and ``AP50_11point``, means over the classes, and the AP50 (area) of each class.

    Args:
        classes: of the split.
        objects: of the split.
        found: the detections.
    """
    curves = _curves(classes, objects, found)
    areas, points = _averages(curves, _area_under_envelope), _averages(curves, _eleven_point_average)
    return {"AP50": _mean(areas.values()), "AP50_11point": _mean(points.values())}, areas


def voc_average_precision(
    data: DetectionData, detections: Sequence[Detection], *, eleven_points: bool = False, iou_threshold: float = 0.5
) -> dict[str, float]:
    """Compute VOC's average precision of each class.

    Each detection, best first, is compared with the object of its class and image that it overlaps most. With an IoU
    of at least the threshold, it is right if that object was not found before, and wrong if it was. Objects marked
    difficult do not count, and neither do detections of them.

    The devkit treats boxes as inclusive pixel corners, hence its "+ 1". Boxes here are edges: a VOC file's (xmin, ymin,
    xmax, ymax) is read as (xmin - 1, ymin - 1, xmax, ymax), which has the same width and height. So the plain IoU of
    edges equals the devkit's on VOC files, and is the usual one on other formats.

    Args:
        data: the split.
        detections: rows of COCO's results format.
        eleven_points: average the best precision at recalls of at least 0, 0.1, ..., 1 (VOC 2007), instead of the area
            under the precision envelope (VOC 2010 and later).
        iou_threshold: minimum IoU of a right detection, 0..1.

    Returns:
        Class name to AP in 0..1; nan for a class without objects that count.
    """
    found = Found.of(data, Detections.of_rows(detections))
    curves = _curves(data.classes, Objects.of(data), found, iou_threshold)
    return _averages(curves, _eleven_point_average if eleven_points else _area_under_envelope)


def _curves(
    classes: Sequence[str], objects: Objects, found: Found, iou_threshold: float = 0.5
) -> dict[str, Curve | None]:
    """Compute recall and precision of each class; None for a class without objects that count."""
    # By class, best first; images break ties between scores, and the sort is stable.
    order = np.lexsort((found.images, -found.scores, found.labels.astype(np.int16)))
    right, wrong = _right_and_wrong(objects, found, order, iou_threshold)
    positives = np.bincount(objects.labels[~objects.ignore], minlength=len(classes)).tolist()
    ends = np.bincount(found.labels, minlength=len(classes)).cumsum().tolist()
    curves: dict[str, Curve | None] = {}
    for name, start, end, count in zip(classes, [0, *ends[:-1]], ends, positives, strict=True):
        hits, misses = right[start:end].cumsum(), wrong[start:end].cumsum()
        curves[name] = (hits / count, hits / np.maximum(hits + misses, 1)) if count else None
    return curves


def _averages(curves: Mapping[str, Curve | None], average: Callable[[Array, Array], float]) -> dict[str, float]:
    return {name: math.nan if curve is None else average(*curve) for name, curve in curves.items()}


def _right_and_wrong(
    objects: Objects, found: Found, order: NDArray[np.int64], iou_threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark the right and the wrong detections, (D,) each, in the given order; neither on difficult objects.

    Which object a detection overlaps most does not depend on the other detections, so all are compared at once.

    Args:
        objects: of the split.
        found: the detections.
        order: (D,) index, best first within each class.
        iou_threshold: minimum IoU of a right detection.
    """
    nearest, overlap = _nearest(objects, found)
    nearest, overlap = nearest[order], overlap[order]
    close = np.flatnonzero(overlap >= iou_threshold)
    counted = close[~objects.ignore[nearest[close]]]
    right, wrong = np.zeros(len(order), bool), np.ones(len(order), bool)
    right[counted[np.unique(nearest[counted], return_index=True)[1]]] = True  # the best detection of each object
    wrong[close] = False
    wrong[counted] = ~right[counted]
    return right, wrong


def _nearest(objects: Objects, found: Found) -> tuple[NDArray[np.int64], Array]:
    """Return the object of its image and class that each detection overlaps most (D,), and their IoU (D,).

    Both are -1 if there is no such object.
    """
    images, classes = (
        int(max(one.max(initial=0), other.max(initial=0))) + 1
        for one, other in ((objects.images, found.images), (objects.labels, found.labels))
    )
    own = objects.images * classes + objects.labels
    order = own.argsort(kind="stable")  # the objects of an image and class are adjacent, in the order of the file
    starts = np.zeros(images * classes + 1, np.int32)
    np.cumsum(np.bincount(own, minlength=images * classes), out=starts[1:])
    groups = found.images * classes + found.labels
    first, last = starts[groups], starts[groups + 1]
    nearest, overlap = np.full(len(groups), -1), np.full(len(groups), -1.0)
    for number in range(int((last - first).max(initial=0))):  # the first object of each group, the second, ...
        mine = np.flatnonzero(first + number < last)
        other = order[first[mine] + number]
        iou = _iou(found.boxes[mine], objects.corners[other])
        better = iou > overlap[mine]
        nearest[mine[better]], overlap[mine[better]] = other[better], iou[better]
    return nearest, overlap


def _iou(xywh: Array, corners: Array) -> Array:
    """Compute the IoU (D,) of detections (D, 4) xywh with objects (D, 4) xyxy, pair by pair.

    A detection's own width and height are used: x + width - x would not be the same number in the last bit.
    """
    sides = np.minimum(corners[:, 2:], xywh[:, :2] + xywh[:, 2:]) - np.maximum(corners[:, :2], xywh[:, :2])
    intersection = sides.clip(0).prod(1)
    union = xywh[:, 2:].prod(1) + (corners[:, 2:] - corners[:, :2]).prod(1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _area_under_envelope(recall: Array, precision: Array) -> float:
    """Integrate, over recall, the best precision reached at that recall or a higher one."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _eleven_point_average(recall: Array, precision: Array) -> float:
    return sum(float(precision[recall >= point / 10].max(initial=0.0)) for point in range(11)) / 11


def _mean(values: Iterable[float]) -> float:
    """Average the classes that have objects; those without have no AP and do not count."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
