"""Score-weighted feature imitation, the feature term that Ultralytics ships, written from its formula."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.functional import score_weighted_loss
from understudy.methods.base import Method, level_differences
from understudy.outputs import Outputs, Spec, Truth


class ScoreL2(Method):
    """The student imitates the teacher's features as far as the teacher sees something there.

    A cell's weight is the teacher's highest class score there. Squared differences of the features under it, summed
    over the batch and divided by the weights and the channels, summed over levels; the student goes through two 1x1
    convolutions with a ReLU between, as wide inside as the teacher's features (our reading), which are thrown away
    after training. It is FRS' feature term with another adapter, and with an average over channels where FRS has a
    sum: its weight compares with one that is C times as small there.

    Ours where their formula does not say: the maximum is also over anchors, and of a Faster R-CNN the scores are its
    RPN's. Theirs has three levels; here it is all that the two have in common.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: the levels of the two detectors differ.
    """

    name = "score_l2"
    terms = ("feature",)
    weights = {family: {"feature": 6.0} for family in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    reads = ("features", "class_logits")
    source = (
        "the distillation of Ultralytics' YOLO, its feature term by its formula; the weight is their default beside "
        "their own losses, and for these detectors our choice"
    )

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__(student, teacher)
        levels = zip(student.channels, teacher.channels, strict=True)
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own, theirs, 1), nn.ReLU(inplace=True), nn.Conv2d(theirs, theirs, 1))
            for own, theirs in levels
        )

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``score_l2_feature``, summed over levels."""
        levels = zip(self.projectors, student.features, teacher.features, teacher.class_logits, strict=True)
        losses = [score_weighted_loss(projector(own), theirs, logits) for projector, own, theirs, logits in levels]
        return {"score_l2_feature": torch.stack(losses).sum()}
