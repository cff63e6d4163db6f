"""Do student, teacher, methods and boxes fit each other: levels, methods, anchors, sizes; and what a run will cost."""

import math
from collections.abc import Iterator
from typing import NamedTuple, Self

import torch

from understudy.config import DistillConfig, TrainConfig, scale_of_teacher
from understudy.data import DetectionData
from understudy.detectors import Detector
from understudy.detectors.anchor_fit import MANY, BoxFit, fit_of_boxes
from understudy.detectors.anchor_scale import best_scale
from understudy.detectors.base import evaluating
from understudy.detectors.sizes import multiply_adds
from understudy.diagnosis.findings import Finding
from understudy.errors import UserError
from understudy.evaluation.runtimes import TorchRuntime
from understudy.methods import METHODS
from understudy.methods.loading import serving
from understudy.outputs import Spec
from understudy.pairing import Pairing
from understudy.text import listed
from understudy.training.defaults import Derived

HOPELESS = 0.5
"""Share of the objects without an anchor from which training is worthless."""

SMALLER = 2.0
"""Quotient of the multiply-adds of teacher and student, below which the student is hardly faster."""


class _Size(NamedTuple):
    """Multiply-adds of one image, all and those in the backbone."""

    multiply_adds: int
    in_backbone: int

    @classmethod
    def of(cls, detector: Detector, side: int) -> Self:
        """Count them for a square image."""
        device = next(detector.parameters()).device
        image, sizes = torch.zeros(1, 3, side, side, device=device), [(side, side)]
        whole = multiply_adds(lambda: TorchRuntime(detector, device)(image, sizes))
        with evaluating(detector):
            return cls(whole, multiply_adds(lambda: detector.backbone(image, sizes)))

    def __str__(self) -> str:
        return f"{self.multiply_adds / 1e9:.2f} G multiply-adds"


def anchor_findings(student: Detector, data: DetectionData, config: TrainConfig) -> tuple[BoxFit | None, Finding]:
    """Measure how the boxes at the training size fit the student's anchors, points and levels."""
    sizes = config.data.shorter_side
    fit = fit_of_boxes(student, data, sizes[-1], config.data.longer_side)
    if fit is None:
        what = f"{student.spec.name} assigns objects by its predictions, so nothing can be known before training"
        return None, Finding(check="anchors", severity="note", what=what)
    low, middle, high = fit.usual_sides
    boxes = f"boxes of {low:.0f} to {high:.0f} pixels (median {middle:.0f}) at {sizes[-1]} pixels"
    remarks, facts = fit.remarks(), fit.to_dict()
    if not remarks and (better := _better_anchors(fit, data, config)):
        return fit, better
    if not remarks:
        levels = ", ".join(f"stride {stride}: {count}" for stride, count in fit.levels.items())
        what = f"{1 - fit.unmatched:.1%} of {fit.objects} objects have one; {boxes}; objects by level: {levels}"
        return fit, Finding(check="anchors", severity="ok", what=what, facts=facts)
    worst = max(fit.unmatched, fit.too_small, fit.too_large)
    return fit, Finding(
        check="anchors",
        severity="fatal" if worst >= HOPELESS else "warning",
        what=f"{'; '.join(remarks)}; {boxes}",
        why="What no anchor fits is hardly learned, by any method.",
        remedy=fit.remedy(),
        facts=facts,
    )


def _better_anchors(fit: BoxFit, data: DetectionData, config: TrainConfig) -> Finding | None:
    """Say if anchors of another scale fit the boxes clearly better, for example than those of an imported teacher."""
    detector, size = config.detector, (config.data.shorter_side[-1], config.data.longer_side)
    now = round(fit.anchor_sides[0] / fit.strides[0], 1)
    try:
        found = best_scale(detector.name, data, *size, detector.conventions, detector.settings, now)
    except UserError:  # its settings suit its own width only
        return None
    if found is None or found.scale is None or not found.clearly:
        return None
    remedy = f"detector.anchor_scale={found.scale:g}"
    if isinstance(config, DistillConfig):
        remedy += (
            ", also for the plain student, and for a teacher of the same family if possible: with other anchors than "
            "its own, scores and boxes are compared by cells, or not at all"
        )
    return Finding(
        check="anchors",
        severity="warning",
        what=f"anchors of {found.scale:g} strides fit the boxes clearly better: {found}",
        why="Objects that no anchor fits well are learned late.",
        remedy=remedy,
        facts={"best": found.scale, "overlap": found.overlap, "now": now, "overlap_now": found.overlap_before},
    )


