"""The weights of distillation terms, so that each has a chosen share of the student's gradient.

Where all losses meet, in the outputs of the backbone's stages, the norm of each one's gradient is measured now and
then. A term's weight follows from it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from understudy.errors import RunError, UserError
from understudy.learner import Learner
from understudy.methods.weighting import TermWeight, weighted_sum
from understudy.networks.processes import averaged_over_processes

EVERY = 125
"""Steps between two measurements. One takes up to a third of a step, so this is 0.25 % of a run."""

EARLY = (0, 5, 10, 15, 20, 30, 40, 50, 75)
"""Further steps with a measurement: at first, the losses of a new head change quickly."""

FREE_STEPS = 100
"""Steps in which the ratio of a term's norm to the student's own may take any value; afterwards it stays within
:data:`LARGEST_CHANGE` of its value then."""

LARGEST_CHANGE = 10.0
"""A term that dies, since the student has learnt it, must not be raised without limit; nor may one that explodes fall
to nothing."""

SMOOTHING = 0.5
"""Part of a measurement in the new ratio, in the logarithm: a single batch moves a weight by half of the distance."""

HALF_SCALES = (4096.0, 64.0, 1.0, 1 / 64)
"""Factors of losses in float16 while they are measured, since small gradients would become zero, and large ones
infinite. Each loss has the first factor with which its gradient is finite."""

_OWN = "the student's own losses"
"""The name of their sum, beside those of the terms."""


@dataclass(frozen=True, slots=True)
class Shares:
    """The norms of the gradients of one step, where all terms meet.

    Attributes:
        own: of the sum of the student's own losses.
        norms: of each distillation term, unweighted.
        weights: of the terms in that step.
        together: of the weighted sum of the distillation terms.
    """

    own: float
    norms: Mapping[str, float]
    weights: Mapping[str, float]
    together: float

    @property
    def distillation(self) -> float:
        """The distillation's norm over the sum of its norm and the student's own (0..1)."""
        return self.together / (self.together + self.own) if self.together + self.own else 0.0

    @property
    def terms(self) -> dict[str, float]:
        """Each term's norm, weighted, over the sum of all norms (0..1)."""
        weighted = {name: norm * self.weights[name] if self.weights[name] else 0.0 for name, norm in self.norms.items()}
        total = self.own + sum(weighted.values())
        return {name: norm / total if total else 0.0 for name, norm in weighted.items()}


