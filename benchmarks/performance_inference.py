"""Rows of ``performance.py`` about inference: evaluating a detector, predicting, and scoring detections.

What is called "before" is restated here: one image at a time in PyTorch's default memory format, a dict for each
detection, and VOC's rules in a loop over images and classes.
"""

import gc
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import COCO, COCOeval
from performance_rows import Row, ratio

from understudy.checkpoints import load_checkpoint
from understudy.data import DetectionData, Record, load_image, open_data
from understudy.data.scenes import make_scenes
from understudy.detectors.base import evaluating
from understudy.evaluation import Detections, evaluate, loader_at_evaluation_size, score, to_original_pixels
from understudy.evaluation.drawing import draw_detections
from understudy.evaluation.prediction import predict

ROUNDS = 5
SCENES, SIZE = 200, 96
IMAGES, PER_IMAGE, CLASSES = 5000, 100, 80


def rows() -> Iterator[Row]:
    """Measure evaluate and predict on the demo's teacher and scenes, and score on made-up detections."""
    with tempfile.TemporaryDirectory() as folder, as_file(files("understudy") / "demo_teacher") as teacher:
        scenes = make_scenes(Path(folder) / "scenes", train=1, val=SCENES, size=SIZE, seed=0)
        yield from _evaluating(teacher, scenes)
        yield from _predicting(teacher, scenes, Path(folder))
    yield from _scoring()


def _evaluating(teacher: Path, scenes: Path) -> Iterator[Row]:
    now = partial(evaluate, teacher, scenes, split="val", device="cpu", workers=0)
    gain = ratio(partial(evaluate_before, teacher, scenes), now, ROUNDS)
    what = f"evaluate, {SCENES} scenes of {SIZE} pixels: before / now"
    yield Row(what, gain, 2, at_least=True, note="the demo's teacher, from its checkpoint to the numbers; batches of 8")
    alone, together = now(batch_size=1), now()
    off = max(abs(alone.coco[name] - together.coco[name]) for name in alone.coco)
    off = max(off, *(abs(alone.per_class[name] - together.per_class[name]) for name in alone.per_class))
    yield Row("largest difference of a COCO number, batches of 8 and of 1", off, 1e-6, unit="", note="of 0..1")


def _predicting(teacher: Path, scenes: Path, folder: Path) -> Iterator[Row]:
    numbers = iter(range(100))

    def new() -> Path:
        return folder / str(next(numbers))

    now = lambda: predict(teacher, scenes, new(), split="val", device="cpu", workers=0)  # noqa: E731
    gain = ratio(lambda: predict_before(teacher, scenes, new()), now, ROUNDS)
    yield Row(f"predict, the same {SCENES} scenes: before / now", gain, note="with drawing and writing each image")


def _scoring() -> Iterator[Row]:
    data, found = made_up(IMAGES, PER_IMAGE, CLASSES)
    arrays, matrix, ready = Detections.of_rows(found), _matrix(found), data.to_coco()
    gc.collect()
    gc.freeze()  # otherwise each collection visits all rows, which is most of the time of whatever makes dicts
    from_rows, from_matrix = (lambda truth: truth.load_res(found)), (lambda truth: truth.load_res(matrix))
    of_split = lambda: hotcoco_alone(data.to_coco(), from_rows)  # noqa: E731
    of_dicts, of_arrays = partial(hotcoco_alone, ready, from_rows), partial(hotcoco_alone, ready, from_matrix)
    of_score, of_score_arrays = partial(score, data, found), partial(score, data, arrays)
    case = f"{IMAGES} images x {PER_IMAGE} detections x {CLASSES} classes"
    for what, ours, theirs, note in (
        (
            f", {case}",
            of_score,
            of_split,
            "both from the split and rows; hotcoco: `to_coco`, `COCO`, `load_res`, `evaluate`, `accumulate`",
        ),
        (", arrays", of_score_arrays, of_dicts, "score as `evaluate` calls it; hotcoco from ready dicts and rows"),
        (", rows and ready dicts", of_score, of_dicts, "hotcoco without `to_coco`"),
        (", both from arrays", of_score_arrays, of_arrays, "hotcoco: `load_res` of an array, without `to_coco`"),
    ):
        yield Row(f"score / hotcoco alone{what}", ratio(ours, theirs, ROUNDS), 1.2, note=note)
    yield Row("score from rows: before / now", ratio(partial(score_before, data, found), of_score, ROUNDS))
    gc.unfreeze()


def made_up(images: int, per_image: int, classes: int) -> tuple[DetectionData, list[dict[str, Any]]]:
    """Return a split of 1 to 13 objects per image, 3 % of them ignored, and detections near them as rows."""
    rng = np.random.default_rng(0)
    records, found = [], []
    for number in range(1, images + 1):
        count = int(rng.integers(1, 14))
        corner, size = rng.uniform(0, 500, (count, 2)), rng.uniform(8, 200, (count, 2))
        boxes, labels = np.hstack([corner, corner + size]), rng.integers(0, classes, count)
        records.append(
            Record(
                image_id=number,
                path=Path(f"{number}.jpg"),
                width=700,
                height=700,
                boxes=torch.from_numpy(boxes),
                labels=torch.from_numpy(labels),
                ignore=torch.from_numpy(rng.random(count) < 0.03),
                areas=torch.from_numpy(size.prod(1)),
                annotation_ids=torch.arange(count) + 14 * number,
            )
        )
        near = rng.integers(0, count, per_image)
        moved = np.hstack([corner, size])[near] + rng.normal(0, 8, (per_image, 4))
        mine = np.where(rng.random(per_image) < 0.6, labels[near], rng.integers(0, classes, per_image)) + 1
        scores = np.sort(rng.random(per_image, np.float32))[::-1]
        for box, category, sure in zip(moved.tolist(), mine.tolist(), scores.tolist(), strict=True):
            box = [*box[:2], max(box[2], 1.0), max(box[3], 1.0)]
            found.append({"image_id": number, "category_id": category, "bbox": box, "score": sure})
    names = tuple(f"class {label}" for label in range(classes))
    ids = tuple(range(1, classes + 1))
    return DetectionData(names, ids, tuple(records), "coco", Path("made up"), "val"), found


