"""Do the terms reach the student: values and gradients on real batches, and training on one batch for some steps."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from understudy.balance import Balance, Shares
from understudy.data import Batch
from understudy.detectors import Detector
from understudy.diagnosis.findings import Finding
from understudy.learner import Learner
from understudy.methods.weighting import LARGEST_SHARE, SMALLEST_SHARE, TermWeight
from understudy.text import listed
from understudy.training.teacher_pass import record_of_teacher

PROBE_LR = 1e-3
"""Learning rate of AdamW in the training on one batch: it overfits every student of the package, see docs/doctor.md."""

MUST_FALL = 0.8
"""The student's own loss must fall below this share of its first value on a batch that it sees again and again."""

HOPELESS_ABOVE, HOPELESS_BELOW = 0.9995, 0.01
"""Shares of the gradient of a weight that is hundreds of times too large or too small. On BCCD, published weights gave
95 to 99.9 % after 30 steps, and a thousandth of a good one 0.2 % (docs/doctor.md)."""

SILENT_TERM = 2e-3
"""A term with a smaller share of the gradient than this, while others have more, has no effect."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The losses of a batch, and the norms of their gradients where all of them meet.

    Attributes:
        values: losses by name, unweighted.
        gradients: as the run itself measures them.
    """

    values: dict[str, float]
    gradients: Shares

    @property
    def shares(self) -> dict[str, float]:
        """Each term's share of the sum of all norms, 0..1."""
        return self.gradients.terms

    @property
    def share(self) -> float:
        """The distillation's share of the gradient, 0..1, as in ``losses.csv``, but by term."""
        return sum(self.shares.values())


@dataclass(slots=True)
class Probe:
    """The student with its methods and the frozen teacher, on the device of the run.

    Attributes:
        learner: the student and the methods.
        given: the weights of the terms; each counts without its ramp.
        teacher: frozen.
        device: of both.
        keys: the config key of each term's weight.
        seconds_per_step: of each step on one batch.
        checksum: of the teacher's weights before the first step.
        balance: sums the losses.
    """

    learner: Learner
    given: Mapping[str, TermWeight]
    teacher: Detector
    device: torch.device
    keys: Mapping[str, str]
    seconds_per_step: list[float] = field(default_factory=list)
    checksum: float = 0.0
    balance: Balance = field(init=False)

    @property
    def weights(self) -> Mapping[str, TermWeight]:
        """The weight of each term now."""
        return self.balance.weights

    def __post_init__(self) -> None:
        """Move both to the device, and note the teacher's weights."""
        self.learner.to(self.device).train()
        self.balance = Balance(self.learner, {name: replace(each, ramp_steps=0) for name, each in self.given.items()})
        self.teacher.to(self.device)
        self.checksum = _checksum(self.teacher)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute every loss of a batch that is on the device, unweighted."""
        with torch.no_grad():
            outputs = record_of_teacher(self.teacher, batch, self.learner.needs)
        return self.learner(
            batch.images, batch.targets, outputs, batch.image_sizes, batch.labelled, teacher=self.teacher
        )

    def read(self, batch: Batch) -> Reading:
        """Measure the losses of a batch and their gradients."""
        self.learner.keeps_shared_maps = True
        losses = self.losses(batch)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        return Reading(values, self.balance.measure(losses))

    def train_on(self, batch: Batch, steps: int, seconds: float) -> list[float]:
        """Train on one batch by AdamW for some steps, or some seconds; return the student's own loss at each."""
        optimizer = torch.optim.AdamW(
            [weight for weight in self.learner.parameters() if weight.requires_grad], PROBE_LR
        )
        own, end = [], time.monotonic() + seconds
        for step in range(steps):
            started = time.monotonic()
            losses = self.losses(batch)
            total = self.balance(losses)
            own.append(sum(float(loss.detach()) for name, loss in losses.items() if name not in self.weights))
            if not math.isfinite(float(total.detach())):
                break
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 10.0)
            optimizer.step()
            self.seconds_per_step.append(time.monotonic() - started)
            if time.monotonic() > end and step >= 1:
                break
        return own


def frozen_findings(probe: Probe) -> Iterator[Finding]:
    """Check, after some steps, that the teacher is frozen."""
    trained = [name for name, weight in probe.teacher.named_parameters() if weight.requires_grad]
    if trained or probe.teacher.training or _checksum(probe.teacher) != probe.checksum:
        yield Finding(
            check="teacher is frozen",
            severity="fatal",
            what=f"it changes while the student is trained: {len(trained)} of its weights are trained",
            why="The student would follow a target that moves.",
            remedy="teacher.requires_grad_(False).eval()",
        )
    else:
        yield Finding(check="teacher is frozen", severity="ok", what="its weights are the same after the steps")


def term_findings(probe: Probe, readings: Sequence[Reading]) -> Iterator[Finding]:
    """Check on the first batches that each term is finite, not zero, and reaches the student."""
    broken = {name for reading in readings for name, value in reading.values.items() if not math.isfinite(value)}
    norms = [reading.gradients.norms for reading in readings]
    broken |= {name for found in norms for name, norm in found.items() if not math.isfinite(norm)}
    broken |= {"" for reading in readings if not math.isfinite(reading.gradients.own)}
    if broken:
        yield Finding(
            check="terms",
            severity="fatal",
            what=f"not finite on the first batches: {listed(sorted(name or 'the own loss' for name in broken))}",
            why="The run would end at once.",
            remedy="precision=32, a smaller weight of the term, and `understudy check DATA`",
        )
    silent, zero = [], []
    for name in probe.weights:
        if name in broken:
            continue
        if all(reading.values[name] == 0 for reading in readings):
            zero.append(name)
        elif all(found[name] == 0 for found in norms):
            silent.append(name)
    if zero:
        yield Finding(
            check="terms",
            severity="fatal",
            what=f"exactly zero on {len(readings)} batches: {listed(zero)}",
            why="The term has no effect.",
            remedy="a teacher that detects objects here, a lower threshold of the method, or leave the method out",
        )
    if silent:
        yield Finding(
            check="terms",
            severity="fatal",
            what=f"without a gradient with respect to any weight of the student: {listed(silent)}",
            why="The term has no effect. The method detaches the student's outputs, or reads only the teacher's.",
            remedy="correct the method, or leave it out",
        )
    if not (broken or zero or silent):
        values = ", ".join(f"{name} {readings[0].values[name]:.3g}" for name in probe.weights)
        yield Finding(check="terms", severity="ok", what=f"finite, not zero, and reach the student: {values}")


def share_findings(probe: Probe, first: Reading, last: Reading, steps: int) -> Iterator[Finding]:
    """Judge the share of the gradient that comes from each term, at the start and after some steps."""
    if (
        not all(map(math.isfinite, (first.share, last.share)))
        or not last.gradients.own
        or not (first.share or last.share)
    ):
        return  # said by other findings
    each = ", ".join(f"{name} {first.shares[name]:.2%} and {last.shares[name]:.2%}" for name in probe.weights)
    what = f"{first.share:.1%} of the gradient at the start, {last.share:.1%} after {steps} steps ({each})"
    facts = {"start": first.shares, "later": last.shares, "steps": steps}
    too_large = last.share > LARGEST_SHARE  # at the start, the losses of an untrained head are larger than ever after
    too_small = max(first.share, last.share) < SMALLEST_SHARE
    if too_large or too_small:
        hopeless = last.share > HOPELESS_ABOVE or max(first.share, last.share) < HOPELESS_BELOW
        name = max(probe.weights, key=lambda name: last.shares[name])
        yield Finding(
            check="weights",
            severity="fatal" if hopeless else "warning",
            what=f"the distillation is {what}",
            why="The student's own losses have almost no effect."
            if too_large
            else "The distillation has almost no effect: the student will equal a plain one.",
            remedy=_better_weight(probe, name, last),
            facts=facts,
        )
        return
    idle = [name for name in probe.weights if max(first.shares[name], last.shares[name]) < SILENT_TERM]
    if idle:
        yield Finding(
            check="weights",
            severity="warning",
            what=f"without influence: {', '.join(f'{name} {last.shares[name]:.4%}' for name in idle)} of the gradient",
            why="The term costs time and changes nothing.",
            remedy=_better_weight(probe, idle[0], last),
            facts=facts,
        )
    else:
        yield Finding(check="weights", severity="ok", what=f"the distillation is {what}", facts=facts)


def capacity_findings(losses: Sequence[float], share: float) -> Iterator[Finding]:
    """Judge whether the student's own loss falls on a batch that it sees again and again.

    Args:
        losses: the own loss at each step.
        share: the distillation's share of the gradient, which can be the reason.
    """
    steps = len(losses)
    if not losses or not math.isfinite(losses[-1]):
        what, severity = "the student's loss is no longer finite when it is trained on one batch", "fatal"
    else:
        what, severity = f"own loss {losses[0]:.3g} to {losses[-1]:.3g} in {steps} steps on one batch", "ok"
        if steps >= 10 and min(losses[-3:]) > MUST_FALL * losses[0]:
            what, severity = f"the student does not even learn one batch: {what}", "warning"
        elif steps < 10:
            what, severity = f"unknown after only {steps} steps on one batch", "note"
    yield Finding(
        check="capacity",
        severity=severity,
        what=what,
        why=""
        if severity in ("ok", "note")
        else "What cannot learn a single batch cannot learn the data set: the boxes, the anchors, frozen layers, or "
        "losses that pull elsewhere.",
        remedy=""
        if severity in ("ok", "note")
        else "lower the weights of the distillation terms"
        if share > LARGEST_SHARE
        else "detector.frozen_stages=0, anchors that fit (see above), or a larger student",
        facts={"losses": [round(loss, 5) for loss in losses]},
    )


def _better_weight(probe: Probe, name: str, reading: Reading) -> str:
    """Return the key of a weight with which this term would be about a third of the gradient."""
    weight, share = probe.weights[name].weight, reading.shares[name]
    wanted = f"{weight * 0.5 * (1 - share) / share:.2g}" if 0 < share < 1 else "NUMBER"
    return f"{probe.keys[name]}={wanted} (now {weight:.3g}); by these readings, this is a third of the gradient"


def _checksum(module: torch.nn.Module) -> float:
    return sum(float(value.double().abs().sum()) for value in module.state_dict().values() if value.numel())
