"""PKD: distillation by Pearson correlation (Cao et al., NeurIPS 2022)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.functional import correlation_loss
from understudy.methods.adapters import channel_adapters
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.compatibility import differences, levels_of_objects, missing_levels
from understudy.outputs import Outputs, Spec, Truth


class PKD(Method):
    r"""The student's channels are trained to correlate with the teacher's; their scale and offset are free.

    Each channel is standardised over the images and cells of the batch, then compared. The loss of a level is one minus
    the correlation, so the two may be detectors of different kinds. Both need the same channels, or ``adapt``.

    .. math::
        L_\text{feature} = \sum_l \frac{1}{2 N C H_l W_l} \sum_{n, c, h, w}
        \left(\tilde F^S_l - \tilde F^T_l\right)^2 \qquad
        \tilde F = \frac{F - \operatorname{mean}_{n, h, w} F}{\operatorname{std}_{n, h, w} F + 10^{-6}}

    The deviation is the unbiased one. A level with :math:`m` values per channel gives
    :math:`\frac{m - 1}{m}(1 - r)`, where :math:`r` is the mean of the channels' Pearson correlations.

    Evidence:
        paper: PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient.
        code: The reduction, the deviation, and the four finest levels. With a Faster R-CNN these are its levels below
            stride 64, so a pair with another detector has only three.
        weight: From the authors' configurations for RetinaNet and Faster R-CNN. Those of GFL and FCOS are from
            CrossKD's configurations, which add this term to their own and compare all levels (``levels=5``). Ours for
            other families.
        ours: ``adapt``.
        caution: Because of the unbiased deviation, repeating the batch changes the value slightly.
    """

    name = "pkd"
    terms = ("feature",)
    weights = {"retinanet": {"feature": 10.0}, "fcos": {"feature": 2.0}, EVERY_FAMILY: {"feature": 6.0}}
    source = (
        "Cao et al., NeurIPS 2022; weights from the authors' configurations of RetinaNet and Faster R-CNN; for GFL "
        "and FCOS from CrossKD's, which combine the term with their own and compare all levels; our choice for others"
    )
    checked = "authors' code, in open-mmlab/mmrazor @90c7af1: run on the same tensors, values to 1e-10"
    reads = {"feature": ("features",)}

    class Options(Method.Options):
        """The options of PKD."""

        levels: PositiveInt | None = None
        """Number of common levels to compare, counted from the finest. None: 4 (the authors'), with a two-stage
        detector only those below stride 64, as theirs are."""
        adapt: bool = False
        """Whether a trained 1x1 convolution per level maps the student's channels to the teacher's where they differ;
        the paper has none, and without it they must agree."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        self.levels = _compared(student, teacher, self.options.levels)
        self.adapters = channel_adapters(student.channels[: self.levels], teacher.channels[: self.levels])

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require a level to compare, and equal channels in each unless they are adapted."""
        compared = _compared(student, teacher, options.levels)
        absent = missing_levels(student, teacher) if options.levels is None else []
        if options.adapt:
            return {"feature": absent}
        channels = differences(student, teacher, lambda spec: f"the channels {spec.channels[:compared]}")
        cure = "methods.pkd.adapt=true adds a convolution for each level"
        return {"feature": [*absent, *(f"{fault}; {cure}" for fault in channels)]}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``pkd_feature``, summed over levels."""
        levels = zip(self.adapters, student.features[: self.levels], teacher.features[: self.levels], strict=True)
        losses = [correlation_loss(adapter(own), theirs) for adapter, own, theirs in levels]
        return {"pkd_feature": torch.stack(losses).sum()}


def _compared(student: Spec, teacher: Spec, levels: int | None) -> int:
    return min(4, levels_of_objects(student, teacher)) if levels is None else levels
