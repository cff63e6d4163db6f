"""A small method."""

from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor

from understudy.methods.adapters import channel_adapters
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class ChannelMeans(Method):
    """The mean of every channel over an image follows the teacher's."""

    name = "channel_means"
    terms = ("mean",)
    weights = {EVERY_FAMILY: {"mean": 1.0}}
    source = "this plugin"
    checked = "our reading: there is no paper"
    reads = {"mean": ("features",)}

    class Options(Method.Options):
        """Options of the method."""

        scale: PositiveFloat = 1.0
        """Multiplies the differences."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        self.adapters = channel_adapters(student.channels, teacher.channels)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        levels = zip(self.adapters, student.features, teacher.features, strict=True)
        losses = [
            (self.options.scale * (adapter(own).mean((2, 3)) - theirs.mean((2, 3)))).square().mean()
            for adapter, own, theirs in levels
        ]
        return {"channel_means_mean": torch.stack(losses).float().sum()}
