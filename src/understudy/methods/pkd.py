"""PKD: distillation by Pearson correlation (Cao et al., NeurIPS 2022)."""

from typing import Any

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.functional import correlation_loss
from understudy.methods.base import Method, differences, level_differences
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
        levels: how many of the common levels are compared, from the finest (4 in the authors' configurations).

    Raises:
        UserError: levels, or the channels of those compared, differ.
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
        "CrossKD's, which adds it to its own; for FCOS it is our choice"
    )

    def __init__(self, student: Spec, teacher: Spec, *, levels: int = 4):
        if levels < 1:
            raise UserError(f"[methods.pkd] levels is a number of levels, 1 or more, got {levels}.")
        super().__init__(student, teacher, levels=levels)
        self.levels = levels

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, *, levels: int = 4, **options: Any) -> dict[str, str]:
        """Levels must agree, and their channels: there is no adapter."""
        faults = level_differences(student, teacher)
        channels = differences(student, teacher, lambda spec: f"the channels {spec.channels[:levels]}")
        faults += [f"{fault}; hint and mgd adapt the channels" for fault in channels]
        return dict.fromkeys(cls.terms, "; ".join(faults)) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``pkd_feature``, summed over levels."""
        levels = zip(student.features[: self.levels], teacher.features[: self.levels], strict=True)
        return {"pkd_feature": torch.stack([correlation_loss(*level) for level in levels]).sum()}
