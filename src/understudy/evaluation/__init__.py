"""Measure detectors: COCO's 12 numbers, average precision per class, and PASCAL VOC's AP50.

``docs/evaluation.md`` defines every number.
"""

from understudy.evaluation.coco import Backend
from understudy.evaluation.detections import (
    Detection,
    choose_device,
    detect_all,
    gather_detections,
    loader_at_evaluation_size,
    match_classes,
    open_split,
    rows_of_batch,
    to_original_pixels,
    with_progress,
)
from understudy.evaluation.measure import evaluate, score
from understudy.evaluation.result import Evaluation
from understudy.evaluation.voc import voc_average_precision

__all__ = [
    "Backend",
    "Detection",
    "Evaluation",
    "choose_device",
    "detect_all",
    "evaluate",
    "gather_detections",
    "loader_at_evaluation_size",
    "match_classes",
    "open_split",
    "rows_of_batch",
    "score",
    "to_original_pixels",
    "voc_average_precision",
    "with_progress",
]
