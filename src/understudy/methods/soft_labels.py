"""Soft labels: the student's class scores and boxes are drawn to the teacher's (Hinton et al.; Chen et al.)."""

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from understudy.boxes import Positives, chosen, paired_giou, positives
from understudy.functional import soft_label_loss
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Method, anchor_differences, differences, prediction_differences
from understudy.outputs import Outputs, Spec, Truth


class SoftLabels(Method):
    """The student learns from what the teacher answers, class by class and box by box, as from labels.

    The class term compares class scores, summed over classes and anchors; the box term compares the boxes of the
    anchors that have an object. Both are divided by the number of these anchors in the batch of a process.

    Hinton et al. (2015) have the Kullback-Leibler divergence of softmaxes at a temperature T, times T squared, of
    classifiers (``loss=kl``). Chen et al. (NeurIPS 2017) carry it to two-stage detectors, with a background class of
    weight 1.5, and take the teacher's box as a bound that the student is not to be worse than. Ours is the rest: the
    cross-entropy of sigmoids, since one-stage detectors score each class by itself and have no background class, the
    choice of anchors, the divisor, boxes drawn to the teacher's without a bound, and the weights. Of a Faster R-CNN
    the scores and boxes are its RPN's.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        loss: ``"bce"`` of the sigmoids, or ``"kl"`` of softmaxes over the classes.
        temperature: divides the logits.
        anchors: class scores are compared at ``"positives"``, the anchors that have an object, or at ``"all"`` that
            are not ignored.
        boxes: ``"decoded"`` boxes are compared by one minus their GIoU, ``"raw"`` numbers by smooth L1, summed.

    Raises:
        UserError: an option is wrong, or levels, anchors, classes or box codes cannot be compared.
    """

    name = "soft_labels"
    terms = ("class", "box")
    weights = {name: {"class": 1.0, "box": 1.0} for name in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    reads = ("class_logits", "box_raw", "truth")
    source = "Hinton et al., 2015, and Chen et al., NeurIPS 2017, adapted to one-stage heads; the weights are ours"

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        loss: Literal["bce", "kl"] = "bce",
        temperature: PositiveFloat = 1.0,
        anchors: Literal["positives", "all"] = "positives",
        boxes: Literal["decoded", "raw"] = "decoded",
    ):
        super().__init__(student, teacher, loss=loss, boxes=boxes)
        self.loss, self.temperature, self.anchors, self.boxes = loss, temperature, anchors, boxes

    @classmethod
    def obstacles(
        cls, student: Spec, teacher: Spec, *, loss: str = "bce", boxes: str = "decoded", **options: Any
    ) -> dict[str, str]:
        """Anchors must agree; a softmax needs two classes, raw boxes the same code."""
        unlike = prediction_differences(student, teacher)
        single = [f"a softmax over the one class of {student.name} and {teacher.name} says nothing; use loss=bce"]
        code = differences(student, teacher, lambda spec: f"boxes as {spec.box_size} {spec.box_code}")
        if not unlike:
            code += anchor_differences(student, teacher, raw=True)
        remedy = ["methods.soft_labels.boxes=decoded compares boxes of any code"] if code and not unlike else []
        faults = {
            "class": unlike + (single if loss == "kl" and student.num_classes == 1 else []),
            "box": unlike + (code + remedy if boxes == "raw" else []),
        }
        return {term: "; ".join(reasons) for term, reasons in faults.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``soft_labels_class`` and ``soft_labels_box``, each summed and divided by the positives."""
        found = positives(truth, student)
        compute = {"class": self._class, "box": self._box}
        divisor = max(len(found.objects), 1)
        return {f"soft_labels_{term}": compute[term](student, teacher, truth, found) / divisor for term in self.terms}

    def _class(self, student: Outputs, teacher: Outputs, truth: Truth, found: Positives) -> Tensor:
        places = found if self.anchors == "positives" else chosen(truth.gt_index > -2, student)
        own, theirs = places.of(student.class_logits), places.of(teacher.class_logits)
        return soft_label_loss(own, theirs, self.temperature, self.loss).sum()

    def _box(self, student: Outputs, teacher: Outputs, truth: Truth, found: Positives) -> Tensor:
        if self.boxes == "raw":
            own, theirs = at_least_float32(found.of(student.box_raw)), at_least_float32(found.of(teacher.box_raw))
            return F.smooth_l1_loss(own, theirs.detach(), reduction="sum")
        own, theirs = found.boxes(student, self.student), found.boxes(teacher, self.teacher)
        return (1 - paired_giou(own, theirs.detach())).sum()
