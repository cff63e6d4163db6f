"""PKD: distillation by Pearson correlation (Cao et al., NeurIPS 2022)."""

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.functional import correlation_loss
from understudy.methods.base import Method, differences, level_differences, levels_of_objects, missing_levels
from understudy.outputs import Outputs, Spec, Truth


class PKD(Method):
    """Every channel of the student rises and falls with the teacher's; how large its values are is left to it.

    Channels are standardised over the images and cells of the batch, then compared: half of the squared difference,
    averaged over images, channels and cells, summed over levels. A level gives one minus the correlation, so the two
    may be detectors of different kinds. It does not depend on the ground truth, and nothing is learned in between.
    The unbiased deviation makes the value depend slightly on the number of cells: repeating the batch changes it.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        levels: how many of the common levels are compared, from the finest; None: 4 (the authors'), but none of a
            Faster R-CNN's from stride 64 on, which are not among their 4. GFL's weight is from a configuration that
            compares all levels (``levels=5``).

    Raises:
        UserError: levels, or the channels of those compared, differ, or none is left.
    """

    name = "pkd"
    terms = ("feature",)
    weights = {  # noqa: RUF012
        "retinanet": {"feature": 10.0},
        "faster_rcnn": {"feature": 6.0},
        "gfl": {"feature": 6.0},
        "fcos": {"feature": 6.0},
    }
    reads = ("features",)
    source = (
        "Cao et al., NeurIPS 2022; weights from the authors' configurations of RetinaNet and Faster R-CNN, of GFL from "
        "CrossKD's, which adds it to its own and compares all levels; for FCOS it is our choice"
    )

    def __init__(self, student: Spec, teacher: Spec, *, levels: PositiveInt | None = None):
        super().__init__(student, teacher, levels=levels)
        self.levels = _compared(student, teacher, levels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, *, levels: int | None = None, **options: Any) -> dict[str, str]:
        """Levels must agree, and their channels: there is no adapter."""
        faults, compared = level_differences(student, teacher), _compared(student, teacher, levels)
        if not (faults or compared):
            faults = missing_levels(student, teacher)
        channels = differences(student, teacher, lambda spec: f"the channels {spec.channels[:compared]}")
        faults += [f"{fault}; hint and mgd adapt the channels" for fault in channels]
        return dict.fromkeys(cls.terms, "; ".join(faults)) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``pkd_feature``, summed over levels."""
        levels = zip(student.features[: self.levels], teacher.features[: self.levels], strict=True)
        return {"pkd_feature": torch.stack([correlation_loss(*level) for level in levels]).sum()}


def _compared(student: Spec, teacher: Spec, levels: int | None) -> int:
    return min(4, levels_of_objects(student, teacher)) if levels is None else levels
