"""The recall of the proposals of a two-stage detector: how many objects its first stage finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from understudy.data import Batch
from understudy.detectors import Detector
from understudy.detectors.faster_rcnn import FasterRCNNDetector
from understudy.outputs import Outputs

COUNTS = (10, 100, 1000)
"""Numbers of proposals of an image, the best ones, whose recall is measured."""

BEHIND = 0.01
"""Lead of a student's average recall over its teacher's, 0..1, from which it is worth a remark."""

OVERLAPS = tuple(number / 100 for number in range(50, 100, 5))
"""IoUs of COCO's average recall."""


@dataclass(frozen=True, slots=True)
class Recall:
    """The recall of a detector's proposals; every number is 0..1, or None without objects.

    Attributes:
        average: average recall with the best 10, 100 and 1000 proposals: the mean over IoU 0.50 to 0.95 and classes.
        at_50: with 1000 proposals at IoU 0.50, the mean over classes.
        at_75: likewise at IoU 0.75.
        per_class: average recall with 1000 proposals of each class that has objects.
        objects: number of objects of each of these classes.
    """

    average: dict[int, float | None]
    at_50: float | None
    at_75: float | None
    per_class: dict[str, float]
    objects: dict[str, int]

    @property
    def best(self) -> float | None:
        """Average recall with 1000 proposals."""
        return self.average[COUNTS[-1]]

    def leads(self, other: "Recall") -> bool:
        """Return whether the best proposals find clearly more objects than those of another detector."""
        return self.best is not None and other.best is not None and self.best - other.best > BEHIND


def has_proposals(detector: Detector) -> TypeGuard[FasterRCNNDetector]:
    """Return whether a detector has two stages, the first of which proposes boxes."""
    return isinstance(detector, FasterRCNNDetector)


class ProposalRecall:
    """Collects how well the proposals of a detector overlap the objects, batch by batch."""

    def __init__(self, detector: FasterRCNNDetector):
        self.detector = detector
        self.images = 0
        self.overlaps: list[Tensor] = [torch.zeros(0, len(COUNTS))]
        self.labels: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]

    def add(self, batch: Batch, outputs: Outputs) -> None:
        """Take the record of a batch, whose targets have the labels of its data set."""
        proposed = self.detector.proposals(outputs, batch.image_sizes)
        for boxes, target in zip(proposed, batch.targets, strict=True):
            self.overlaps.append(best_overlaps(target["boxes"], boxes).cpu())
            self.labels.append(target["labels"].cpu())
        self.images += len(batch.image_ids)

    def result(self, classes: Sequence[str]) -> Recall:
        """Return the recall over the batches so far.

        Args:
            classes: names of the data set's classes.
        """
        labels = torch.cat(self.labels).numpy()
        found = (torch.cat(self.overlaps)[:, :, None] >= torch.tensor(OVERLAPS)).double().numpy()  # (X, counts, IoUs)
        present = np.unique(labels).tolist()
        if not present:
            return Recall(dict.fromkeys(COUNTS), None, None, {}, {})
        of_classes = np.stack([found[labels == label].mean(0) for label in present])
        at_all = of_classes[:, -1]
        return Recall(
            dict(zip(COUNTS, of_classes.mean((0, 2)).tolist(), strict=True)),
            float(at_all[:, OVERLAPS.index(0.5)].mean()),
            float(at_all[:, OVERLAPS.index(0.75)].mean()),
            {classes[label]: float(recall) for label, recall in zip(present, at_all.mean(1), strict=True)},
            {classes[label]: int((labels == label).sum()) for label in present},
        )


def best_overlaps(objects: Tensor, proposals: Tensor) -> Tensor:
    """Return the IoU of each object with the best of the first 10, 100 and 1000 proposals.

    Several objects may have the same one.

    Args:
        objects: (X, 4), xyxy in pixels.
        proposals: (P, 4) in the same pixels, from the best to the worst; P may be 0.

    Returns:
        (X, 3), 0..1.
    """
    overlaps = torch.cat([box_iou(objects, proposals), objects.new_zeros(len(objects), 1)], dim=1)
    return torch.stack([overlaps[:, :count].amax(1) for count in COUNTS], dim=1)
