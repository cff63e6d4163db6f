"""The non-local term of FKD alone (Zhang & Ma, ICLR 2021); ``nonlocal`` is a word of Python's."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.functional import joint_distance, non_local
from understudy.methods.base import Method, level_differences
from understudy.outputs import Outputs, Spec, Truth

ONE_STAGE = ("retinanet", "fcos", "gfl")


class NonLocal(Method):
    """What the student gathers from the whole image for each place is what the teacher gathers.

    Both feature pyramids go through non-local blocks that are trained, the teacher's too, and thrown away after
    training; a 1x1 convolution draws the student's result to the teacher's. Per level the 2-norm of the difference
    over the whole batch, summed over levels. It is not an average: repeating the batch changes the value.
    This is the non-local term of :class:`.fkd.FKD` and nothing else, which we take Dist2's "NonLocal" to be.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: the levels of the two detectors differ.
    """

    name = "nonlocal"
    terms = ("relation",)
    weights = {  # noqa: RUF012
        **{family: {"relation": 4.2e-4} for family in ONE_STAGE},
        "faster_rcnn": {"relation": 7e-5},
    }
    reads = ("features",)
    source = "Zhang & Ma, ICLR 2021, one term; weights from copies of the authors' code"

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__(student, teacher)
        self.relation = NonLocalRelation(student.channels, teacher.channels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``nonlocal_relation``, summed over levels."""
        return {"nonlocal_relation": self.relation(student.features, teacher.features)}


class NonLocalRelation(nn.Module):
    """Non-local blocks for two feature pyramids, of so many channels per level, and how far their results lie apart."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int]):
        super().__init__()
        levels = list(enumerate(zip(student, teacher, strict=True)))
        self.student = nn.ModuleList(NonLocalBlock(own, level) for level, (own, _) in levels)
        self.teacher = nn.ModuleList(NonLocalBlock(theirs, level) for level, (_, theirs) in levels)
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, 1) for _, (own, theirs) in levels)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compute the sum over levels of the distances, from features (N, C, H, W); the teacher's are constants."""
        blocks = zip(self.student, self.adapters, self.teacher, strict=True)
        distances = [
            joint_distance(adapter(block(own)), other(theirs.detach()))
            for (block, adapter, other), own, theirs in zip(blocks, student, teacher, strict=True)
        ]
        return torch.stack(distances).sum()


class NonLocalBlock(nn.Module):
    """A map plus what each of its cells gathers from all others; at first, with zero weights, the map alone.

    Inner channels (a quarter on the two finest levels, then a half) and pooling (8, 4, then 2) are, at 256 channels,
    those of copies of the authors' code. A map smaller than the pooling becomes one cell (ours).

    Args:
        channels: C.
        level: place in the pyramid, 0 the finest.
    """

    def __init__(self, channels: int, level: int):
        super().__init__()
        inner = max(1, channels // (4 if level < 2 else 2))
        self.pooling = (8, 4)[level] if level < 2 else 2
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # ty: ignore[invalid-argument-type]

    def forward(self, features: Tensor) -> Tensor:
        """Compute (N, C, H, W) from (N, C, H, W)."""
        key, value = (F.max_pool2d(layer(features), self.pooling, ceil_mode=True) for layer in (self.key, self.value))
        return features + self.out(non_local(self.query(features), key, value))
