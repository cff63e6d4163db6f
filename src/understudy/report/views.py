"""What a report shows, taken from run folders, checkpoints and data: numbers, detections and richness masks."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from understudy.checkpoints import load_checkpoint
from understudy.data import Batch, DetectionData, evaluation_loader
from understudy.data.scenes import read_unlabelled
from understudy.detectors import Detector
from understudy.functional import feature_richness
from understudy.runs import RunFolder, read_rows

Array = NDArray[np.floating]
Role = Literal["teacher", "plain", "distilled"]

_POSITION_COLUMNS = ("epoch", "step", "lr")  # of losses.csv: where in the run, not how well


@dataclass(frozen=True, slots=True)
class RunView:
    """One run, as its folder tells it.

    Attributes:
        name: what the report calls it; no other run has it.
        group: the name that it shares with runs which differ in the seed only; they have one colour.
        role: the teacher, a plain student, or a distilled one.
        folder: the run folder.
        result: the content of ``result.json``; ``coco`` and ``per_class`` in 0..1.
        metrics: the columns of ``metrics.csv``, each (P,).
        losses: the columns of ``losses.csv``, each (P,); nan where a row has no value.
        environment: the content of ``environment.json``.
        config: the resolved config.
        config_text: the same, as the YAML that lies in the folder.
    """

    name: str
    group: str
    role: Role
    folder: Path
    result: Mapping[str, Any]
    metrics: Mapping[str, Array] = field(default_factory=dict)
    losses: Mapping[str, Array] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""

    @property
    def loss_terms(self) -> list[str]:
        """The named losses, the total first."""
        weights = {f"{name}_weight" for name in self.losses}
        return [name for name in self.losses if name not in _POSITION_COLUMNS and name not in weights]

    @property
    def terms(self) -> list["TermView"]:
        """What each loss of a distilled run was worth at its beginning and at its end; of other runs none."""
        terms = [name for name in self.loss_terms if name not in ("total", "distillation_share")]
        if not any(f"{name}_weight" in self.losses for name in terms):
            return []
        epochs = self.losses["epoch"]
        first, last = epochs <= max(1, epochs.min()), epochs > epochs.max() - 1
        return [
            TermView(
                name,
                first=float(np.nanmean(self.losses[name][first])),
                last=float(np.nanmean(self.losses[name][last])),
                weight=float(weights[-1]) if (weights := self.losses.get(f"{name}_weight")) is not None else None,
            )
            for name in terms
        ]


@dataclass(frozen=True, slots=True)
class TermView:
    """One named loss of a distilled run.

    Attributes:
        name: of the loss.
        first: its mean, unweighted, over the logged steps of the first epoch.
        last: likewise, of the last epoch.
        weight: what it is multiplied by at the end; None: one of the student's own losses, which counts as it is.
    """

    name: str
    first: float
    last: float
    weight: float | None

    @property
    def weighted(self) -> float:
        """What it adds to the total at the end."""
        return self.last * (1.0 if self.weight is None else self.weight)


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        boxes: (M, 4) xyxy in pixels of the shown image.
        names: the class of each.
        scores: of each, 0..1; none for ground truth.
    """

    boxes: Array
    names: tuple[str, ...]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ExampleView:
    """One validation image with its ground truth and what each run detects in it.

    Attributes:
        image: (H, W, 3) uint8, as the first of the detectors sees it.
        truth: the labelled objects.
        unlabelled: (U, 4) xyxy of known objects outside the label set.
        detections: by the name of the run, those above the threshold, best first.
        score_threshold: 0..1.
    """

    image: NDArray[np.uint8]
    truth: Boxes
    unlabelled: Array
    detections: Mapping[str, Boxes]
    score_threshold: float


@dataclass(frozen=True, slots=True)
class RichnessView:
    """The teacher's feature richness over one image.

    Attributes:
        image, boxes, unlabelled: as in :class:`ExampleView`; the boxes are those of the labelled objects.
        levels: of each pyramid level, fine to coarse, the richness (h, w) in 0..1.
        strides: pixels per cell of each level.
    """

    image: NDArray[np.uint8]
    boxes: Array
    unlabelled: Array
    levels: tuple[Array, ...]
    strides: tuple[int, ...]


