"""How much a term counts at a step; kept outside the methods, which return raw terms."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MOST, LEAST = 0.9, 0.05
"""Shares of the gradient beyond which the distillation drowns the student's own task, or drowns in it (ours)."""


@dataclass(frozen=True, slots=True)
class TermWeight:
    """A weight that grows linearly from zero over the first steps, as in FRS' released configurations.

    Attributes:
        weight: the final weight.
        ramp_steps: steps until it is reached; 0 starts with it.
    """

    weight: float
    ramp_steps: int = 0

    def at(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        return self.weight * min(1.0, step / self.ramp_steps) if self.ramp_steps else self.weight


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, TermWeight], step: int) -> Tensor:
    """Add scalar terms by their weights at a step; a term without a weight counts as it is."""
    return torch.stack(
        [term * weights[name].at(step) if name in weights else term for name, term in terms.items()]
    ).sum()
