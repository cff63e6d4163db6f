"""COCO's 12 numbers and the AP of each class, computed by hotcoco or pycocotools."""

import contextlib
import io
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from understudy.data import DetectionData
from understudy.errors import UserError
from understudy.evaluation.detections import Detection

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
    data: DetectionData, detections: list[Detection], backend: Backend = "auto"
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute COCO's 12 numbers, and the AP of each class by name; 0..1, nan if not defined.

    Args:
        data: the split.
        detections: rows of COCO's results format; the 100 best per image and class count.
        backend: the library.

    Raises:
        UserError: the library is unknown or not installed.
    """
    coco_class, eval_class = _library(backend)
    truth = data.to_coco()
    # New ids from 1: in COCO's own code an object with id 0 counts as never found.
    truth["annotations"] = [row | {"id": number} for number, row in enumerate(truth["annotations"], start=1)]
    found = {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": [
            row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for number, row in enumerate(detections, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        run = eval_class(_index(coco_class, truth), _index(coco_class, found), "bbox")
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"][:, None]  # (T, 101 or 1, K, 4 areas, 3 maxima)
    arrays = {"precision": precision, "recall": recall}
    numbers = {
        name: _mean_of_valid(arrays[array][ious, :, :, area, most])
        for name, (array, ious, area, most) in _COCO_NUMBERS.items()
    }
    by_category = {category: _mean_of_valid(precision[:, :, k, 0, 2]) for k, category in enumerate(run.params.catIds)}
    per_class = {name: by_category[i] for name, i in zip(data.classes, data.category_ids, strict=True)}
    return numbers, per_class


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


def _index(coco_class: Any, content: dict[str, Any]) -> Any:
    index = coco_class()
    index.dataset = content
    index.createIndex()
    return index


def _mean_of_valid(values: NDArray[np.float64]) -> float:
    """Average the entries that exist: COCO writes -1 if a class has no objects of a size."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan
