"""Hint: the student's features imitate the teacher's (FitNets, Romero et al., ICLR 2015)."""

from typing import Any

import torch
from torch import Tensor

from understudy.functional import mean_squared_loss
from understudy.methods.adapters import channel_adapters
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class Hint(Method):
    r"""The student's features imitate the teacher's in every cell, objects and background alike.

    This is the simplest feature method and the baseline of the others. A 1x1 convolution per level, :math:`\phi_l`,
    maps the student's channels to the teacher's if they differ. It is discarded after training.

    .. math::
        L_\text{feature} = \sum_l \frac{1}{N C H_l W_l} \sum_{n, c, h, w} \left(\phi_l(F^S_l) - F^T_l\right)^2

    Evidence:
        paper: FitNets: Hints for Thin Deep Nets. Eq. 3 compares one layer of a classifier: half the squared difference,
            summed.
        ours: The levels of a feature pyramid and the mean, as in other detector toolkits.
        weight: 1 is another project's for RetinaNet, and our choice for the other families.
        related: This is also the hint term of Chen et al., Learning Efficient Object Detection Models with Knowledge
            Distillation (NeurIPS 2017). Their class-weighted soft labels and bounded regression are not implemented:
            their constants could not be established.
    """

    name = "hint"
    aliases = ("fitnets",)
    terms = ("feature",)
    weights = {EVERY_FAMILY: {"feature": 1.0}}
    source = "Romero et al., ICLR 2015, Eq. 3; the weight is another project's for RetinaNet, our choice for others"
    checked = "the paper, Eq. 3; open-mmlab/mmrazor @90c7af1, L2Loss, run: value to 1e-6"
    reads = {"feature": ("features",)}

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        self.adapters = channel_adapters(student.channels, teacher.channels)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``hint_feature``, summed over levels."""
        levels = zip(self.adapters, student.features, teacher.features, strict=True)
        losses = [mean_squared_loss(adapter(own), theirs) for adapter, own, theirs in levels]
        return {"hint_feature": torch.stack(losses).sum()}
