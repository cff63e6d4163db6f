"""COCO's 12 numbers and the AP of each class, computed by hotcoco or pycocotools."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from understudy.errors import UserError
from understudy.evaluation.arrays import Found, Objects

Backend = Literal["auto", "hotcoco", "pycocotools"]
"""The library that computes COCO's numbers; ``"auto"``: hotcoco, or pycocotools if that is not installed."""

_IOU_50, _IOU_75, _ALL_IOUS = slice(0, 1), slice(5, 6), slice(None)  # of COCO's ten thresholds 0.50, 0.55, ..., 0.95
_COCO_NUMBERS = {  # name: array, thresholds, index of (all, small, medium, large), index of (1, 10, 100) detections
    "AP": ("precision", _ALL_IOUS, 0, 2),
    "AP50": ("precision", _IOU_50, 0, 2),
    "AP75": ("precision", _IOU_75, 0, 2),
    "APs": ("precision", _ALL_IOUS, 1, 2),
    "APm": ("precision", _ALL_IOUS, 2, 2),
    "APl": ("precision", _ALL_IOUS, 3, 2),
    "AR1": ("recall", _ALL_IOUS, 0, 0),
    "AR10": ("recall", _ALL_IOUS, 0, 1),
    "AR100": ("recall", _ALL_IOUS, 0, 2),
    "ARs": ("recall", _ALL_IOUS, 1, 2),
    "ARm": ("recall", _ALL_IOUS, 2, 2),
    "ARl": ("recall", _ALL_IOUS, 3, 2),
}


def coco_numbers(
    classes: Sequence[str], images: int, objects: Objects, found: Found, backend: Backend = "auto"
) -> tuple[dict[str, float], dict[str, float], dict[str, list[float]]]:
    """Compute COCO's 12 numbers, and by the name of each class its AP and its precision at IoU 0.50; 0..1.

    The precision is the best at a recall of at least 0, 0.01, ..., 1. Numbers that are not defined are nan, curves of
    classes without objects are left out.

    Args:
        classes: of the split.
        images: number of images of the split.
        objects: of the split.
        found: the detections; the 100 best per image and class count.
        backend: the library.

    Raises:
        UserError: the library is unknown or not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        run = _indexed(classes, images, objects, found, backend)
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"][:, None]  # (T, 101 or 1, K, 4 areas, 3 maxima)
    arrays = {"precision": precision, "recall": recall}
    numbers = {
        name: _mean_of_valid(arrays[array][ious, :, :, area, most])
        for name, (array, ious, area, most) in _COCO_NUMBERS.items()
    }
    per_class = {name: _mean_of_valid(precision[:, :, k, 0, 2]) for k, name in enumerate(classes)}
    curves = {name: precision[0, :, k, 0, 2].tolist() for k, name in enumerate(classes)}
    return numbers, per_class, {name: curve for name, curve in curves.items() if min(curve) > -1}


def match_images(
    classes: Sequence[str], images: int, objects: Objects, found: Found, backend: Backend = "auto"
) -> list[Mapping[str, Any]]:
    """Match detections with objects of all sizes at COCO's ten thresholds; arguments and errors as above.

    Returns:
        For each image and class with objects or detections: ``image_id`` and ``category_id``, which count from 1,
        ``dtScores`` (D), ``dtMatches`` and ``dtIgnore`` (10, D), and ``gtIgnore``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        run = _indexed(classes, images, objects, found, backend)
        run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = run.params.areaRng[:1], ["all"], [100]
        run.evaluate()
    return [each for each in run.evalImgs if each]


def _indexed(classes: Sequence[str], images: int, objects: Objects, found: Found, backend: Backend) -> Any:
    """Return the library's evaluation, ready to run."""
    coco_class, eval_class = _library(backend)
    index = _from_arrays if hasattr(coco_class, "from_arrays") else _from_rows
    return eval_class(*index(coco_class, classes, images, objects, found), "bbox")


def _library(backend: Backend) -> tuple[Any, Any]:
    """Import the classes COCO and COCOeval; both libraries use these names."""
    if backend in ("auto", "hotcoco"):
        with contextlib.suppress(ImportError):
            from hotcoco import COCO, COCOeval

            return COCO, COCOeval
    if backend in ("auto", "pycocotools"):
        with contextlib.suppress(ImportError):
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            return COCO, COCOeval
    if backend not in ("auto", "hotcoco", "pycocotools"):
        raise UserError(f'unknown evaluation backend {backend!r}; expected "auto", "hotcoco" or "pycocotools"')
    wanted = "hotcoco or pycocotools" if backend == "auto" else backend
    raise UserError(
        f"COCO's numbers need {wanted}, which cannot be imported. Install it: pip install {wanted.split()[0]}"
    )


# The ids of images, categories and annotations count from 1: in COCO's own code an object with id 0 is never found.


def _from_arrays(coco_class: Any, classes: Sequence[str], images: int, objects: Objects, found: Found) -> tuple:
    """Index objects and detections in hotcoco, without a dict for each."""
    truth = coco_class.from_arrays(
        [{"id": number} for number in range(1, images + 1)],
        [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
        objects.images + 1,
        objects.labels + 1,
        _annotated_boxes(objects),
        area=objects.areas,
        iscrowd=objects.ignore,
    )
    return truth, truth.load_res(np.column_stack([found.images + 1, found.boxes, found.scores, found.labels + 1]))


def _from_rows(coco_class: Any, classes: Sequence[str], images: int, objects: Objects, found: Found) -> tuple:
    """Index objects and detections in pycocotools."""
    shared = {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }
    indexed = []
    for fields in (
        {
            "image_id": objects.images + 1,
            "category_id": objects.labels + 1,
            "bbox": _annotated_boxes(objects),
            "area": objects.areas,
            "iscrowd": objects.ignore.astype(int),
        },
        {
            "image_id": found.images + 1,
            "category_id": found.labels + 1,
            "bbox": found.boxes,
            "area": found.boxes[:, 2:].prod(1),
            "iscrowd": np.zeros(len(found.scores), int),
            "score": found.scores,
        },
    ):
        rows = zip(*(values.tolist() for values in fields.values()), strict=True)
        annotations = [
            {"id": number, **dict(zip(fields, row, strict=True))} for number, row in enumerate(rows, start=1)
        ]
        one = coco_class()
        one.dataset = {**shared, "annotations": annotations}
        one.createIndex()
        indexed.append(one)
    return tuple(indexed)


def _annotated_boxes(objects: Objects) -> NDArray[np.float64]:
    """Return x, y, width and height; (x + w) - x differs from w in floating point, six decimals restore it."""
    corners = objects.corners
    return np.hstack([corners[:, :2], (corners[:, 2:] - corners[:, :2]).round(6)])


def _mean_of_valid(values: NDArray[np.float64]) -> float:
    """Average the entries that exist: COCO writes -1 if a class has no objects of a size."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan
