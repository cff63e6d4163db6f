"""CWD: channel-wise distillation (Shu et al., ICCV 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from understudy.functional import channelwise_loss
from understudy.methods.adapters import channel_adapters
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.compatibility import unreadable
from understudy.outputs import Outputs, Spec, Truth


class CWD(Method):
    r"""The student's channels imitate the distribution of the teacher's responses over the cells of the image.

    A softmax turns the map of each channel into a distribution over cells, and the two distributions are compared. The
    strength of the response is not compared.

    .. math::
        L_\text{channel} = \sum_l \frac{\tau^2}{N C} \sum_{n, c} \sum_{h, w} p^T_l \log \frac{p^T_l}{p^S_l} \qquad
        p^S_l = \operatorname{softmax}_{h, w}\left(\frac{\phi_l(F^S_l)}{\tau}\right) \qquad
        p^T_l = \operatorname{softmax}_{h, w}\left(\frac{F^T_l}{\tau}\right)

    :math:`\tau` is the temperature. :math:`\phi_l` is a 1x1 convolution, used if channels differ and discarded after
    training. With ``on=logits``, class logits are compared instead of features, without an adapter.

    Evidence:
        paper: Channel-wise Knowledge Distillation for Dense Prediction. The authors compare equal channels.
        ours: The adapter, if channels differ.
        weight: 10 per level and the temperature 1 are from other projects' configurations of RetinaNet, Faster R-CNN
            and GFL. For FCOS and other families they are our choice.
        related: One published row for GFL compares class maps, as ``on=logits`` does.
    """

    name = "cwd"
    terms = ("channel",)
    weights = {EVERY_FAMILY: {"channel": 10.0}}
    source = (
        "Shu et al., ICCV 2021; the weight is from other projects' configurations of RetinaNet, Faster R-CNN and GFL, "
        "our choice for other families"
    )
    checked = "the paper, and open-mmlab/mmrazor @90c7af1: run on the same tensors, values to 1e-10"
    reads = {"channel": ("features",)}

    class Options(Method.Options):
        """The options of CWD."""

        on: Literal["features", "logits"] = "features"
        """Compare the ``"features"``, or the class ``"logits"``, whose channels are every class of every anchor."""
        temperature: PositiveFloat = 1.0
        """Divides the maps before the softmax over cells."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        if self.options.on == "features":
            self.adapters = channel_adapters(student.channels, teacher.channels)

    @classmethod
    def reads_with(cls, options: Options) -> Mapping[str, tuple[str, ...]]:
        """Return the inputs of the term: features, or class logits with ``on="logits"``."""
        return {"channel": ("class_logits",)} if options.on == "logits" else cls.reads

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Name the option that helps if only the predictions differ."""
        features, logits = (unreadable([read], student, teacher) for read in ("features", "class_logits"))
        helps = options.on == "logits" and logits and not features
        return {"channel": ["set methods.cwd.on=features to compare features"] if helps else []}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``cwd_channel``, summed over levels."""
        if self.options.on == "features":
            own = [adapter(level) for adapter, level in zip(self.adapters, student.features, strict=True)]
            theirs = teacher.features
        else:
            own, theirs = (list(map(_as_maps, record.class_logits)) for record in (student, teacher))
        losses = [channelwise_loss(*level, self.options.temperature) for level in zip(own, theirs, strict=True)]
        return {"cwd_channel": torch.stack(losses).sum()}


def _as_maps(class_logits: Tensor) -> Tensor:
    """Reshape (N, H, W, A, K) to (N, A * K, H, W)."""
    return class_logits.flatten(3).movedim(-1, 1)
