"""Hint: the student's features imitate the teacher's (FitNets, Romero et al., ICLR 2015)."""

from typing import Any

import torch
from torch import Tensor

from understudy.functional import mean_squared_loss
from understudy.methods.base import Method, channel_adapters, level_differences
from understudy.outputs import Outputs, Spec, Truth


class Hint(Method):
    """The student imitates every value of the teacher's feature pyramid, wherever it is: the plainest method.

    Squared differences, averaged over images, channels and cells of a level, summed over levels; a 1x1 convolution
    per level that is thrown away after training takes the student's channels to the teacher's where they differ.
    FitNets says nothing of detectors: the levels and the mean are those of detector toolkits.

    The hint term of Chen et al. (NeurIPS 2017) is this one. Their other two, the class-weighted soft labels and the
    bounded regression, are not here: the balance of the one and the margin of the other could not be established.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: the levels of the two detectors differ.
    """

    name = "hint"
    terms = ("feature",)
    weights = {family: {"feature": 1.0} for family in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    reads = ("features",)
    source = (
        "Romero et al., ICLR 2015, Eq. 3; no weight is the authors': 1 is another project's for RetinaNet, and our "
        "choice for the others"
    )

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__(student, teacher)
        self.adapters = channel_adapters(student.channels, teacher.channels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``hint_feature``, summed over levels."""
        levels = zip(self.adapters, student.features, teacher.features, strict=True)
        losses = [mean_squared_loss(adapter(own), theirs) for adapter, own, theirs in levels]
        return {"hint_feature": torch.stack(losses).sum()}