def hotcoco_alone(content: dict[str, Any], load: Callable[[COCO], COCO]) -> None:
    """Index a COCO dict and the detections, and compute hotcoco's arrays of precision and recall."""
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    run = COCOeval(truth, load(truth), "bbox")
    run.evaluate()
    run.accumulate()


def _matrix(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[row["image_id"], *row["bbox"], row["score"], row["category_id"]] for row in found])


# --- before -----------------------------------------------------------------------------------------------------------


def evaluate_before(teacher: Path, scenes: Path) -> None:
    """Evaluate one image at a time."""
    checkpoint, data = load_checkpoint(teacher), open_data(scenes, "val")
    score_before(data, detect_before(checkpoint, data))


def predict_before(teacher: Path, scenes: Path, output: Path) -> None:
    """Decode every image to check it, again to detect, and again to draw."""
    checkpoint, data = load_checkpoint(teacher), open_data(scenes, "val")
    for record in data.records:
        load_image(record.path, (record.width, record.height))
    found = detect_before(checkpoint, data)
    (output / "images").mkdir(parents=True)
    (output / "detections.json").write_text(json.dumps(found, indent=1))
    names, by_image = dict(zip(data.category_ids, data.classes, strict=True)), defaultdict(list)
    for row in found:
        by_image[row["image_id"]].append(row)
    for record in data.records:
        image = load_image(record.path, (record.width, record.height))
        draw_detections(image, by_image[record.image_id], names, 0.3).save(output / "images" / record.path.name)


@torch.no_grad()
def detect_before(checkpoint: Any, data: DetectionData) -> list[dict[str, Any]]:
    """Detect in batches of one, and make a dict of each detection."""
    found, detector = [], checkpoint.detector
    with evaluating(detector):
        for batch in loader_at_evaluation_size(data, checkpoint.config):
            one = detector.detect(detector(batch.images, batch.image_sizes), batch.image_sizes)[0]
            corners = to_original_pixels(one["boxes"], batch.image_sizes[0], batch.original_sizes[0]).double()
            xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
            found += [
                {"image_id": batch.image_ids[0], "category_id": data.category_ids[label], "bbox": box, "score": sure}
                for box, sure, label in zip(xywh.tolist(), one["scores"].tolist(), one["labels"].tolist(), strict=True)
            ]
    return found


def score_before(data: DetectionData, found: list[dict[str, Any]]) -> None:
    """Score with dicts for hotcoco, and VOC's rules image by image and class by class."""
    truth, results = COCO(), COCO()
    content = data.to_coco()
    content["annotations"] = [row | {"id": number} for number, row in enumerate(content["annotations"], start=1)]
    truth.dataset = content
    results.dataset = content | {
        "annotations": [
            row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for number, row in enumerate(found, start=1)
        ]
    }
    run = COCOeval(truth, results, "bbox")
    run.evaluate()
    run.accumulate()
    objects: list[dict[int, Any]] = [{} for _ in data.classes]
    for record in data.records:
        boxes, labels, ignore = record.boxes.numpy(), record.labels.numpy(), record.ignore.numpy()
        for label in np.unique(labels):
            objects[label][record.image_id] = boxes[labels == label], ignore[labels == label]
    by_category = defaultdict(list)
    for row in found:
        by_category[row["category_id"]].append(row)
    for category, mine in zip(data.category_ids, objects, strict=True):
        _matches_before(by_category[category], mine)


def _matches_before(found: list[dict[str, Any]], objects: dict[int, Any]) -> None:
    found = sorted(found, key=lambda row: (-row["score"], row["image_id"]))
    right, wrong = np.zeros(len(found), bool), np.ones(len(found), bool)
    places = defaultdict(list)
    for place, row in enumerate(found):
        places[row["image_id"]].append(place)
    for image_id, mine in places.items():
        if image_id not in objects:
            continue
        boxes, ignore = objects[image_id]
        xywh = np.array([found[place]["bbox"] for place in mine])[:, None]
        sides = np.minimum(boxes[:, 2:], xywh[..., :2] + xywh[..., 2:]) - np.maximum(boxes[:, :2], xywh[..., :2])
        shared = sides.clip(0).prod(2)
        overlaps = shared / (xywh[..., 2:].prod(2) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)
        taken = set()
        for place, nearest, overlap in zip(mine, overlaps.argmax(1).tolist(), overlaps.max(1).tolist(), strict=True):
            if overlap >= 0.5:
                right[place] = not ignore[nearest] and nearest not in taken
                wrong[place] = not ignore[nearest] and nearest in taken
                taken.add(nearest)
    right.cumsum(), wrong.cumsum()
