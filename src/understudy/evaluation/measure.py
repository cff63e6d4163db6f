"""Measure a detector: compare its detections with the ground truth of a split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from understudy.class_matching import NO_ALIASES, Aliases, check_aliases, match_names, renamed
from understudy.data import DetectionData, Limits
from understudy.data.dataset import Location
from understudy.data.digests import digest_of_split
from understudy.evaluation.arrays import Detection, Detections, Found, Objects
from understudy.evaluation.coco import Backend, coco_numbers
from understudy.evaluation.confusion import SCORE, confusion_matrix
from understudy.evaluation.detections import (
    BATCH_SIZE,
    aliases_of,
    default_workers,
    detect_with,
    loader_at_evaluation_size,
    match_classes,
    open_split,
    with_progress,
)
from understudy.evaluation.inferring import Precision
from understudy.evaluation.models import Runnable, open_runnable
from understudy.evaluation.result import Evaluation
from understudy.evaluation.voc import voc_numbers


def evaluate(
    checkpoint: Path | str,
    data: Location | None = None,
    *,
    split: str | None = None,
    limits: Limits | None = None,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    precision: Precision = "32",
    backend: Backend = "auto",
    score_threshold: float = SCORE,
    aliases: Aliases | None = None,
) -> Evaluation:
    """Evaluate a trained detector on a data set, at the image size that it was trained for.

    Args:
        checkpoint: a checkpoint, a run folder (its best checkpoint), or an exported file (.onnx, .xml). A student of a
            run with ``quantise`` is measured in simulated INT8, as in its run.
        data: the data set; by default the one of the training run. Required for an imported detector.
        split: by default the validation split of the training run.
        limits: of the data set; by default those of the training run.
        device: by default a GPU if there is one.
        batch_size: images per batch. A batch has images of one padded size, so it changes no detection by more than
            the rounding of the arithmetic.
        workers: processes that load images; by default see :func:`.default_workers`.
        precision: of the arithmetic.
        backend: see :func:`score`.
        score_threshold: lowest score of a detection that counts for the confusion matrix, 0..1.
        aliases: other names of classes, the detector's and the data set's in either order; by default those of the
            training run.

    Raises:
        UserError: the checkpoint or the data set cannot be read, they have no class in common, or the device does not
            have the precision.
    """
    loaded = open_runnable(checkpoint, device, precision, quantised=True)
    opened = open_split(loaded, data, split, limits)
    if aliases is None:
        aliases = aliases_of(loaded)
    else:
        check_aliases(aliases, loaded.classes, opened.classes, "--alias")
    return replace(
        evaluate_opened(loaded, opened, aliases, batch_size, workers, backend, score_threshold),
        checkpoint=str(checkpoint),
    )


def evaluate_opened(
    detector: Runnable,
    data: DetectionData,
    aliases: Aliases = NO_ALIASES,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    backend: Backend = "auto",
    score_threshold: float = SCORE,
) -> Evaluation:
    """Evaluate an opened detector on an opened split; see :func:`evaluate`."""
    places = match_names(detector.classes, data.classes, aliases)
    category_ids = match_classes(detector.classes, data, aliases)
    workers = default_workers(len(data)) if workers is None else workers
    loader = loader_at_evaluation_size(data, detector.config, batch_size=batch_size, workers=workers)
    found = detect_with(detector.runtime, with_progress(loader, "evaluating"), category_ids)
    return replace(
        score(data, found, backend, detailed=True, score_threshold=score_threshold),
        checkpoint=str(detector.path),
        data=str(data.source),
        split=data.split,
        unknown_classes=tuple(
            name for name, i in zip(data.classes, data.category_ids, strict=True) if i not in category_ids
        ),
        unused_classes=tuple(name for name, i in zip(detector.classes, category_ids, strict=True) if i is None),
        renamed_classes=tuple(renamed(detector.classes, data.classes, places)),
        data_digest=digest_of_split(data),
    )


def score(
    data: DetectionData,
    detections: Detections | Sequence[Detection],
    backend: Backend = "auto",
    *,
    detailed: bool = False,
    score_threshold: float = SCORE,
) -> Evaluation:
    """Compute COCO's and VOC's numbers for detections on a split.

    Args:
        data: the split. Objects with ``ignore`` (COCO's crowd, VOC's difficult) do not count as missed, and detections
            of them do not count as wrong.
        detections: arrays, or rows of COCO's results format, in any order of images. For COCO's numbers the 100 best
            per image and class count.
        backend: the library that computes COCO's numbers; both give the same.
        detailed: whether the evaluation has the confusion matrix and the curves of precision over recall.
        score_threshold: lowest score of a detection that counts for the confusion matrix, 0..1.

    Raises:
        UserError: the library is not installed, or a detection has an image or a category that the split lacks.
    """
    if not isinstance(detections, Detections):
        detections = Detections.of_rows(detections)
    objects, found = Objects.of(data), Found.of(data, detections)
    coco, per_class, curves = coco_numbers(data.classes, len(data), objects, found, backend)
    voc, voc_per_class = voc_numbers(data.classes, objects, found)
    counts = np.bincount(objects.labels[~objects.ignore], minlength=len(data.classes)).tolist()
    return Evaluation(
        coco,
        per_class,
        voc,
        voc_per_class,
        images=len(data),
        objects=dict(zip(data.classes, counts, strict=True)),
        confusion=confusion_matrix(data.classes, objects, found, score_threshold) if detailed else None,
        curves=curves if detailed else None,
    )
