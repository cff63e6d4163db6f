"""Boxes of the student that a teacher's second stage classifies, and what both say of them.

P is the number of these boxes in all images, K that of the classes which student and teacher have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.boxes import positives
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Layers
from understudy.networks.geometry import paired_iou
from understudy.outputs import Outputs, Spec, Truth


@dataclass(frozen=True, slots=True)
class Scored:
    """Boxes of the student, and what it says of them.

    Attributes:
        regions: per image (P_i, 4), xyxy in pixels of the padded batch; constants.
        logits: (P, K + 1) with the background first, or (P, K) of a one-stage student.
        boxes: (P, K, 4), the corrected box for each class.
        objects: (P,), the number of each one's object among those of the whole batch; of proposals None.
        labels: (P,), the class of that object; of proposals None.
    """

    regions: list[Tensor]
    logits: Tensor
    boxes: Tensor
    objects: Tensor | None = None
    labels: Tensor | None = None


def of_proposals(layers: Layers, count: int) -> Scored:
    """Run the second stage of the student on its best proposals, a number of them in each image."""
    student, outputs = layers.student, layers.student_outputs
    regions = [each[:count] for each in student.proposals(outputs, training=True)]
    logits, boxes = student.score_boxes(outputs.features, regions)
    columns = _common_labels(layers, boxes.shape[1] - 1)[0] + 1
    return Scored(regions, torch.cat([logits[:, :1], logits[:, columns]], dim=1), boxes[:, columns])


def at_objects(student: Outputs, spec: Spec, truth: Truth, count: int) -> Scored:
    """Read what a one-stage student predicts at the anchors with an object, a number of them in each image."""
    found = positives(truth, student)
    image = torch.cat([number for number, _ in found.levels])
    chosen = [_spread(torch.where(image == number)[0], count) for number in range(len(truth.targets))]
    logits, boxes = found.of(student.class_logits), found.boxes(student, spec)
    order = torch.cat(chosen)
    regions = [boxes.detach()[rows] for rows in chosen]
    repeated = boxes[order][:, None].expand(-1, logits.shape[1], -1)
    return Scored(regions, logits[order], repeated, found.objects[order], found.labels[order])


@torch.no_grad()
def by_second_stage(layers: Layers, own: Scored, truth: Truth) -> tuple[Tensor, Tensor]:
    """Return the scores (P, K + 1) that the teacher's second stage gives to boxes, and the corrected ones (P, K, 4).

    In place of a box that belongs to an object, the object's true box is used if its score is higher.
    """
    scores, boxes = _answers(layers, own.regions)
    if own.objects is None:
        return scores, boxes
    of_objects = _answers(layers, [target["boxes"] for target in truth.targets])
    true_scores, true_boxes = (each[own.objects] for each in of_objects)
    higher = true_scores[:, 1:].amax(1) > scores[:, 1:].amax(1)
    scores = torch.where(higher[:, None], true_scores, scores)
    return scores, torch.where(higher[:, None, None], true_boxes, boxes)


def relative_fits(own: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return how well boxes fit those of the teacher, in relation to the best fit of a class, (P, K), 0 to 1.

    It is 1 for a class of which no box overlaps the teacher's.

    Args:
        own: (P, K, 4), the student's.
        boxes: (P, K, 4), the teacher's.
        labels: (P,), the class of each one's object, for which its fit is compared with those of the others.
    """
    fits = paired_iou(own, boxes)
    of_object = fits.gather(1, labels[:, None])[:, 0]
    best = fits.new_zeros(fits.shape[1]).scatter_reduce(0, labels, of_object, "amax")[labels][:, None]
    return torch.where(best > 0, fits / best, 1.0).clamp(max=1)


def _answers(layers: Layers, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    logits, boxes = layers.teacher.score_boxes(layers.teacher_outputs.features, regions)
    columns = _common_labels(layers, boxes.shape[1] - 1)[1] + 1
    scores = at_least_float32(logits).softmax(1)[:, columns]
    return torch.cat([1 - scores.sum(1, keepdim=True), scores], dim=1), boxes[:, columns]


def _common_labels(layers: Layers, count: int) -> tuple[Tensor, Tensor]:
    """Return the labels of the common classes in the student and in the teacher, one of which has ``count`` classes.

    Without a pairing, and if the pairing finds no difference, they are all: it need not know the classes.
    """
    pairing, device = layers.pairing, layers.student_outputs.features[0].device
    if pairing is None or not (pairing.unknown or pairing.unused or pairing.teacher_labels != pairing.student_labels):
        every = torch.arange(count, device=device)
        return every, every
    return torch.tensor(pairing.student_labels, device=device), torch.tensor(pairing.teacher_labels, device=device)


def _spread(rows: Tensor, count: int) -> Tensor:
    """Choose some of the rows (P,), evenly spaced; all, if they are not more."""
    return rows if len(rows) <= count else rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]
