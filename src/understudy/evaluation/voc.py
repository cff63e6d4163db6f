"""PASCAL VOC's average precision, by the rules of its devkit."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from understudy.data import DetectionData
from understudy.evaluation.detections import Detection

Array = NDArray[np.float64]
Curve = tuple[Array, Array]
"""Recall and precision of one class, each (D,), best detections first."""


def voc_numbers(data: DetectionData, detections: list[Detection]) -> tuple[dict[str, float], dict[str, float]]:
    """Compute VOC's ``AP50`` (area) and ``AP50_11point``, means over the classes, and the AP50 (area) of each class.

    Args:
        data: the split.
        detections: rows of COCO's results format.
    """
    curves = _curves(data, detections)
    areas, points = _averages(curves, _area_under_envelope), _averages(curves, _eleven_point_average)
    return {"AP50": _mean(areas.values()), "AP50_11point": _mean(points.values())}, areas


def voc_average_precision(
    data: DetectionData, detections: list[Detection], *, eleven_points: bool = False, iou_threshold: float = 0.5
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
    curves = _curves(data, detections, iou_threshold)
    return _averages(curves, _eleven_point_average if eleven_points else _area_under_envelope)


def _curves(data: DetectionData, detections: list[Detection], iou_threshold: float = 0.5) -> dict[str, Curve | None]:
    """Compute recall and precision of each class; None for a class without objects that count."""
    objects = _objects_by_class(data)
    by_category: dict[int, list[Detection]] = defaultdict(list)
    for row in detections:
        by_category[row["category_id"]].append(row)
    curves: dict[str, Curve | None] = {}
    for name, category, mine in zip(data.classes, data.category_ids, objects, strict=True):
        positives = sum(int((~ignore).sum()) for _, ignore in mine.values())
        right, wrong = (flags.cumsum() for flags in _right_and_wrong(by_category[category], mine, iou_threshold))
        curves[name] = (right / positives, right / np.maximum(right + wrong, 1)) if positives else None
    return curves


def _averages(curves: Mapping[str, Curve | None], average: Callable[[Array, Array], float]) -> dict[str, float]:
    return {name: math.nan if curve is None else average(*curve) for name, curve in curves.items()}


def _objects_by_class(data: DetectionData) -> list[dict[int, tuple[Array, NDArray[np.bool_]]]]:
    """Collect for each label, by image id, the boxes (M, 4) xyxy of its objects and whether each is ignored (M,)."""
    objects: list[dict[int, tuple[Array, NDArray[np.bool_]]]] = [{} for _ in data.classes]
    for record in data.records:
        boxes, labels, ignore = record.boxes.double().numpy(), record.labels.numpy(), record.ignore.numpy()
        for label in np.unique(labels):
            objects[label][record.image_id] = boxes[labels == label], ignore[labels == label]
    return objects


def _right_and_wrong(
    rows: list[Detection], objects: Mapping[int, tuple[Array, NDArray[np.bool_]]], iou_threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark the right and the wrong detections of one class, best first, (D,) each; neither on difficult objects."""
    rows = sorted(rows, key=lambda row: (-row["score"], row["image_id"]))  # stable; images break ties between scores
    places: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["image_id"]].append(place)
    right, wrong = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    for image_id, mine in places.items():
        if image_id not in objects:
            continue
        boxes, ignore = objects[image_id]
        overlaps = _iou(np.array([rows[place]["bbox"] for place in mine]), boxes)
        found: set[int] = set()
        for place, nearest, overlap in zip(mine, overlaps.argmax(1).tolist(), overlaps.max(1).tolist(), strict=True):
            if overlap >= iou_threshold:
                right[place] = not ignore[nearest] and nearest not in found
                wrong[place] = not ignore[nearest] and nearest in found
                found.add(nearest)
    return right, wrong


def _iou(xywh: Array, boxes: Array) -> Array:
    """Compute the IoU (D, M) of detections (D, 4) xywh with objects (M, 4) xyxy.

    A detection's own width and height are used: x + width - x would not be the same number in the last bit.
    """
    start, end = xywh[:, None, :2], xywh[:, None, :2] + xywh[:, None, 2:]
    sides = np.minimum(boxes[:, 2:], end) - np.maximum(boxes[:, :2], start)
    intersection = sides.clip(0).prod(2)
    union = xywh[:, None, 2:].prod(2) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - intersection
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