def view_runs(table: Mapping[str, Any]) -> list[RunView]:
    """Read the run folders of a comparison, in its order and under its names.

    Args:
        table: ``Table.to_dict()`` of :func:`understudy.results.summarise`.

    Raises:
        UserError: one of the folders is not a run folder.
    """
    views = []
    for row in table["rows"]:
        for folder, seed in zip(row["folders"], row["seeds"], strict=True):
            name = row["name"] if len(row["folders"]) == 1 else f"{row['name']}, seed {seed}"
            views.append(view_run(Path(folder), name=name, group=row["name"], role=row["role"]))
    return views


def view_run(folder: Path, *, name: str, group: str, role: Role) -> RunView:
    """Read what a run folder tells; files that a young run does not have yet are taken as empty.

    Raises:
        UserError: the folder is not a run folder.
    """
    run = RunFolder.open(folder)
    config_text = run.config.read_text(encoding="utf-8")
    return RunView(
        name=name,
        group=group,
        role=role,
        folder=folder,
        result=_read_json(run.result),
        metrics=_read_columns(run.metrics),
        losses=_read_columns(run.losses),
        environment=_read_json(run.environment),
        config=yaml.safe_load(config_text),
        config_text=config_text,
    )


def one_of_each_role(runs: Sequence[RunView]) -> list[RunView]:
    """The first teacher, plain and distilled run, in this order: enough to look at side by side."""
    roles: tuple[Role, ...] = ("teacher", "plain", "distilled")
    return [next(run for run in runs if run.role == role) for role in roles if any(run.role == role for run in runs)]


@torch.no_grad()
def view_examples(
    runs: Sequence[RunView],
    data: DetectionData,
    *,
    count: int = 6,
    score_threshold: float = 0.3,
    device: str | torch.device = "cpu",
) -> list[ExampleView]:
    """Run the best checkpoint of each run on the first images of a data set.

    The images are not chosen by their result, so that what is shown is what is to be expected.

    Raises:
        UserError: a run has no checkpoint that can be read.
    """
    few = dataclasses.replace(data, records=data.records[:count])
    unlabelled = read_unlabelled(data.source)
    examples: list[ExampleView] = []
    for run in runs:
        checkpoint = load_checkpoint(run.folder)
        detector = checkpoint.detector.to(device).eval()
        for number, batch in enumerate(_single_images(few, checkpoint.config)):
            if number == len(examples):
                image, truth, others = _shown(batch, data, unlabelled)
                examples.append(ExampleView(image, truth, others, {}, score_threshold))
            example = examples[number]
            found = _detect(detector, batch.to(device), checkpoint.classes, score_threshold)
            height, width = batch.image_sizes[0]
            shown_height, shown_width = example.image.shape[:2]
            scale = np.array([shown_width / width, shown_height / height] * 2)
            found = dataclasses.replace(found, boxes=found.boxes * scale)
            examples[number] = dataclasses.replace(example, detections={**example.detections, run.name: found})
    return examples


