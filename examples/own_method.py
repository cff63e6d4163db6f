"""A distillation method of your own, used by its import path, without touching the package.

Run the command line where this file is, or with its folder on PYTHONPATH:

    understudy distill data=photos teacher=runs/teacher run=runs/student --method own_method:ScoredFeatures

Its options, and the weights of its terms, are set like those of any other; the second command shows them all:

    understudy distill ... --method own_method:ScoredFeatures methods.own_method:ScoredFeatures.power=1
    understudy methods own_method:ScoredFeatures
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from understudy import Method, Outputs, Spec, Truth


class ScoredFeatures(Method):
    """The student's features imitate the teacher's, most of all where the teacher is sure of a class.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        power: of the teacher's highest score in a cell, by which the cell counts; 0 counts all alike.
    """

    name = "scored"
    terms = ("feature",)
    weights: ClassVar = {"retinanet": {"feature": 1.0}, "fcos": {"feature": 1.0}}
    source = "this example"

    def __init__(self, student: Spec, teacher: Spec, *, power: float = 0.5):
        super().__init__(student, teacher)
        self.power = power
        levels = zip(student.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, kernel_size=1) for own, theirs in levels)

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Mean over channels, cells and images of the weighted squared differences; mean over levels."""
        means = []
        records = zip(self.adapters, student.features, teacher.features, teacher.class_logits, strict=True)
        for adapter, own, theirs, logits in records:
            weight = logits.float().amax((-2, -1)).sigmoid() ** self.power
            means.append((weight[:, None] * (adapter(own).float() - theirs.float()).square()).mean())
        return {"scored_feature": torch.stack(means).mean()}
