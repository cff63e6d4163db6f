"""The errors of several models on the same images: counts, costs in AP, and pictures side by side (FRS, Fig. 4)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Group
from rich.table import Table

from understudy import figures
from understudy.analysis.models import Device, Model, note_data, note_unknown, open_images, open_models, walk
from understudy.analysis.tide import BACKGROUND, FOREGROUND, KINDS, Costs, Detections, Judged, Objects, costs, judge
from understudy.data import Batch, DetectionData, Record, load_image
from understudy.errors import UserError
from understudy.evaluation import BATCH_SIZE, Detection, aliases_of, detections_of_batch, match_classes
from understudy.figures import Captioned, Cell
from understudy.outputs import Outputs
from understudy.text import percent

SCORE = 0.3
"""Lowest score of a detection that is counted and drawn; that of `understudy predict`."""

SHOWN = 4
"""Images that are drawn unless some are chosen by name."""

Order = Literal["difference", "errors"]
ORDERS: dict[str, Order] = {"difference": "difference", "errors": "errors"}

CAPTIONS = 8
"""Detections of a picture that have a caption, the best: more would hide the image."""

COLOURS = {
    "correct": "#59ec84",
    "localisation": "#0f9aee",
    "classification": "#a20f5d",
    "both": "#5919f0",
    "duplicate": "#fefd41",
    "background": "#9a4601",
    "missed": "#e4e6ea",
}
"""Of the types in pictures; they differ for red-green blind readers, too."""

MODEL_COLOURS = (figures.ROLE_COLOURS["teacher"], *figures.STUDENT_COLOURS)

FIGURES = ("errors", "errors_cost", "errors_images")

WORDS = {
    "correct": "correct",
    "localisation": "poor localisation",
    "classification": "wrong class",
    "both": "wrong class and place",
    "duplicate": "duplicate",
    "background": "background",
    "missed": "missed",
}
"""What pictures call the types."""

_SHORT: dict[str, str] = dict(zip(KINDS, KINDS, strict=True)) | {
    "classification": "class",
    "localisation": "local.",
    "background": "backgr.",
}


@dataclass(frozen=True, slots=True)
class ModelErrors:
    """The errors of one model.

    Attributes:
        name: of the model.
        correct: detections of at least the score that found an object.
        counts: errors of each type, among the detections of at least the score.
        ap50: COCO's AP50, 0..1, of all detections; None if not defined.
        cost: AP50, 0..1, that correcting all errors of a type would gain, over all detections.
    """

    name: str
    correct: int
    counts: dict[str, int]
    ap50: float | None
    cost: dict[str, float | None]


@dataclass(frozen=True)
class ErrorsResult:
    """The errors of several models.

    Attributes:
        images: number of images.
        objects: number of objects that count.
        score: lowest score of the detections that are counted and drawn.
        models: in the order given.
        shown: the images that are drawn, each a row of pictures.
        shown_names: their file names.
        notes: remarks that are needed to judge the numbers.
    """

    images: int
    objects: int
    score: float
    models: tuple[ModelErrors, ...]
    shown: tuple[tuple[Cell, ...], ...] = ()
    shown_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "images": self.images,
            "objects": self.objects,
            "score": self.score,
            "thresholds": {"foreground": FOREGROUND, "background": BACKGROUND},
            "models": [
                {"name": m.name, "correct": m.correct, "counts": m.counts, "AP50": m.ap50, "cost": m.cost}
                for m in self.models
            ],
            "shown": list(self.shown_names),
            "notes": list(self.notes),
        }

    def __rich__(self) -> Group:
        """Return two tables for the terminal: counts, and costs in AP50."""
        size = f"{self.images} images, {self.objects} objects"
        title = f"Errors of detections with a score of at least {self.score:g}: {size}"
        counts = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        price = Table(
            title="AP50 that each type costs (all detections)", title_justify="left", box=None, padding=(0, 2, 0, 0)
        )
        for table, second in ((counts, "correct"), (price, "AP50")):
            table.add_column("model")
            for name in (second, *_SHORT.values()):
                table.add_column(name, justify="right")
        for model in self.models:
            counts.add_row(model.name, str(model.correct), *(str(model.counts[kind]) for kind in KINDS))
            price.add_row(model.name, _percent(model.ap50), *(_percent(model.cost[kind]) for kind in KINDS))
        return Group(counts, "", price, *([""] if self.notes else []), *self.notes)

    def figures(self) -> dict[str, Captioned]:
        """Return the charts of counts and costs, and the pictures of the shown images."""
        names = [model.name for model in self.models]
        colours = figures.distinct_colours(names, MODEL_COLOURS)
        counts = figures.bar_chart(
            KINDS,
            {model.name: [model.counts[kind] for kind in KINDS] for model in self.models},
            colours,
            x_label="type of error",
            y_label=f"errors on {self.images} images",
            form=".0f",
        )
        price = figures.bar_chart(
            KINDS,
            {model.name: [_hundred(model.cost[kind]) for kind in KINDS] for model in self.models},
            colours,
            x_label="type of error",
            y_label="AP50 that it costs, in %",
            form=".1f",
        )
        drawn = {
            "errors": Captioned(
                counts,
                f"Errors by type (TIDE, ECCV 2020) among the detections with a score of at least {self.score:g}, and "
                f"missed objects, on {self.images} images with {self.objects} objects.",
            ),
            "errors_cost": Captioned(
                price,
                "AP50 that each type of error costs (TIDE's dAP): the gain if all errors of the type, and no others, "
                f"were corrected. Over all detections on {self.images} images. The costs do not add up.",
            ),
        }
        if self.shown:
            drawn["errors_images"] = Captioned(
                figures.sheet(self.shown, {WORDS[kind]: colour for kind, colour in COLOURS.items()}, width=3.0),
                f"Detections with a score of at least {self.score:g}, coloured by type of error; dashed: missed "
                f"objects. The {CAPTIONS} best have a caption, if there is room. Left: the ground truth.",
            )
        return drawn


class Errors:
    """Collects the detections of several models, batch by batch.

    Args:
        models: at least one.
        data: the images, with their ground truth.
    """

    def __init__(self, models: Sequence[Model], data: DetectionData):
        self.models, self.data = models, data
        self.category_ids = [
            match_classes(model.checkpoint.classes, data, aliases_of(model.checkpoint)) for model in models
        ]
        self.rows: dict[str, dict[int, list[Detection]]] = {model.name: {} for model in models}
        self.notes = [note_data(data), *note_unknown(models, data, "their objects count as missed.")]

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch."""
        for model, category_ids in zip(self.models, self.category_ids, strict=True):
            if model.name in outputs:
                by_image = self.rows[model.name]
                by_image |= {image_id: [] for image_id in batch.image_ids}
                detected = model.detector.detect(outputs[model.name], batch.image_sizes)
                found = detections_of_batch(detected, batch, category_ids)
                for row in found.rows():
                    by_image[row["image_id"]].append(row)

    @property
    def walked(self) -> dict[int, Record]:
        """The images that all models have seen, by id."""
        seen = set.intersection(*(set(rows) for rows in self.rows.values()))
        return {record.image_id: record for record in self.data.records if record.image_id in seen}

    def judged(self, score: float) -> dict[str, dict[int, tuple[Detections, Judged]]]:
        """Return the detections of at least a score, and the verdict on each, by model and image."""
        return {
            model: {
                i: (found := self._detections(rows[i]).above(score), judge(_objects(record), found))
                for i, record in self.walked.items()
            }
            for model, rows in self.rows.items()
        }

    def result(self, score: float = SCORE, shown: int = SHOWN, order: Order = "difference") -> ErrorsResult:
        """Judge the detections of the batches so far.

        Args:
            score: lowest score of a detection that is counted and drawn.
            shown: number of images to draw, the hardest.
            order: the hardest images are those in whose errors the models differ most, or with most errors.
        """
        truth = {i: _objects(record) for i, record in self.walked.items()}
        judged = self.judged(score)
        models = []
        for name, rows in self.rows.items():
            found = {i: self._detections(rows[i]) for i in truth}
            images = [(truth[i], each, judge(truth[i], each)) for i, each in found.items()]
            models.append(_summary(name, [each for _, each in judged[name].values()], costs(images)))
        errors = {i: [_errors(judged[name][i][1]) for name in judged] for i in truth}
        hardest = sorted(errors, key=lambda i: _hardness(errors[i], order))[:shown]
        return ErrorsResult(
            images=len(truth),
            objects=sum(int((~each.ignore).sum()) for each in truth.values()),
            score=score,
            models=tuple(models),
            shown=tuple(self.pictures(i, judged) for i in hardest),
            shown_names=tuple(self.walked[i].path.name for i in hardest),
            notes=tuple(self.notes),
        )

    def pictures(
        self,
        image_id: int,
        judged: Mapping[str, Mapping[int, tuple[Detections, Judged]]],
        unlabelled: Sequence[Sequence[float]] = (),
    ) -> tuple[Cell, ...]:
        """Draw an image with its ground truth, then with the detections of every model, coloured by type of error.

        Args:
            image_id: of an image that was walked.
            judged: from :meth:`judged`.
            unlabelled: boxes xyxy of known objects outside the label set, dashed in the ground truth.
        """
        record, classes = self.walked[image_id], self.data.classes
        pixels = load_image(record.path, (record.width, record.height)).permute(1, 2, 0).mul(255).round().byte().numpy()
        truth = _objects(record)
        real = ~truth.ignore
        names = [classes[label] for label in truth.labels[real]]
        others = np.array(unlabelled, dtype=float).reshape(-1, 4)
        drawn = figures.detection_picture(
            pixels, truth.boxes[real], names, ["#ffffff"] * len(names), dashed_boxes=others
        )
        models = (_cell(name, pixels, truth, *each[image_id], classes) for name, each in judged.items())
        return Cell("ground truth", record.path.name, drawn), *models

    def _detections(self, rows: Sequence[Detection]) -> Detections:
        label_of = {category: label for label, category in enumerate(self.data.category_ids)}
        boxes = np.array([row["bbox"] for row in rows], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label_of[row["category_id"]] for row in rows], dtype=int)
        return Detections.best_first(boxes, labels, np.array([row["score"] for row in rows], dtype=float))


