"""BCKD: the student bridges its gap to the teacher, in classes and in boxes (Yang et al., ICCV 2023)."""

from typing import Any

import torch
from torch import Tensor

from understudy.boxes import decode, paired_giou, split_levels
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
        counted = self._counted(student, truth)
        divisor = (truth.gt_index >= 0).sum().clamp(min=1)
        compute = {"class": self._class, "location": self._location}
        # Chosen, not multiplied by 0: whatever stands in an ignored anchor must not matter.
        return {f"bckd_{term}": compute[term](student, teacher)[counted].sum() / divisor for term in self.terms}

    def _class(self, student: Outputs, teacher: Outputs) -> Tensor:
        pairs = zip(student.class_logits, teacher.class_logits, strict=True)
        return torch.cat([gap_weighted_loss(own, theirs).flatten(1) for own, theirs in pairs], dim=1)

    def _location(self, student: Outputs, teacher: Outputs) -> Tensor:
        own, theirs = decode(student, self.student), decode(teacher, self.teacher)
        pairs = zip(student.class_logits, teacher.class_logits, strict=True)
        gaps = torch.cat([score_gap(*pair).flatten(1) for pair in pairs], dim=1).detach()
        boxes = torch.cat([level.flatten(1, 3) for level in own], dim=1)
        others = torch.cat([level.flatten(1, 3) for level in theirs], dim=1).detach()
        return (1 - paired_giou(boxes, others)) * gaps

    @staticmethod
    def _counted(outputs: Outputs, truth: Truth) -> Tensor:
        """Choose anchors, (N, R): of levels that have an object, and not ignored."""
        parts = split_levels(truth.gt_index, outputs)
        return torch.cat([(part > -2) & (part >= 0).any() for part in parts], dim=1)
