"""Measure detectors: COCO's 12 numbers, average precision per class, and PASCAL VOC's AP50.

``docs/evaluation.md`` defines every number.
"""

from understudy.evaluation.arrays import Detection, Detections
from understudy.evaluation.coco import Backend
from understudy.evaluation.detections import (
    BATCH_SIZE,
    aliases_of,
    choose_device,
    default_workers,
    detect_all,
    detect_with,
    detections_of_batch,
    gather_detections,
    loader_at_evaluation_size,
    match_classes,
    on_device,
    open_split,
    to_original_pixels,
    with_progress,
)
from understudy.evaluation.inferring import Precision
from understudy.evaluation.measure import evaluate, score
from understudy.evaluation.result import Evaluation
from understudy.evaluation.voc import voc_average_precision

__all__ = [
    "BATCH_SIZE",
    "Backend",
    "Detection",
    "Detections",
    "Evaluation",
    "Precision",
    "aliases_of",
    "choose_device",
    "default_workers",
    "detect_all",
    "detect_with",
    "detections_of_batch",
    "evaluate",
    "gather_detections",
    "loader_at_evaluation_size",
    "match_classes",
    "on_device",
    "open_split",
    "score",
    "to_original_pixels",
    "voc_average_precision",
    "with_progress",
]