def analyse_errors(
    models: Sequence[Path | str],
    data: Path | str | None = None,
    *,
    split: str | None = None,
    images: int | None = None,
    names: Sequence[str] = (),
    shown: int = SHOWN,
    order: Order = "difference",
    score: float = SCORE,
    device: Device = None,
    batch_size: int = BATCH_SIZE,
) -> ErrorsResult:
    """Classify the errors of several models on the same images, as TIDE does (:mod:`understudy.analysis.tide`).

    Args:
        models: checkpoints or run folders, for example of a teacher and its students.
        data: the data set; by default that of the first model whose data set exists.
        split: by default the validation split of that run.
        images: at most this many, evenly spread; None: all.
        names: names of images to analyse and draw, instead of the whole split.
        shown: number of images to draw if none are named.
        order: the images drawn are those in whose errors the models differ most, or those with most errors.
        score: lowest score, 0..1, of a detection that is counted and drawn. AP50 and costs are over all detections.
        device: by default a GPU if there is one.
        batch_size: images per batch.

    Raises:
        UserError: a checkpoint, the data set or a named image cannot be read, a model has no class in common with the
            data set, or the score is out of range.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {score:g}")
    opened = open_models(models)
    few = open_images(opened, data, split, images, names, argument="--data DATA")
    found = Errors(opened, few)
    walk(opened, few, [found], device=device, batch_size=batch_size)
    return found.result(score, len(names) or shown, order)


def _objects(record: Record) -> Objects:
    return Objects(record.boxes.numpy(), record.labels.numpy(), record.ignore.numpy())


def _errors(judged: Judged) -> int:
    wrong = sum(kind not in ("correct", "ignored") for kind in judged.kinds)
    return wrong + int(judged.missed.sum())


def _hardness(errors: Sequence[int], order: Order) -> tuple[int, int]:
    """Return the key by which images are sorted, hardest first, from the errors of each model."""
    spread, total = max(errors) - min(errors), sum(errors)
    return (-spread, -total) if order == "difference" and len(errors) > 1 else (-total, -spread)


def _summary(name: str, judged: Sequence[Judged], found: Costs) -> ModelErrors:
    counts = Counter(kind for each in judged for kind in each.kinds)
    counts["missed"] = sum(int(each.missed.sum()) for each in judged)
    cost = {kind: None if math.isnan(value) else value for kind, value in found.cost.items()}
    ap50 = None if math.isnan(found.ap50) else found.ap50
    return ModelErrors(name, counts["correct"], {kind: counts[kind] for kind in KINDS}, ap50, cost)


def _cell(
    model: str, pixels: np.ndarray, truth: Objects, detections: Detections, verdict: Judged, classes: Sequence[str]
) -> Cell:
    """Return the picture of a model's detections on one image (H, W, 3)."""
    drawn = [number for number, kind in enumerate(verdict.kinds) if kind != "ignored"]
    kinds = [verdict.kinds[number] for number in drawn]
    captions = [
        f"{classes[detections.labels[number]]} {detections.scores[number]:.2f}" if place < CAPTIONS else ""
        for place, number in enumerate(drawn)
    ]
    picture = figures.detection_picture(
        pixels,
        detections.boxes[drawn],
        captions,
        [COLOURS[kind] for kind in kinds],
        dashed_boxes=truth.boxes[verdict.missed],
        dashed_colour=COLOURS["missed"],
    )
    return Cell(model, _words(kinds, int(verdict.missed.sum())), picture)


def _words(kinds: Sequence[str], missed: int) -> str:
    counts = Counter(kinds) + Counter({"missed": missed})
    return ", ".join(f"{counts[kind]} {WORDS[kind]}" for kind in ("correct", *KINDS) if counts[kind])


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _hundred(value: float | None) -> float:
    return math.nan if value is None else 100 * value
