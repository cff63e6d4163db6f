"""Do student, teacher, methods and boxes fit each other: levels, methods, anchors; and what the run will cost."""

import sys
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from understudy.config import TrainConfig
from understudy.data import DetectionData
from understudy.detectors import Detector
from understudy.detectors.anchor_fit import MANY, BoxFit, fit_of_boxes
from understudy.diagnosis.findings import Finding
from understudy.diagnosis.terms import Probe
from understudy.methods import METHODS
from understudy.methods.loading import serving
from understudy.outputs import Spec
from understudy.pairing import Pairing
from understudy.text import listed

try:
    import resource
except ImportError:  # Windows does not tell it
    resource = None

HOPELESS = 0.5
"""Share of the objects without an anchor from which training is worthless."""


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


def level_findings(pairing: Pairing, fit: BoxFit | None) -> Iterator[Finding]:
    """Check that student and teacher share the levels that hold the objects."""
    shared, dropped = pairing.student.strides, pairing.dropped_strides
    what = f"compared at strides {listed(shared)}"
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


def method_findings(student: Spec, teacher: Spec) -> Finding:
    """List the methods that serve the pair, and why the others do not."""
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
        what=f"this pair can use {serving(student, teacher)}",
        why=f"Not available: {others}." if others else "",
        facts={"unavailable": {name: reason for reason, names in reasons.items() for name in names}},
    )


def cost_finding(probe: Probe, loader: DataLoader, config: TrainConfig, seconds: float) -> Finding:
    """Estimate time and memory of the whole run from a few steps, with loading and without the optimizer's update."""
    device, durations = probe.device, []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = begun = time.monotonic()
    for batch in loader:
        torch.stack(list(probe.losses(batch.to(device)).values())).sum().backward()
        probe.learner.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.monotonic() - started)
        started = time.monotonic()
        if len(durations) == 4 or started - begun > seconds:
            break
    later = durations[1:] or durations  # the first step is slower
    per_step, steps = sum(later) / len(later), len(loader) * config.schedule.epochs
    if device.type == "cuda":
        memory, whose = torch.cuda.max_memory_allocated(device), "memory of the device"
    else:
        memory, whose = _peak_of_process(), "memory of this process, with the other checks"
    needs = f"; {memory / 2**30:.1f} GiB {whose}" if memory else ""
    return Finding(
        check="cost",
        severity="note",
        what=f"an estimate from {len(later)} step{'s' * (len(later) > 1)}: {steps} steps of {per_step:.2g} s are "
        f"{_duration(steps * per_step)}, plus {config.schedule.epochs // config.evaluate_every} evaluations{needs}",
        facts={"steps": steps, "seconds_per_step": per_step, "seconds": steps * per_step, "bytes": memory},
    )


def _peak_of_process() -> int | None:
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
