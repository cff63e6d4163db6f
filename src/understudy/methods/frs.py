"""FRS: distilling object detectors with feature richness (Du et al., NeurIPS 2021)."""

from typing import Literal

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.functional import feature_richness, weighted_class_loss, weighted_feature_loss
from understudy.methods.base import Method
from understudy.outputs import Outputs, Spec, Truth


class FRS(Method):
    """The student imitates the teacher wherever the teacher sees something, inside the labelled boxes or not.

    A cell's weight is the teacher's highest class score there (Eq. 5). Under it the student's features, through a 3x3
    convolution per level that is thrown away after training, are drawn to the teacher's (Eq. 6), and its class scores
    to the teacher's (Eq. 7); both sums run over all levels. Where paper and authors' code differ (a maximum over
    anchors too, one normaliser per batch, a ramp of 500 steps) this follows the code.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        normaliser: divide by the mask of the whole ``"batch"`` of a process (the authors' code) or of each
            ``"image"`` (Eq. 6 read literally; the same on one process or several).
        threshold: None weights cells by richness; a number in 0..1 takes the cells above it, all with weight 1
            (0.1 in the authors' ablation).

    Raises:
        UserError: levels, anchors or classes of the two detectors cannot be compared one to one.
    """

    name = "frs"
    terms = ("feature", "class")
    weights = {  # noqa: RUF012
        "retinanet": {"feature": 0.005, "class": 0.02},
        "fcos": {"feature": 0.01, "class": 0.05},
    }
    ramp_steps = 500
    source = "Du et al., NeurIPS 2021, Eq. 4-8; weights and ramp from the authors' configurations"

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        normaliser: Literal["batch", "image"] = "batch",
        threshold: float | None = None,
    ):
        super().__init__(student, teacher)
        _require_comparable(student, teacher)
        if threshold is not None and not 0 <= threshold < 1:
            raise UserError(f"[methods.frs] threshold is a score in 0..1 (1 excluded), got {threshold}.")
        self.normaliser = normaliser
        self.threshold = threshold
        self.adapters = nn.ModuleList(
            nn.Conv2d(channels, wanted, kernel_size=3, padding=1)
            for channels, wanted in zip(student.channels, teacher.channels, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``frs_feature`` and ``frs_class``, each summed over levels."""
        masks = [self.mask(logits) for logits in teacher.class_logits]
        feature = [
            weighted_feature_loss(adapter(own), theirs, mask, self.normaliser)
            for adapter, own, theirs, mask in zip(self.adapters, student.features, teacher.features, masks, strict=True)
        ]
        classes = [
            weighted_class_loss(own, theirs, mask, self.normaliser)
            for own, theirs, mask in zip(student.class_logits, teacher.class_logits, masks, strict=True)
        ]
        return {"frs_feature": torch.stack(feature).sum(), "frs_class": torch.stack(classes).sum()}

    @torch.no_grad()
    def mask(self, class_logits: Tensor) -> Tensor:
        """Weight of every cell, (N, H, W), from the teacher's logits (N, H, W, A, K)."""
        richness = feature_richness(class_logits)
        return richness if self.threshold is None else (richness > self.threshold).to(richness.dtype)


def _require_comparable(student: Spec, teacher: Spec) -> None:
    faults = [
        f"{what}: the student {student.name} has {own}, the teacher {teacher.name} has {theirs}"
        for what, own, theirs in (
            ("pixels per cell of each level", student.strides, teacher.strides),
            ("anchors per cell", student.num_anchors, teacher.num_anchors),
            ("classes", student.num_classes, teacher.num_classes),
        )
        if own != theirs
    ]
    if faults:
        faults.append("use a teacher of the same family, anchors and classes")
        raise UserError.listing("FRS compares features and class scores cell by cell, anchor by anchor:", faults)
