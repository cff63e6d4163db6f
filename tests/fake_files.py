"""Exported files made up for tests: their facts, and a runtime that finds the same box in every image."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from understudy.evaluation.models import Runnable, of_file
from understudy.evaluation.runtimes import Facts, FileRuntime


def facts(**changes) -> Facts:
    """Facts of a file of any size with the classes of the drawn scenes."""
    known = {
        "classes": ("cat", "dog"),
        "category_ids": (1, 2),
        "detector": "fcos_mobilenet_v2",
        "conventions": "torchvision",
        "input": "float32",
        "raw": False,
        "size": None,
        "batch": None,
        "resize": {"shorter_side": 64, "longer_side": 64},
        "mean": (0.5, 0.5, 0.5),
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "detections": 3,
        "AP": None,
        "opset": 18,
        "licence": None,
    }
    return Facts(**known | changes)


def runtime(seconds: float = 0.0, name: str = "Fake 1.0 (CPU)", **changes) -> FileRuntime:
    """A runtime that takes some time for an image, and records the inputs that it got in ``infer.seen``."""

    def infer(images: np.ndarray) -> Sequence[np.ndarray]:
        infer.seen.append(images)
        time.sleep(seconds * len(images))
        count = len(images)
        boxes = np.zeros((count, 3, 4), np.float32)
        boxes[:, 0] = 5, 5, 25, 25
        scores = np.zeros((count, 3), np.float32)
        scores[:, 0] = 0.9
        labels = np.full((count, 3), -1)
        labels[:, 0] = 0
        return boxes, scores, labels, np.ones(count, np.int64)

    infer.seen = []
    return FileRuntime(facts(**changes), name, infer)


def runnable(path: Path | str, seconds: float = 0.0, **changes) -> Runnable:
    """A file that is there, if only as an empty one, opened."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return of_file(path, runtime(seconds, **changes))
