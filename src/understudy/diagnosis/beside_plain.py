"""A distilled run beside the plain student: what was gained, when and where, and what differs besides the teacher."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Literal

from understudy.compare.differences import as_arguments, detector_differences, differences, told_apart
from understudy.compare.runs import Run, read_runs, recorded_teacher
from understudy.compare.verdict import shown_mean
from understudy.config import DetectorConfig, DistillConfig
from understudy.detectors.families import family_of
from understudy.diagnosis.findings import Finding
from understudy.diagnosis.log import Log, convergence_findings
from understudy.diagnosis.teacher import HARDLY
from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.loading import given_share
from understudy.text import percent, signed
from understudy.training.default_methods import are_default

FEW = 4
"""Fewer evaluations at the same steps show no course of the lead."""

MOST = 3
"""Classes that are named on each side, those that lost and those that gained most."""

PREDICTIONS = {"class_logits", "cell_scores", "boxes", "box_raw", "predictions"}
"""Inputs of terms that are predictions, see :data:`understudy.methods.compatibility.READS`."""

SIZES = {"small": "APs", "medium": "APm", "large": "APl"}


def teacher_of(log: Log) -> Run | None:
    """Return the teacher's run, if it was measured on the same images at the same size, and its folder is whole."""
    if not isinstance(log.config, DistillConfig) or not log.finished:
        return None
    try:
        (run,) = read_runs([log.folder.path])
        teacher = recorded_teacher(run)
    except UserError:
        return None
    sizes = [(each.config.data.shorter_side[-1], each.config.data.longer_side) for each in (run, teacher) if each]
    return teacher if sizes[0] == sizes[-1] else None


def check_pair(log: Log, plain: Log) -> None:
    """Check that a run and a plain one can be compared.

    Raises:
        UserError: the first run is a plain one, or the second is distilled.
    """
    if isinstance(plain.config, DistillConfig):
        raise UserError(f"{plain.folder.path} is a distilled run; the second one must be a plain student.")
    if not isinstance(log.config, DistillConfig):
        raise UserError(f"{log.folder.path} is a plain run; the first of two must be distilled. Or give one run alone.")


def plain_findings(log: Log, plain: Log, teacher: Run | None) -> Iterator[Finding]:
    """Compare a distilled run with the plain student.

    Args:
        log: of the distilled run.
        plain: of the plain student.
        teacher: see :func:`teacher_of`.
    """
    yield from convergence_findings(plain, f"the plain run {plain.folder.path}")
    if not (log.finished and plain.finished):
        return
    run, other = read_runs([log.folder.path, plain.folder.path])
    yield from detector_findings(run.config.detector, other.config.detector, plain.folder.path)
    if unequal := differences(run, other):
        settings = ", ".join(f"{what} ({mine} and {theirs})" for what, (mine, theirs) in unequal.items())
        yield Finding(
            check="budget",
            severity="warning",
            what=f"the runs differ in {settings}",
            why="The difference in AP is not due to distillation alone.",
            remedy="train the plain student with the same settings",
            likelihood=0.82,
        )
    assert isinstance(log.config, DistillConfig)
    yield _gain_finding(log, plain)
    yield from _course_findings(log, plain, log.config)
    yield from _place_findings(run, other, teacher)
    if teacher and gain(log, plain) < HARDLY:
        yield from _proposal_findings(teacher, run, other)


def gain(log: Log, plain: Log) -> float:
    """Return the difference of the APs as they are printed, 0..1; nan if one of the runs is not finished."""
    return round(shown_mean([log.ap]) - shown_mean([plain.ap]), 3)


def outcome(log: Log, plain: Log | None) -> tuple[Literal["", "better", "alike", "worse"], str]:
    """Return what the distillation brought, also in a sentence; both are empty if that is not known."""
    if plain is None or math.isnan(gained := gain(log, plain)):
        return "", ""
    if abs(gained) < HARDLY:
        return "alike", f"The difference from the plain student ({signed(gained)} AP) is within the noise of one seed."
    what = f"The student is {percent(abs(gained))} AP {'above' if gained > 0 else 'below'} the plain one."
    return ("better", what) if gained > 0 else ("worse", what)


def detector_findings(config: DetectorConfig, plain: DetectorConfig, path: Path) -> Iterator[Finding]:
    """Name the keys in which the detectors of a distilled and a plain student differ."""
    if unequal := detector_differences(config, plain):
        yield Finding(
            check="detector",
            severity="warning",
            what=f"the distilled student and the plain one ({path}) are not the same detector: {told_apart(unequal)}",
            why="The difference in AP is not due to distillation alone.",
            remedy=f"train the plain student with {as_arguments(unequal)}",
            likelihood=0.83,
            facts={"keys": list(unequal)},
        )


def _gain_finding(log: Log, plain: Log) -> Finding:
    gained, what = gain(log, plain), f"AP {percent(log.ap)}, plain {percent(plain.ap)}"
    if abs(gained) < HARDLY:
        return Finding(
            check="gain",
            severity="note",
            what=f"{what}: one seed cannot tell such a difference from noise",
            remedy="more seeds of both (seed=1, seed=2, ...), then understudy compare",
        )
    return Finding(check="gain", severity="ok" if gained > 0 else "note", what=what, facts={"gain": gained})


def _course_findings(log: Log, plain: Log, config: DistillConfig) -> Iterator[Finding]:
    """Compare the course of both runs: did the distillation speed up learning, and did the plain student catch up?"""
    mine, theirs = ({step: ap for step, ap in each.evaluations if not math.isnan(ap)} for each in (log, plain))
    steps = sorted(mine.keys() & theirs.keys())
    if len(steps) < FEW or max(mine) != max(theirs):
        return
    first = [mine[step] - theirs[step] for step in steps if 2 * step <= steps[-1]]
    if not first:
        return
    early = fmean(first)
    gained = gain(log, plain)
    there = next((step for step in sorted(mine) if mine[step] >= plain.best), None)
    reached = f"it had the plain student's best AP ({percent(plain.best)}) after {there} of {steps[-1]} steps"
    facts = {"lead_in_the_first_half": early, "gain": gained}
    if early <= -HARDLY and gained < HARDLY:
        yield Finding(
            check="slower learning",
            severity="warning",
            what=f"below the plain student by {percent(-early)} AP on average in the first half; in the end "
            f"{signed(gained)}",
            why="A suitable term speeds up learning from the start. One that slows it down is too strong, or what it "
            "imitates does not help this student.",
            remedy=other_terms(config),
            likelihood=0.84,
            facts=facts,
        )
    elif early >= HARDLY and gained < HARDLY:
        lost = gained <= -HARDLY
        yield Finding(
            check="overtaken" if lost else "caught up",
            severity="warning",
            what=f"above the plain student by {percent(early)} AP on average in the first half; in the end "
            f"{signed(gained)}" + (f"; {reached}" if there else ""),
            why="The distillation helps at first and limits the final AP."
            if lost
            else "The student learned faster. What remains in the end is limited by the teacher's lead, and by what a "
            "student of this size can hold.",
            remedy=other_terms(config) if lost else "a better teacher" + (", or fewer epochs" if there else ""),
            likelihood=0.84 if lost else 0.58,
            facts=facts,
        )
    else:
        what = f"{signed(early)} AP against the plain student on average in the first half; in the end {signed(gained)}"
        yield Finding(check="course", severity="ok", what=what + (f"; {reached}" if there else ""), facts=facts)


def other_terms(config: DistillConfig) -> str:
    """Return the keys that make the distillation weaker, or another one."""
    share = None if config.balance == "off" else given_share(config.methods)
    if config.balance == "off":
        remedy = "balance=0.8, so that weights follow from the gradient (now off)"
    elif share is None:
        remedy = f"balance={config.balance / 2:g} (now {config.balance:g})"
    else:
        remedy = (
            "lower shares of the methods" if share else "no weights, so that they follow from the gradient (balance)"
        )
    return remedy if are_default(config.methods, config.balance) else f"{remedy}, or the default methods (no --method)"


def _place_findings(run: Run, plain: Run, teacher: Run | None) -> Iterator[Finding]:
    """Say in which classes and sizes the student lost and gained, beside the teacher's lead in the same classes."""
    names = [name for name in run.evaluation.per_class if name in plain.evaluation.per_class]
    theirs = teacher.evaluation.per_class if teacher else {}
    changes = _changes(run.evaluation.per_class, plain.evaluation.per_class, names)
    leads = _changes(theirs, plain.evaluation.per_class, names)
    sizes = _changes(run.evaluation.coco, plain.evaluation.coco, list(SIZES.values()))
    ordered = sorted(changes, key=lambda name: changes[name])
    ends = ordered if len(ordered) <= 2 * MOST else [*ordered[:MOST], *ordered[-MOST:]]
    said = [f"{name} {signed(changes[name])}" + _beside(leads.get(name)) for name in ends]
    by_size = [f"{size} {signed(sizes[key])}" for size, key in SIZES.items() if key in sizes]
    parts = [f"by size: {', '.join(by_size)}"] if by_size else []
    if len(changes) > 1:
        parts.insert(0, f"by class{' (the lead of the teacher)' if leads else ''}: {', '.join(said)}")
    if not parts:
        return
    yield Finding(
        check="where",
        severity="note",
        what=f"AP against the plain student, {'; '.join(parts)}",
        facts={"classes": changes, "teacher_leads": leads, "sizes": sizes},
    )


def _proposal_findings(teacher: Run, run: Run, plain: Run) -> Iterator[Finding]:
    """Name the command that compares proposals, which terms on predictions imitate."""
    assert isinstance(run.config, DistillConfig)
    families = [family_of(each.config.detector.name) for each in (teacher, run, plain)]
    chosen = [(METHODS[name], options) for name, options in run.config.methods.items() if name in METHODS]
    reads = {
        name
        for method, options in chosen
        for term, read in method.reads.items()
        if options.get(f"{term}_weight") != 0
        for name in read
    }
    if reads & PREDICTIONS and all(family and family.facts.get("two_stage") for family in families):
        yield Finding(
            check="proposals",
            severity="note",
            what="not measured here: terms on predictions imitate the teacher's proposals, which may find fewer "
            "objects than those of the plain student",
            remedy=f"understudy analyse proposals {teacher.folder} {plain.folder}",
        )


def _beside(lead: float | None) -> str:
    return "" if lead is None else f" ({signed(lead)})"


def _changes(one: Mapping[str, float], other: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Return the differences that are defined."""
    found = {name: one[name] - other[name] for name in names if name in one and name in other}
    return {name: change for name, change in found.items() if not math.isnan(change)}