def level_findings(pairing: Pairing, fit: BoxFit | None) -> Iterator[Finding]:
    """Check that student and teacher share the levels that hold the objects."""
    shared, dropped = pairing.student.strides, pairing.dropped_strides
    folded = f", with what the teacher says at {listed(pairing.folded_strides)}" if pairing.folded_strides else ""
    what = f"compared at strides {listed(shared)}{folded}"
    if not dropped:
        yield Finding(check="levels", severity="ok", what=what)
        return
    what += f", not at {listed(dropped)}, which only one of the two has"
    lost = sum(count for stride, count in fit.levels.items() if stride not in shared) if fit else 0
    share = lost / max(sum(fit.levels.values()), 1) if fit else 0.0
    yield Finding(
        check="levels",
        severity="warning" if share >= MANY else "note",
        what=f"{what}; {share:.0%} of the objects are on levels that are not compared",
        why="Features and scores are compared only on common levels." if share >= MANY else "",
        remedy="a student or a teacher with the levels of the other (detector.conventions, detector.settings)"
        if share >= MANY
        else "",
    )


def method_findings(student: Spec, teacher: Spec, *, balanced: bool) -> Finding:
    """List the methods that serve the pair, and why the others do not.

    Args:
        student: the student's Spec.
        teacher: the teacher's Spec.
        balanced: whether weights follow from shares, so that no method lacks them.
    """
    reasons: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        obstacles = method.obstacles(student, teacher)
        if not set(method.terms) - obstacles.keys():
            reasons.setdefault(next(iter(obstacles.values())), []).append(name)
    others = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    for role, spec in (("student", student), ("teacher", teacher)):
        others = others.replace(f"the {role} {spec.name} ", f"the {role} ")
    return Finding(
        check="methods",
        severity="ok",
        what=f"this pair can use {serving(student, teacher, balanced=balanced)}",
        why=f"Not available: {others}." if others else "",
        facts={"unavailable": {name: reason for reason, names in reasons.items() for name in names}},
    )


def size_finding(student: Detector, teacher: Detector, config: DistillConfig) -> Finding:
    """Compare the multiply-adds of student and teacher for an image, and say where the student has its own."""
    side = math.ceil(config.data.shorter_side[-1] / 32) * 32
    larger = side * scale_of_teacher(config)
    own, other = _Size.of(student, side), _Size.of(teacher, larger)
    times = other.multiply_adds / own.multiply_adds
    there = f", at {larger} x {larger}" if larger > side else ""
    what = f"{own}, for {side} x {side} pixels, and the teacher {other}{there}: {times:.1f} times as many"
    facts = {"student": own._asdict(), "teacher": other._asdict(), "times": times}
    if times >= SMALLER:
        return Finding(check="student's size", severity="ok", what=what, facts=facts)
    channels, outside = student.spec.channels[0], 1 - own.in_backbone / own.multiply_adds
    narrower = f"detector.neck_channels={max(channels // 4, 1)} (now {channels})"
    return Finding(
        check="student's size",
        severity="note",
        what=what,
        why=f"A student of this size is little faster. Its neck and head have {outside:.0%} of its multiply-adds.",
        remedy=narrower if outside > 0.5 else "a smaller backbone, or detector.width_mult",
        facts=facts,
    )


def default_findings(derived: Derived) -> Iterator[Finding]:
    """List what was chosen for this data and machine, if anything was left open."""
    told = [choice for choice in derived.choices if choice.reason]
    if told:
        yield Finding(
            check="defaults",
            severity="note",
            what="; ".join(map(str, told)),
            remedy="KEY=VALUE for another value",
            facts={choice.key: choice.value for choice in derived.choices},
        )


def cost_finding(derived: Derived) -> Finding:
    """Report what the run takes, and whether it fits into the memory."""
    cost = derived.cost
    if cost is None:
        return Finding(check="cost", severity="note", what=f"no estimate of time and memory: {derived.why_not}")
    return Finding(
        check="cost",
        severity="note" if cost.fits else "fatal",
        what=f"an estimate: {cost}",
        why=derived.advice if cost.fits else "The system may end the run, and this examination, without a message.",
        remedy="" if cost.fits else f"a smaller batch_size (now {derived.config.batch_size}) or data.shorter_side",
        facts=cost.to_dict(),
    )
