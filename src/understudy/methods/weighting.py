"""The weight of each term at each step. Methods return raw terms and do not weight them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LATE = 10**9
"""A step at which the weights of all terms have grown to their final values."""

LARGEST_SHARE, SMALLEST_SHARE = 0.95, 0.05
"""Limits of the share of the gradient that comes from distillation (ours). Above the first, the student's own task has
little influence; below the second, distillation has."""


@dataclass(frozen=True, slots=True)
class TermWeight:
    """A weight that grows linearly from zero over the first steps, as in FRS' released configurations.

    Attributes:
        weight: the final weight.
        ramp_steps: steps until it is reached; 0: it holds from the first step.
        share: the share of the gradient (0..1) that the weight shall follow from (:class:`.Balance`); None: the weight
            is fixed.

    Examples:
        >>> TermWeight(0.5, ramp_steps=10).at(5)
        0.25
    """

    weight: float
    ramp_steps: int = 0
    share: float | None = None

    def at(self, step: int) -> float:
        """Return the weight at a step, counted from 0."""
        return self.weight * min(1.0, step / self.ramp_steps) if self.ramp_steps else self.weight


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, TermWeight], step: int) -> Tensor:
    """Sum scalar terms by their weights at a step; a term without an entry has the weight 1.

    Examples:
        >>> terms = {"classification": torch.tensor(1.0), "hint_feature": torch.tensor(4.0)}
        >>> weighted_sum(terms, {"hint_feature": TermWeight(0.5)}, step=0)
        tensor(3.)
    """
    return torch.stack(
        [term * weights[name].at(step) if name in weights else term for name, term in terms.items()]
    ).sum()
