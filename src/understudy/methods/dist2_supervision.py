"""The targets of Dist2's term ``di``: the ground truth, or the teacher's own detections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.errors import RunError
from understudy.functional import soft_detection_loss
from understudy.methods.base import Layers
from understudy.methods.dist2_layers import through_teacher
from understudy.outputs import Outputs, Target, Truth, flatten_levels

if TYPE_CHECKING:
    from understudy.detectors import Detector
    from understudy.pairing import Pairing


@dataclass(frozen=True, slots=True)
class Supervision:
    """The losses of a teacher's layers on a student's maps, in one step.

    Attributes:
        teacher: in ``eval()``, its parameters frozen.
        outputs: the teacher's record of the images that take part.
        images: positions of these images in the batch.
        labelled: positions, among these images, of those that are compared with their ground truth.
        targets: the ground truth of the latter, with the teacher's labels.
        left_out: boxes of the latter whose classes the teacher lacks.
        soft: the teacher's own detections are targets, too.
    """

    teacher: "Detector"
    outputs: Outputs
    images: list[int]
    labelled: list[int]
    targets: list[Target]
    left_out: list[Tensor]
    soft: bool

    @classmethod
    def of(cls, kind: str, truth: Truth, layers: Layers) -> Self:
        """Prepare the targets of a step: the ``"truth"``, the detections of the ``"teacher"``, or ``"both"``."""
        every = list(range(len(truth.targets)))
        known = [image for image, labelled in enumerate(truth.labelled.tolist()) if labelled]
        images = known if kind == "truth" else every
        labelled = [] if kind == "teacher" else [images.index(image) for image in known]
        targets = _with_labels_of_teacher([truth.targets[images[place]] for place in labelled], layers.pairing)
        outputs = layers.teacher_outputs.of_images(images)
        left_out = [truth.left_out[images[place]] for place in labelled] if truth.left_out else []
        return cls(layers.teacher, outputs, images, labelled, targets, left_out, kind != "truth")

    def loss(self, place: str, maps: Mapping[int, Tensor]) -> Tensor:
        """Compute the loss of the teacher's layers on maps (N, C, H, W) of the whole batch, by stride.

        Args:
            place: where the maps enter; see :func:`.through_teacher`.
            maps: the student's, transformed.

        Raises:
            RunError: no gradient flows back through the layers.
        """
        if not self.images:
            return torch.cat([level[:0].flatten() for level in maps.values()]).float().sum()
        whole = self.images == list(range(len(next(iter(maps.values())))))
        maps = maps if whole else {stride: level[self.images] for stride, level in maps.items()}
        found = through_teacher(place, maps, self.teacher, self.outputs)
        reached = all(tensor.requires_grad for tensor in (*found.class_logits, *found.box_raw))
        if torch.is_grad_enabled() and not reached:
            raise RunError(
                f"No gradient flows back through the layers of the teacher {self.teacher.spec.name}, because they run "
                "under torch.no_grad, so dist2_di has no effect. Freeze the weights instead: "
                "teacher.requires_grad_(False)."
            )
        losses: list[Tensor] = []
        if self.labelled:
            # The teacher's own assignment: by its own predictions, unless it needs none.
            record = found if self.teacher.spec.assigns_by_anchors else self.outputs
            gt_index = _assigned(self.teacher, record.of_images(self.labelled), self.targets, self.left_out)
            losses += self.teacher.loss(found.of_images(self.labelled), self.targets, gt_index).values()
        if self.soft:
            own, theirs = (_detections(self.teacher, each) for each in (found, self.outputs))
            losses.append(soft_detection_loss(*own, *theirs))
        return torch.stack(losses).sum()


def _assigned(teacher: "Detector", outputs: Outputs, targets: list[Target], left_out: Sequence[Tensor]) -> Tensor:
    """Compute the teacher's assignment (N, R); anchors of objects whose classes it lacks, (X, 4) each, are ignored."""
    if not left_out:
        return teacher.assign(outputs, targets)
    every = [
        {"boxes": torch.cat([target["boxes"], boxes]), "labels": F.pad(target["labels"], (0, len(boxes)))}
        for target, boxes in zip(targets, left_out, strict=True)
    ]
    known = torch.tensor([len(target["boxes"]) for target in targets], device=targets[0]["boxes"].device)
    gt_index = teacher.assign(outputs, every)
    return torch.where(gt_index < known[:, None], gt_index, -2)


def _with_labels_of_teacher(targets: list[Target], pairing: "Pairing | None") -> list[Target]:
    """Replace the labels, which number the common classes, by the teacher's own."""
    # Equal numbers stay, also for a pair of RPNs without class names, which has fewer classes than the ground truth.
    if pairing is None or pairing.teacher_labels == tuple(range(len(pairing.teacher_labels))):
        return targets
    return [
        {**target, "labels": target["labels"].new_tensor(pairing.teacher_labels)[target["labels"]]}
        for target in targets
    ]


def _detections(detector: "Detector", outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return class logits (N, R, K) and boxes (N, R, 4) of every anchor."""
    return flatten_levels(outputs.class_logits), flatten_levels(detector.decode(outputs))
