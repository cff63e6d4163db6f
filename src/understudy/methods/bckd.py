"""BCKD: the student bridges its gap to the teacher, in classes and in boxes (Yang et al., ICCV 2023)."""

from typing import Any

import torch
from torch import Tensor

from understudy.boxes import chosen, paired_giou, split_levels
from understudy.functional import gap_weighted_loss, score_gap
from understudy.methods.base import Method, prediction_differences
from understudy.outputs import Outputs, Spec, Truth


class BCKD(Method):
    """The student learns the teacher's class scores and boxes at all anchors, most where the two disagree.

    The class term is the binary cross-entropy with the teacher's scores, each element weighted by the distance of the
    two scores; the location term one minus the GIoU of the two boxes, weighted by the largest distance of the two
    scores over the classes. Both are summed over the anchors of the levels that have an object, those ignored in the
    assignment left out, and divided by the number of anchors of the batch that have one (at least 1). Boxes are
    compared as boxes, so the detectors may code them differently. No gradient flows through the weight of a box
    (our choice, as the location term is to teach boxes; sources do not say).

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: levels, anchors or classes of the two detectors differ.
    """

    name = "bckd"
    terms = ("class", "location")
    weights = {"gfl": {"class": 1.0, "location": 4.0}}  # noqa: RUF012
    reads = ("class_logits", "box_raw", "truth")
    source = "Yang et al., ICCV 2023; reductions and weights from the authors' code"

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__(student, teacher)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Anchors are compared one by one, so both must have the same, and the same classes."""
        reasons = prediction_differences(student, teacher)
        return dict.fromkeys(cls.terms, "; ".join(reasons)) if reasons else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``bckd_class`` and ``bckd_location``, each summed and divided by the positives."""
        # Read before anything is computed: whatever stands in an ignored anchor must not matter, to no gradient either.
        counted = chosen(self._counted(student, truth), student)
        own, theirs = counted.of(student.class_logits), counted.of(teacher.class_logits)
        divisor = (truth.gt_index >= 0).sum().clamp(min=1)
        terms = {}
        if "class" in self.terms:
            terms["bckd_class"] = gap_weighted_loss(own, theirs).sum() / divisor
        if "location" in self.terms:
            boxes, others = counted.boxes(student, self.student), counted.boxes(teacher, self.teacher).detach()
            terms["bckd_location"] = (
                (1 - paired_giou(boxes, others)) * score_gap(own, theirs).detach()
            ).sum() / divisor
        return terms

    @staticmethod
    def _counted(outputs: Outputs, truth: Truth) -> Tensor:
        """Say which anchors count, (N, R): of levels that have an object, and not ignored."""
        parts = split_levels(truth.gt_index, outputs)
        return torch.cat([(part > -2) & (part >= 0).any() for part in parts], dim=1)
