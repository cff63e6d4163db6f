"""A distillation method of your own, used by its import path, without changes to the package.

Run the command line in the folder of this file, or with that folder on PYTHONPATH:

    understudy distill data=photos teacher=runs/teacher run=runs/student --method own_method:ScoredFeatures

Set its options and the weights of its terms like those of any other method. The second command lists them:

    understudy distill ... --method own_method:ScoredFeatures methods.own_method:ScoredFeatures.power=1
    understudy methods own_method:ScoredFeatures
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from understudy import Method, Outputs, Spec, Truth


class ScoredFeatures(Method):
    """Feature imitation, weighted by the teacher's class scores."""

    name = "scored"
    terms = ("feature",)
    weights: ClassVar = {"*": {"feature": 1.0}}  # for every family
    source = "this example"
    checked = "our reading: there is no paper"  # what its arithmetic was compared with
    reads: ClassVar = {"feature": ("features", "teacher_scores")}  # pairs of detectors without these are refused

    class Options(Method.Options):
        """Options, each with its type, default and description."""

        power: float = 0.5
        """Exponent of the teacher's highest score in a cell, which weights the cell; 0: equal weights."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options):
        super().__init__(student, teacher, **options)
        levels = zip(student.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, kernel_size=1) for own, theirs in levels)

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth, layers=None) -> dict[str, Tensor]:
        """Return the weighted squared difference, averaged over channels, cells and images, then over levels."""
        means = []
        records = zip(self.adapters, student.features, teacher.features, teacher.class_logits, strict=True)
        for adapter, own, theirs, logits in records:
            weight = logits.float().amax((-2, -1)).sigmoid() ** self.options.power
            means.append((weight[:, None] * (adapter(own).float() - theirs.float()).square()).mean())
        return {"scored_feature": torch.stack(means).mean()}
