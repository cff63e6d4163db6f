"""Score-weighted feature imitation, the feature term that Ultralytics ships, written from its formula."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.functional import score_weighted_loss
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class ScoreL2(Method):
    r"""The student imitates the teacher's features, each cell weighted by the teacher's highest class score.

    This is the feature term of ``frs`` with another adapter and another average: two 1x1 convolutions with a ReLU
    between them per level, :math:`\phi_l`, discarded after training, and a mean over channels instead of a sum.

    .. math::
        L_\text{feature} = \sum_l \frac{1}{C \sum_{n, h, w} S_l} \sum_{n, c, h, w} S_l
        \left(\phi_l(F^S_l) - F^T_l\right)^2 \qquad S_l = \max_{a, k} \sigma(z^T_l)

    :math:`z` are class logits. A Faster R-CNN has the scores of its first stage.

    Evidence:
        code: The feature term of the distillation in Ultralytics' YOLO toolkit, written from its formula.
        ours: The maximum runs over anchors, too. Theirs runs over the classes of a head without anchors, whose logits
            are averaged over two branches. All common levels are compared; theirs are three.
        weight: 6 is their default, combined with their own losses, and our choice for these detectors.
        share: Under ``balance`` it takes at most 0.2 of the gradient unless ``share`` says otherwise. On BCCD a student
            of 44.3 AP had 41.2 with 0.8, and 44.0 with 0.2.
        related: Divide a weight by the number of channels to compare it with one of ``frs_feature``.
    """

    name = "score_l2"
    aliases = ("ultralytics",)
    terms = ("feature",)
    weights = {EVERY_FAMILY: {"feature": 6.0}}
    largest_share = {EVERY_FAMILY: 0.2}
    source = (
        "the feature term of the distillation in Ultralytics' YOLO, from its formula; the weight is their default, "
        "combined with their own losses, and our choice for these detectors"
    )
    checked = "authors' code, ultralytics 8.4.190, loss_sl2 of its DistillationModel, run: values and gradients to 1e-9"
    reads = {"feature": ("features", "teacher_scores")}

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        levels = zip(student.channels, teacher.channels, strict=True)
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own, theirs, 1), nn.ReLU(inplace=True), nn.Conv2d(theirs, theirs, 1))
            for own, theirs in levels
        )

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``score_l2_feature``, summed over levels."""
        levels = zip(self.projectors, student.features, teacher.features, teacher.class_logits, strict=True)
        losses = [score_weighted_loss(projector(own), theirs, logits) for projector, own, theirs, logits in levels]
        return {"score_l2_feature": torch.stack(losses).sum()}