@torch.no_grad()
def view_richness(
    teacher: RunView, data: DetectionData, *, count: int = 16, device: str | torch.device = "cpu"
) -> list[RichnessView]:
    """The teacher's feature richness of the first images; those with known unlabelled objects where there are any.

    Richness is what FRS weighs its losses with (NeurIPS 2021, Eq. 5): in every cell, the highest class score.

    Raises:
        UserError: the teacher's run has no checkpoint that can be read.
    """
    unlabelled = read_unlabelled(data.source)
    records = [record for record in data.records if record.image_id in unlabelled] or list(data.records)
    few = dataclasses.replace(data, records=tuple(records[:count]))
    checkpoint = load_checkpoint(teacher.folder)
    detector = checkpoint.detector.to(device).eval()
    views = []
    for batch in _single_images(few, checkpoint.config):
        batch = batch.to(device)
        outputs = detector(batch.images, batch.image_sizes)
        image, truth, others = _shown(batch, data, unlabelled)
        height, width = image.shape[:2]
        levels = [
            feature_richness(logits)[0, : -(-height // stride), : -(-width // stride)].float().cpu().numpy()
            for logits, stride in zip(outputs.class_logits, detector.spec.strides, strict=True)
        ]
        views.append(RichnessView(image, truth.boxes, others, tuple(levels), detector.spec.strides))
    return views


def box_mask(boxes: Array, height: int, width: int) -> NDArray[np.bool_]:
    """Which pixels lie in a box: (M, 4) xyxy to (H, W)."""
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in np.round(boxes).astype(int):
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


def in_pixels(level: Array, stride: int, height: int, width: int) -> Array:
    """A level's map (h, w) with every cell spread over its pixels, cut to the image (height, width)."""
    return np.repeat(np.repeat(level, stride, axis=0), stride, axis=1)[:height, :width]


def share_outside(view: RichnessView, level: int) -> float:
    """The part of a level's richness, 0..1, that lies outside every ground-truth box."""
    height, width = view.image.shape[:2]
    richness = in_pixels(view.levels[level], view.strides[level], height, width)
    return float(richness[~box_mask(view.boxes, height, width)].sum() / richness.sum())


def richness_by_place(views: Sequence[RichnessView]) -> dict[str, float]:
    """The mean richness in labelled boxes, in unlabelled ones and elsewhere, of the richest level at every pixel.

    A place that occurs in none of the images is left out.
    """
    places: dict[str, list[Array]] = {"labelled objects": [], "unlabelled look-alikes": [], "elsewhere": []}
    for view in views:
        height, width = view.image.shape[:2]
        richest = np.max(
            [in_pixels(level, stride, height, width) for level, stride in zip(view.levels, view.strides, strict=True)],
            axis=0,
        )
        labelled = box_mask(view.boxes, height, width)
        alike = box_mask(view.unlabelled, height, width) & ~labelled
        for place, mask in zip(places, (labelled, alike, ~labelled & ~alike), strict=True):
            places[place].append(richest[mask])
    joined = {place: np.concatenate(values) for place, values in places.items() if values}
    return {place: float(values.mean()) for place, values in joined.items() if values.size}


def count_right(found: Boxes, truth: Boxes, overlap: float = 0.5) -> int:
    """How many objects are found: right class, intersection over union of at least ``overlap``, each object once."""
    free = set(range(len(truth.names)))
    for box, name in zip(found.boxes, found.names, strict=True):
        candidates = [(_overlap(box, truth.boxes[other]), other) for other in free if truth.names[other] == name]
        best, other = max(candidates, default=(0.0, -1))
        if best >= overlap:
            free.remove(other)
    return len(truth.names) - len(free)


def _overlap(first: Array, second: Array) -> float:
    """Intersection over union of two boxes xyxy."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.clip(sides, 0, None)))
    return shared / (float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - shared)


def _single_images(data: DetectionData, config: Mapping[str, Any]):
    """The images of a data set one by one, at the size at which a checkpoint is evaluated."""
    sizes = config["data"]
    return evaluation_loader(
        data, batch_size=1, shorter_side=sizes["shorter_side"][-1], longer_side=sizes["longer_side"]
    )


def _shown(batch: Batch, data: DetectionData, unlabelled: Mapping[int, list]) -> tuple[NDArray[np.uint8], Boxes, Array]:
    """The image of a batch of one as the network sees it, without padding; its ground truth, and the other objects."""
    height, width = batch.image_sizes[0]
    pixels = batch.images[0, :, :height, :width].permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
    names = tuple(data.classes[label] for label in batch.targets[0]["labels"].tolist())
    truth = Boxes(batch.targets[0]["boxes"].cpu().numpy(), names)
    original_height, original_width = batch.original_sizes[0]
    scale = np.array([width / original_width, height / original_height] * 2)
    others = np.array(unlabelled.get(batch.image_ids[0], []), dtype=float).reshape(-1, 4) * scale
    return pixels, truth, others


def _detect(detector: Detector, batch: Batch, classes: Sequence[str], score_threshold: float) -> Boxes:
    """The detections of a batch of one above a score, best first, in pixels of the padded batch."""
    found = detector.detect(detector(batch.images, batch.image_sizes), batch.image_sizes)[0]
    order = found["scores"].argsort(descending=True)
    order = order[found["scores"][order] >= score_threshold]
    return Boxes(
        boxes=found["boxes"][order].cpu().numpy(),
        names=tuple(classes[label] for label in found["labels"][order].tolist()),
        scores=tuple(found["scores"][order].tolist()),
    )


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _read_columns(file: Path) -> dict[str, Array]:
    """The columns of a CSV of numbers; an empty cell is nan, a missing file has no columns."""
    rows = read_rows(file)
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