class Balance:
    r"""Sum the losses of a step, with weights that give each distillation term its share of the gradient.

    A term :math:`i` with the share :math:`s_i` gets the weight

    .. math::
        w_i = \frac{s_i}{1 - \sum_j s_j} \frac{\lVert g_\text{own} \rVert}{\lVert g_i \rVert}

    where :math:`g` are gradients with respect to the maps that the losses have in common, all levels together, and the
    sum runs over the terms that have a share. The ratio of the norms is smoothed in the logarithm and bounded
    (:data:`LARGEST_CHANGE`). Terms without a share keep their fixed weights.

    In your own training loop::

        methods, weights = build_methods({"frs": {}}, common.student, common.teacher, balance=0.8)
        learner = Learner(student, methods, common)
        balance = Balance(learner, weights)
        ...
        loss = balance(learner(images, targets, teacher_outputs))

    The idea of weights from norms of gradients where the tasks meet is that of GradNorm (Chen et al., ICML 2018), which
    learns them; here they follow directly.

    Args:
        learner: the student and its methods, before the first step.
        weights: of every distillation term, from :func:`.build_methods`.
        steps: steps of the whole run; needed for ``end`` and ``until``.
        end: factor (0..1) that the shares are multiplied by at the end of the run, reached linearly.
        until: part of the run (0..1) after which the ratios of the norms stay as they are; that of a term that had no
            gradient by then is still measured once.

    Attributes:
        weights: of every distillation term in the next step.
        last: the weight of every distillation term in the last step.
        reading: the last measurement with finite gradients; None before it.

    Raises:
        UserError: the shares leave nothing for the student's own losses, or a number is out of range.
        RunError: when called, in which no weight can follow from a share, as gradients were never finite.
    """

    def __init__(
        self,
        learner: Learner,
        weights: Mapping[str, TermWeight],
        *,
        steps: int | None = None,
        end: float = 1.0,
        until: float = 1.0,
    ):
        self.learner, self.given, self.steps, self.end, self.until = learner, dict(weights), steps, end, until
        self.shares = {name: weight.share for name, weight in weights.items() if weight.share is not None}
        if sum(self.shares.values()) >= 1:
            shares = ", ".join(f"{name} {share:g}" for name, share in self.shares.items())
            raise UserError(f"The shares of the terms add up to 1 or more, and leave nothing for the student: {shares}")
        if not (0 <= end <= 1 and 0 <= until <= 1):
            raise UserError(f"end and until of a Balance are numbers from 0 to 1, got {end} and {until}.")
        if steps is None and (end, until) != (1, 1):
            raise UserError("A Balance with end or until needs the number of steps of the run: Balance(..., steps=N).")
        self.step = 0
        self.found: dict[str, float] = {}  # the student's own norm over that of a term, smoothed
        self.reference: dict[str, float] = {}  # the same at the end of the free steps
        self.reading: Shares | None = None
        self.last: dict[str, float] = {}
        learner.keeps_shared_maps = self.is_due(0)

    @property
    def weights(self) -> dict[str, TermWeight]:
        """The weight of every distillation term in the next step; that of a term not yet measured is 0."""
        factor = self._factor
        odds = factor / (1 - factor * sum(self.shares.values()))
        return {
            name: weight
            if weight.share is None
            else replace(weight, weight=odds * weight.share * self.found.get(name, 0.0))
            for name, weight in self.given.items()
        }

    def is_due(self, step: int) -> bool:
        """Return whether a step is measured: those of the schedule, and all until each term has had a gradient."""
        if not self.given:
            return False
        return step in EARLY or step % EVERY == 0 or (step < FREE_STEPS and self.shares.keys() != self.found.keys())

    def __call__(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of a step's losses, scalar, after a measurement if one is due."""
        if self.is_due(self.step):
            self.measure(losses)
        weights = self.weights
        self.last = {name: weight.at(self.step) for name, weight in weights.items()}
        total = weighted_sum(losses, weights, self.step)
        self.step += 1
        self.learner.keeps_shared_maps = self.is_due(self.step)
        return total

    def measure(self, losses: Mapping[str, Tensor]) -> Shares:
        """Measure the gradients of a step's losses, let the weights follow, and return the measurement."""
        own = [loss for name, loss in losses.items() if name not in self.given]
        parts = {_OWN: torch.stack(own).sum()} if own else {}
        gradients, norms = self._measured(parts | {name: losses[name] for name in self.given})
        gradients.pop(_OWN, None)
        of_own = norms.pop(_OWN, 0.0)
        self._follow(of_own, norms)
        self._check_found(of_own, norms)
        weights = {name: weight.at(self.step) for name, weight in self.weights.items()}  # those that now follow
        together = _norm(_weighted_gradients(gradients, weights), self._device)
        reading = Shares(of_own, norms, weights, float(averaged_over_processes(together, least=0.0)))
        if math.isfinite(reading.own + reading.together):
            self.reading = reading
        return reading

    def _measured(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, list[Tensor | None]], dict[str, float]]:
        """Return the gradients of each loss where all meet, and their norm; it is averaged over the processes."""
        gradients: dict[str, list[Tensor | None]] = {}
        norms = dict.fromkeys(losses, math.nan)
        in_half = any(each.dtype == torch.float16 for each in self._maps)
        for scale in HALF_SCALES if in_half else (1.0,):
            lost = [name for name, norm in norms.items() if not math.isfinite(norm)]  # the same in all processes
            if not lost:
                break
            gradients |= {name: self._gradients(losses[name], scale) for name in lost}
            found = torch.stack([_norm(gradients[name], self._device) for name in lost])
            norms |= dict(zip(lost, averaged_over_processes(found, least=0.0).tolist(), strict=True))
        return gradients, norms

    def _follow(self, own: float, norms: Mapping[str, float]) -> None:
        """Let the ratios follow the norms of a step; what is zero or not finite says nothing."""
        over = bool(self.steps) and self.step > self.until * self.steps
        for name in self.shares:
            ratio = own / norms[name] if norms[name] else 0.0
            if not 0 < ratio < math.inf or (over and name in self.found):
                continue
            if name in self.found:
                ratio = self.found[name] ** (1 - SMOOTHING) * ratio**SMOOTHING
            if name in self.reference:
                least, most = self.reference[name] / LARGEST_CHANGE, self.reference[name] * LARGEST_CHANGE
                ratio = min(max(ratio, least), most)
            elif self.step >= FREE_STEPS:
                self.reference[name] = ratio
            self.found[name] = ratio

    def _check_found(self, own: float, norms: Mapping[str, float]) -> None:
        """Check that no term is without a weight at the end of the free steps since its gradient was never finite."""
        free = min(FREE_STEPS, self.steps or FREE_STEPS)
        waiting = [name for name in self.shares if name not in self.found]
        lost = [name for name in waiting if not math.isfinite(norms[name])]
        if waiting and not math.isfinite(own):
            lost.append(_OWN)
        if lost and self.step + 1 >= free:
            raise RunError(
                f"No finite gradient in {free} steps: {', '.join(lost)}. The weights that follow from it are still 0, "
                "so the distillation has no effect. Possible remedies: use precision=32 or precision=bf16, lower "
                "optimizer.lr, or set fixed weights (methods.NAME.TERM_weight)."
            )

    @property
    def _factor(self) -> float:
        """Factor of the shares in this step."""
        if not self.steps:
            return 1.0
        return 1 + (self.end - 1) * min(1.0, self.step / self.steps)

    @property
    def _device(self) -> torch.device:
        return next(self.learner.student.parameters()).device

    @property
    def _maps(self) -> tuple[Tensor, ...]:
        """The maps where all losses meet, or all weights without such."""
        weights = (each for each in self.learner.student.parameters() if each.requires_grad)
        return self.learner.shared_maps or tuple(weights)

    def _gradients(self, loss: Tensor, scale: float) -> list[Tensor | None]:
        """Return the gradients of a loss, which is multiplied by a factor meanwhile, with respect to these maps."""
        maps = self._maps
        if not loss.requires_grad:
            return [None] * len(maps)
        found = torch.autograd.grad(loss * scale, maps, retain_graph=True, allow_unused=True)
        return [None if gradient is None else gradient.float() / scale for gradient in found]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, so that a resumed run has the same weights."""
        return {"step": self.step, "found": dict(self.found), "reference": dict(self.reference)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.step, self.found, self.reference = state["step"], dict(state["found"]), dict(state["reference"])
        self.learner.keeps_shared_maps = self.is_due(self.step)


def _norm(gradients: Sequence[Tensor | None], device: torch.device) -> Tensor:
    squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=device)


def _weighted_gradients(
    gradients: Mapping[str, Sequence[Tensor | None]], weights: Mapping[str, float]
) -> list[Tensor | None]:
    """Return the weighted sum of the terms' gradients at each map; those of weight 0 need not be finite."""
    at_each_map = zip(*gradients.values(), strict=True)
    sums = []
    for found in at_each_map:
        pairs = [(weights[name], each) for name, each in zip(gradients, found, strict=True) if each is not None]
        weighted = [each * weight if weight else torch.zeros_like(each) for weight, each in pairs]
        sums.append(torch.stack(weighted).sum(0) if weighted else None)
    return sums
