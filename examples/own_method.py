"""A distillation method of your own, used by its import path, without touching the package.

Run the command line in the folder of this file, or with that folder on PYTHONPATH:

    understudy distill data=photos teacher=runs/teacher run=runs/student --method own_method:ScoredFeatures

Its options, and the weights of its terms, are set like those of any other method. The second command lists them:

    understudy distill ... --method own_method:ScoredFeatures methods.own_method:ScoredFeatures.power=1
    understudy methods own_method:ScoredFeatures
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from understudy import Method, Outputs, Spec, Truth


class ScoredFeatures(Method):
    """The student's features imitate the teacher's, most where the teacher's class scores are high."""

    name = "scored"
    terms = ("feature",)
    weights: ClassVar = {"*": {"feature": 1.0}}  # of every family
    source = "this example"
    reads: ClassVar = {"feature": ("features", "teacher_scores")}  # pairs of detectors without these are refused

    class Options(Method.Options):
        """The options, each with its type, its default and its description."""

        power: float = 0.5
        """Exponent of the teacher's highest score in a cell, which weights the cell; 0 weights all alike."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options):
        super().__init__(student, teacher, **options)
        levels = zip(student.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, kernel_size=1) for own, theirs in levels)

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth, layers=None) -> dict[str, Tensor]:
        """Mean over channels, cells and images of the weighted squared differences; mean over levels."""
        means = []
        records = zip(self.adapters, student.features, teacher.features, teacher.class_logits, strict=True)
        for adapter, own, theirs, logits in records:
            weight = logits.float().amax((-2, -1)).sigmoid() ** self.options.power
            means.append((weight[:, None] * (adapter(own).float() - theirs.float()).square()).mean())
        return {"scored_feature": torch.stack(means).mean()}
