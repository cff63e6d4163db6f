"""MGD: masked generative distillation (Yang et al., ECCV 2022)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from understudy.functional import shown_cells, squared_loss_per_image
from understudy.methods.adapters import channel_adapters
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.compatibility import levels_of_objects, missing_levels
from understudy.outputs import Outputs, Spec, Truth


class MGD(Method):
    r"""The teacher's features are generated from the student's, in which random cells are hidden.

    In every step random cells of the student's map are hidden. Two 3x3 convolutions with a ReLU between them,
    :math:`G_l`, generate the teacher's map from the rest. A 1x1 convolution, :math:`\phi_l`, comes first if channels
    differ. All of them are discarded after training.

    .. math::
        L_\text{feature} = \sum_l \frac{1}{N} \sum_{n, c, h, w} \left(G_l\left(m_l \phi_l(F^S_l)\right) - F^T_l\right)^2

    :math:`m_l` is 0 in hidden cells and 1 in the others, the same for all channels.

    Evidence:
        paper: Masked Generative Distillation.
        code: Mask, generator, reduction, the probabilities of ``hidden`` and the levels, all of them or a Faster
            R-CNN's four below stride 64. The authors clip the gradient at 35 (``optimizer.clip_norm=35``).
        weight: From the authors' configurations of one-stage and two-stage detectors.
        share: Under ``balance`` it takes at most 0.2 of the gradient unless ``share`` says otherwise. On BCCD a student
            of 44.3 AP had 42.2 with 0.8, and 43.6 with 0.2.
        caution: The hidden cells come from torch's global random numbers, so the value of a batch varies. In the
            authors' results for pairs of one family, the student starts with the teacher's neck and head, an option of
            the run here (``inherit=true``).
    """

    name = "mgd"
    terms = ("feature",)
    weights = {
        "retinanet": {"feature": 2e-5},
        "fcos": {"feature": 2e-5},
        "gfl": {"feature": 2e-5},
        "faster_rcnn": {"feature": 5e-7},
    }
    largest_share = {EVERY_FAMILY: 0.2}
    source = "Yang et al., ECCV 2022; weights from the authors' configurations of one-stage and two-stage detectors"
    checked = "authors' code, yzd-v/MGD @2c9da0b: run on the same tensors, values to 1e-10"
    reads = {"feature": ("features",)}

    class Options(Method.Options):
        """The options of MGD."""

        hidden: Annotated[float, Field(ge=0, lt=1)] | None = None
        """Probability that a cell is hidden. None: 0.45 for a two-stage student, 0.65 for others (the authors')."""
        levels: PositiveInt | None = None
        """Number of common levels to compare, counted from the finest. None: all; with a two-stage detector those below
        stride 64 (the authors' four)."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        hidden, levels = self.options.hidden, self.options.levels
        self.hidden = (0.45 if student.two_stage else 0.65) if hidden is None else hidden
        self.levels = levels_of_objects(student, teacher) if levels is None else levels
        channels = teacher.channels[: self.levels]
        self.adapters = channel_adapters(student.channels[: self.levels], channels)
        self.generators = nn.ModuleList(_generator(number) for number in channels)

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require a level to compare, unless ``levels`` names them."""
        return {"feature": missing_levels(student, teacher) if options.levels is None else []}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``mgd_feature``, summed over levels."""
        losses = []
        features = zip(student.features[: self.levels], teacher.features[: self.levels], strict=True)
        for adapter, generator, (own, theirs) in zip(self.adapters, self.generators, features, strict=True):
            seen = adapter(own) * shown_cells(own, self.hidden)
            losses.append(squared_loss_per_image(generator(seen), theirs))
        return {"mgd_feature": torch.stack(losses).sum()}


def _generator(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
