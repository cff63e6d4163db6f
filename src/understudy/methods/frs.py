"""FRS: distilling object detectors with feature richness (Du et al., NeurIPS 2021)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.functional import feature_richness, highest_of_cell, weighted_class_loss, weighted_feature_loss
from understudy.methods.base import Method, differences
from understudy.outputs import Outputs, Spec, Truth


class FRS(Method):
    """The student imitates the teacher wherever the teacher sees something, inside the labelled boxes or not.

    A cell's weight is the teacher's highest class score there (Eq. 5). Under it the student's features, through a 3x3
    convolution per level that is thrown away after training, are drawn to the teacher's (Eq. 6), and its class scores
    to the teacher's (Eq. 7); both sums run over all levels. Where paper and authors' code differ (a maximum over
    anchors too, one normaliser per batch, a ramp of 500 steps) this follows the code. Of a Faster R-CNN the scores
    are its RPN's, as in the authors' code.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        normaliser: divide by the mask of the whole ``"batch"`` of a process (the authors' code) or of each
            ``"image"`` (Eq. 6 read literally; the same on one process or several).
        threshold: None weights cells by richness; a number in 0..1 takes the cells above it, all with weight 1
            (0.1 in the authors' ablation).
        scores: the class term compares the scores of every ``"anchor"`` (the authors' way), or for each class the
            highest of a ``"cell"``, which needs no equal anchors (ours: it is in no paper).

    Raises:
        UserError: levels, anchors or classes of the two detectors cannot be compared.
    """

    name = "frs"
    terms = ("feature", "class")
    weights = {  # noqa: RUF012
        "retinanet": {"feature": 0.005, "class": 0.02},
        "fcos": {"feature": 0.01, "class": 0.05},
        "gfl": {"feature": 0.1, "class": 0.05},
        "faster_rcnn": {"feature": 0.002, "class": 0.1},
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
        scores: Literal["anchor", "cell"] = "anchor",
    ):
        super().__init__(student, teacher, scores=scores)
        if threshold is not None and not 0 <= threshold < 1:
            raise UserError(f"[methods.frs] threshold is a score in 0..1 (1 excluded), got {threshold}.")
        self.normaliser, self.threshold, self.scores = normaliser, threshold, scores
        if "feature" in self.terms:
            levels = zip(student.channels, teacher.channels, strict=True)
            self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, kernel_size=3, padding=1) for own, theirs in levels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, *, scores: str = "anchor", **options: Any) -> dict[str, str]:
        """Levels must agree; for the class term what is scored, too, and the anchors unless cells are compared."""
        levels = differences(student, teacher, lambda spec: f"levels at strides {spec.strides}")
        scored = differences(student, teacher, lambda spec: spec.scored)
        anchors = differences(student, teacher, lambda spec: f"{spec.num_anchors} anchors per cell")
        remedy = [] if levels or scored else ["methods.frs.scores=cell compares cells instead"]
        anchors = anchors + remedy if anchors and scores == "anchor" else []
        faults = {"feature": levels, "class": levels + scored + anchors}
        return {term: "; ".join(reasons) for term, reasons in faults.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``frs_feature`` and ``frs_class``, each summed over levels."""
        masks = [self.mask(logits) for logits in teacher.class_logits]
        compute = {"feature": self._feature, "class": self._class}
        return {f"frs_{term}": torch.stack(compute[term](student, teacher, masks)).sum() for term in self.terms}

    def _feature(self, student: Outputs, teacher: Outputs, masks: list[Tensor]) -> list[Tensor]:
        levels = zip(self.adapters, student.features, teacher.features, masks, strict=True)
        return [
            weighted_feature_loss(adapter(own), theirs, mask, self.normaliser) for adapter, own, theirs, mask in levels
        ]

    def _class(self, student: Outputs, teacher: Outputs, masks: list[Tensor]) -> list[Tensor]:
        levels = zip(student.class_logits, teacher.class_logits, masks, strict=True)
        if self.scores == "cell":
            levels = ((highest_of_cell(own), highest_of_cell(theirs), mask) for own, theirs, mask in levels)
        return [weighted_class_loss(own, theirs, mask, self.normaliser) for own, theirs, mask in levels]

    @torch.no_grad()
    def mask(self, class_logits: Tensor) -> Tensor:
        """Weight of every cell, (N, H, W), from the teacher's logits (N, H, W, A, K)."""
        richness = feature_richness(class_logits)
        return richness if self.threshold is None else (richness > self.threshold).to(richness.dtype)
