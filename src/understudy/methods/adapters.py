"""Adapters that several methods use; they are trained, and discarded after training."""

from collections.abc import Sequence

from torch import nn


def channel_adapters(student: Sequence[int], teacher: Sequence[int], *, always: bool = False) -> nn.ModuleList:
    """Build a 1x1 convolution per level, from the student's channels to the teacher's.

    Args:
        student: channels of the student, per level.
        teacher: channels of the teacher, per level.
        always: whether to build it also if the channels agree, instead of passing the features through.
    """
    levels = zip(student, teacher, strict=True)
    return nn.ModuleList(
        nn.Identity() if own == theirs and not always else nn.Conv2d(own, theirs, kernel_size=1)
        for own, theirs in levels
    )
