"""Splits and detections made up for tests: a few boxes, rows of COCO's results format, no image files."""

from pathlib import Path

import numpy as np
import torch

from understudy.data import DetectionData, Record


def make_split(images: list[dict], classes=("cat", "dog"), category_ids=None) -> DetectionData:
    """A split from one dict per image: ``boxes`` (xyxy), ``labels``, optionally ``ignore``; image ids 0, 10, 20, ..."""
    records, next_id = [], 0  # annotation ids from 0 on purpose: COCO's own code trips over an object with id 0
    for number, image in enumerate(images):
        boxes = torch.tensor(image.get("boxes", []), dtype=torch.float32).reshape(-1, 4)
        count = len(boxes)
        records.append(
            Record(
                image_id=10 * number,
                path=Path(f"{number}.jpg"),
                width=400,
                height=400,
                boxes=boxes,
                labels=torch.tensor(image.get("labels", [0] * count), dtype=torch.int64),
                ignore=torch.tensor(image.get("ignore", [False] * count), dtype=torch.bool),
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                annotation_ids=torch.arange(next_id, next_id + count),
            )
        )
        next_id += count
    category_ids = tuple(category_ids or range(1, len(classes) + 1))
    return DetectionData(tuple(classes), category_ids, tuple(records), "coco", Path("somewhere"), "val")


def detection(image: int, box: list[float], score: float, category: int = 1) -> dict:
    """A detection on the image of this number, from a box xyxy."""
    x1, y1, x2, y2 = map(float, box)
    return {"image_id": 10 * image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def random_case(seed: int, *, images: int = 6, most: int = 12) -> tuple[DetectionData, list[dict]]:
    """Objects of two of three classes, some ignored, one image empty, and detections near them with scores that tie."""
    rng = np.random.default_rng(seed)
    classes, category_ids = ("cat", "dog", "never seen"), (3, 7, 90)
    content, rows = [], []
    for number in range(images):
        count = 0 if number == 1 else int(rng.integers(1, most))
        corners = rng.integers(0, 200, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 150, (count, 2))], axis=1)
        labels = rng.integers(0, 2, count)
        content.append({"boxes": boxes.tolist(), "labels": labels.tolist(), "ignore": (rng.random(count) < 0.2)})
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(int(rng.integers(0, 4))):
                moved = box + rng.integers(-6, 7, 4) * [1, 1, 0, 0]
                rows.append(detection(number, moved, round(float(rng.random()), 1), category_ids[label]))
        for _ in range(int(rng.integers(0, 5))):
            x, y = rng.integers(0, 200, 2)
            score, category = round(float(rng.random()), 1), int(rng.choice([3, 7, 90]))
            rows.append(detection(number, [x, y, x + 30, y + 40], score, category))
    return make_split(content, classes, category_ids), rows
