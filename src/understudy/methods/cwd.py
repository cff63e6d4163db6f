"""CWD: channel-wise distillation (Shu et al., ICCV 2021)."""

from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from understudy.functional import channelwise_loss
from understudy.methods.base import Method, anchor_differences, channel_adapters, differences, level_differences
from understudy.outputs import Outputs, Spec, Truth


class CWD(Method):
    """Every channel of the student responds at the same places of the image as the teacher's.

    A channel's map becomes a distribution over cells; Kullback-Leibler divergence, averaged over images and channels,
    times the squared temperature, summed over levels. How strongly a channel responds is left to the student.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        on: compare the ``"features"`` of the pyramid, or the class ``"logits"``, whose channels are every class of
            every anchor. Features with other channels than the teacher's go through a 1x1 convolution per level that
            is thrown away after training (ours: the authors compare equal channels).
        temperature: divides the maps before the softmax over cells.

    Raises:
        UserError: an option is wrong, or levels, or for logits classes or anchors, of the two detectors differ.
    """

    name = "cwd"
    terms = ("channel",)
    weights = {family: {"channel": 10.0} for family in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    reads = ("features", "class_logits")
    source = (
        "Shu et al., ICCV 2021; the weight is from other projects' configurations of RetinaNet, Faster R-CNN and GFL, "
        "and for FCOS our choice"
    )

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        on: Literal["features", "logits"] = "features",
        temperature: PositiveFloat = 1.0,
    ):
        super().__init__(student, teacher, on=on)
        self.on, self.temperature = on, temperature
        if on == "features":
            self.adapters = channel_adapters(student.channels, teacher.channels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, *, on: str = "features", **options: Any) -> dict[str, str]:
        """Levels must agree; for logits, what is scored and the anchors too."""
        levels, unlike = level_differences(student, teacher), []
        if on == "logits":
            unlike = differences(student, teacher, lambda spec: spec.scored) + anchor_differences(student, teacher)
        remedy = ["methods.cwd.on=features compares features"] if unlike and not levels else []
        faults = levels + unlike + remedy
        return dict.fromkeys(cls.terms, "; ".join(faults)) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``cwd_channel``, summed over levels."""
        if self.on == "features":
            own = [adapter(level) for adapter, level in zip(self.adapters, student.features, strict=True)]
            theirs = teacher.features
        else:
            own, theirs = (list(map(_as_maps, record.class_logits)) for record in (student, teacher))
        losses = [channelwise_loss(*level, self.temperature) for level in zip(own, theirs, strict=True)]
        return {"cwd_channel": torch.stack(losses).sum()}


def _as_maps(class_logits: Tensor) -> Tensor:
    """(N, A * K, H, W) from (N, H, W, A, K)."""
    return class_logits.flatten(3).movedim(-1, 1)
