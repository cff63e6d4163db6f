"""Pseudo-labels: the teacher's detections on unlabelled images, as ground truth of the student's own loss.

STAC (Sohn et al., 2020) and Unbiased Teacher (Liu et al., ICLR 2021) keep the detections above a score. Here the
teacher is a trained one that stays as it is, and both see the same pixels. One mean runs over all images with objects.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from understudy.data import Batch
from understudy.detectors import Detector
from understudy.outputs import Needs, Outputs
from understudy.pairing import Pairing
from understudy.training.console import say

NEEDS = Needs(frozenset({"features", "class_logits", "box_raw", "extra", "queries"}))
"""The parts of the teacher's record that its detections are made from."""

PATIENCE = 100
"""Unlabelled images without a single pseudo-label after which the run says so."""


class PseudoLabels:
    """Give unlabelled images the teacher's detections above a score as objects.

    An image without one stays unlabelled: all of it would count as background.

    Args:
        score: the lowest score, 0..1.
        teacher: frozen, in ``eval()``.
        pairing: of student and teacher, for the labels; detections of classes that the student lacks are left out.
        classes: number of the teacher's classes.
    """

    def __init__(self, score: float, teacher: Detector, pairing: Pairing, classes: int):
        self.score, self.teacher = score, teacher
        self.label_of = torch.full((classes,), -1)
        for label, place in enumerate(pairing.label_of):
            if place >= 0:
                self.label_of[pairing.teacher_labels[place]] = label
        self.images, self.found = 0, False

    @torch.no_grad()
    def added_to(self, batch: Batch, outputs: Outputs) -> Batch:
        """Return a batch in which unlabelled images with such detections have objects, and count as labelled.

        Args:
            batch: on the teacher's device.
            outputs: the teacher's record of it.
        """
        chosen = [place for place, known in enumerate(batch.labelled) if not known]
        if not chosen:
            return batch
        sizes = [batch.image_sizes[place] for place in chosen]
        targets, labelled = list(batch.targets), list(batch.labelled)
        for place, found in zip(chosen, self.teacher.detect(outputs.of_images(chosen), sizes), strict=True):
            objects = self._objects(found)
            if len(objects["labels"]):
                targets[place], labelled[place] = objects, True
        self._remark(len(chosen), found=any(labelled[place] for place in chosen))
        return replace(batch, targets=targets, labelled=labelled)

    def _objects(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        boxes, labels = found["boxes"].float(), self.label_of.to(found["labels"].device)[found["labels"]]
        kept = (found["scores"] >= self.score) & (labels >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        return {"boxes": boxes[kept], "labels": labels[kept]}

    def _remark(self, images: int, *, found: bool) -> None:
        self.found |= found
        before, self.images = self.images, self.images + images
        if not self.found and before < PATIENCE <= self.images:
            say(
                f"pseudo_labels={self.score:g}: the teacher has no detection of this score in the first {self.images} "
                "unlabelled images, so they have no effect on the student's own loss. Lower it."
            )


def with_needs(needs: Sequence[Needs], *, pseudo_labels: bool) -> Needs:
    """Return what serves several readers of the teacher's record, and pseudo-labels."""
    return Needs.union([*needs, *([NEEDS] if pseudo_labels else [])])
