"""Validation images with their ground truth and the detections of several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from understudy.analysis.shown import Boxes, shown_image
from understudy.checkpoints import load_checkpoint
from understudy.data import Batch, DetectionData
from understudy.data.scenes import read_unlabelled
from understudy.detectors import Detector
from understudy.evaluation import loader_at_evaluation_size
from understudy.report.views import RunView

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ExampleView:
    """One validation image with its ground truth and the detections of each run.

    Attributes:
        image: (H, W, 3) uint8, as the first detector receives it.
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

    The first images are taken regardless of the result, so that they represent the rest.

    Raises:
        UserError: the checkpoint of a run cannot be read.
    """
    few = replace(data, records=data.records[:count])
    unlabelled = read_unlabelled(data.source)
    examples: list[ExampleView] = []
    for run in runs:
        checkpoint = load_checkpoint(run.folder)
        detector = checkpoint.detector.to(device).eval()
        for number, batch in enumerate(loader_at_evaluation_size(few, checkpoint.config)):
            if number == len(examples):
                image, truth, others = shown_image(batch, data, unlabelled)
                examples.append(ExampleView(image, truth, others, {}, score_threshold))
            example = examples[number]
            found = _detect(detector, batch.to(device), checkpoint.classes, score_threshold)
            height, width = batch.image_sizes[0]
            shown_height, shown_width = example.image.shape[:2]
            scale = np.array([shown_width / width, shown_height / height] * 2)
            found = replace(found, boxes=found.boxes * scale)
            examples[number] = replace(example, detections={**example.detections, run.name: found})
    return examples


def count_found(detections: Boxes, truth: Boxes, iou_threshold: float = 0.5) -> int:
    """Count the objects that are detected: right class, an IoU of at least the threshold, each object once.

    >>> cat = Boxes(np.array([[0.0, 0.0, 10.0, 10.0]]), ("cat",))
    >>> count_found(cat, truth=cat)
    1
    """
    overlaps = box_iou(torch.from_numpy(detections.boxes).double(), torch.from_numpy(truth.boxes).double())
    free = set(range(len(truth.names)))
    for overlap, name in zip(overlaps.tolist(), detections.names, strict=True):
        candidates = [(overlap[other], other) for other in free if truth.names[other] == name]
        best, other = max(candidates, default=(0.0, -1))
        if best >= iou_threshold:
            free.remove(other)
    return len(truth.names) - len(free)


def _detect(detector: Detector, batch: Batch, classes: Sequence[str], score_threshold: float) -> Boxes:
    """Return the detections of a batch of one above a score, best first, in pixels of the padded batch."""
    found = detector.detect(detector(batch.images, batch.image_sizes), batch.image_sizes)[0]
    order = found["scores"].argsort(descending=True)
    order = order[found["scores"][order] >= score_threshold]
    return Boxes(
        boxes=found["boxes"][order].cpu().numpy(),
        names=tuple(classes[label] for label in found["labels"][order].tolist()),
        scores=tuple(found["scores"][order].tolist()),
    )
