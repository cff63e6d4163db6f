"""Pair-wise similarity distillation (Liu et al., CVPR 2019)."""

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.functional import pairwise_loss
from understudy.methods.base import Method, level_differences
from understudy.outputs import Outputs, Spec, Truth


class Pairwise(Method):
    """Two places of an image are alike to the student as far as they are to the teacher.

    The cosine similarities of all pairs of cells of a level are compared: squared differences, averaged over pairs and
    images, summed over levels. Nothing is learned in between, and channels need not agree. Written for segmentation;
    on the levels of a detector it is the "pa" of Dist2's tables. Large levels are pooled first (theirs to patches
    too; the limit is ours, since the memory grows with the square of the cells).

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        max_cells: a level with more cells is max-pooled to at most so many (1600 are 10 MB per image and detector).

    Raises:
        UserError: the levels of the two detectors differ.
    """

    name = "pairwise"
    terms = ("relation",)
    weights = {family: {"relation": 1.0} for family in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    reads = ("features",)
    source = "Liu et al., CVPR 2019, and the authors' code; the weight is ours, no one's for a detector is known"

    def __init__(self, student: Spec, teacher: Spec, *, max_cells: PositiveInt = 1600):
        super().__init__(student, teacher)
        self.max_cells = max_cells

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``pairwise_relation``, summed over levels."""
        levels = zip(student.features, teacher.features, strict=True)
        return {"pairwise_relation": torch.stack([pairwise_loss(*level, self.max_cells) for level in levels]).sum()}
