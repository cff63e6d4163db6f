"""MGD: masked generative distillation (Yang et al., ECCV 2022)."""

from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from understudy.functional import shown_cells, squared_loss_per_image
from understudy.methods.base import Method, channel_adapters, level_differences, levels_of_objects, missing_levels
from understudy.outputs import Outputs, Spec, Truth


class MGD(Method):
    """From a part of the student's features the whole of the teacher's must be generated.

    In every step random cells of the student's map are hidden, and two 3x3 convolutions with a ReLU between, thrown
    away after training, generate the teacher's map from the rest: squared differences, summed over channels and
    cells, averaged over images, summed over levels. A 1x1 convolution comes first where channels differ. The hidden
    cells come from torch's global random numbers, anew for each level, so the value of a batch varies.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        hidden: chance of a cell to be hidden; None: 0.45 for a Faster R-CNN, 0.65 for others (the authors').
        levels: how many of the common levels are compared, from the finest; None: all, where one of the two is a Faster
            R-CNN those below stride 64 (the authors', who have its four).

    Raises:
        UserError: the levels of the two detectors differ, or none is left, or an option is out of range.
    """

    name = "mgd"
    terms = ("feature",)
    weights = {  # noqa: RUF012
        **{family: {"feature": 2e-5} for family in ("retinanet", "fcos", "gfl")},
        "faster_rcnn": {"feature": 5e-7},
    }
    reads = ("features",)
    source = "Yang et al., ECCV 2022; weights from the authors' configurations of one-stage and two-stage detectors"

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        hidden: Annotated[float, Field(ge=0, lt=1)] | None = None,
        levels: PositiveInt | None = None,
    ):
        super().__init__(student, teacher, levels=levels)
        self.hidden = (0.45 if student.family == "faster_rcnn" else 0.65) if hidden is None else hidden
        self.levels = levels_of_objects(student, teacher) if levels is None else levels
        channels = teacher.channels[: self.levels]
        self.adapters = channel_adapters(student.channels[: self.levels], channels)
        self.generators = nn.ModuleList(_generator(number) for number in channels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree, and one be left."""
        faults = level_differences(student, teacher)
        if not faults and options.get("levels") is None:
            faults = missing_levels(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
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
