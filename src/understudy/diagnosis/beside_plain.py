"""A distilled run beside the plain student: what was gained, when and where, and what differs besides the teacher."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

from understudy.compare.differences import as_keys, detector_differences, differences
from understudy.compare.runs import Run, read_runs, recorded_teacher
from understudy.compare.verdict import shown_mean
from understudy.config import DetectorConfig, DistillConfig
from understudy.detectors.families import family_of
from understudy.diagnosis.findings import Finding
from understudy.diagnosis.log import Log, convergence_findings
from understudy.diagnosis.teacher import HARDLY
from understudy.errors import UserError
from understudy.text import listed, percent, shown, signed
from understudy.training.default_methods import are_default

FEW = 4
"""Fewer evaluations at the same steps show no course of the lead."""

MOST = 3
"""Classes that are named on each side, those that lost and those that gained most."""

SIZES = {"small": "APs", "medium": "APm", "large": "APl"}


def plain_findings(log: Log, plain: Log) -> Iterator[Finding]:
    """Compare a distilled run with the plain student.

    Args:
        log: of the distilled run.
        plain: of the plain student.

    Raises:
        UserError: the second run is distilled, too.
    """
    if isinstance(plain.config, DistillConfig):
        raise UserError(f"{plain.folder.path} is a distilled run; the second one must be a plain student.")
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
    if isinstance(log.config, DistillConfig):
        yield _gain_finding(log, plain)
        yield from _course_findings(log, plain, log.config)
        teacher = recorded_teacher(run)
        yield from _place_findings(run, other, teacher)
        if teacher and gain(log, plain) < HARDLY:
            yield from _proposal_findings(teacher, run, other)


def gain(log: Log, plain: Log) -> float:
    """Return the difference of the APs as they are printed, 0..1; nan if one of the runs is not finished."""
    return shown_mean([log.ap]) - shown_mean([plain.ap])


def outcome(log: Log, plain: Log | None) -> str:
    """Say in a sentence what the distillation brought; empty if that is not known."""
    if plain is None or not isinstance(log.config, DistillConfig) or math.isnan(gained := gain(log, plain)):
        return ""
    if abs(gained) < HARDLY:
        return f"No difference from the plain student that one seed can tell ({signed(gained)} AP)."
    return f"The student is {percent(abs(gained))} AP {'above' if gained > 0 else 'below'} the plain one."


def detector_findings(config: DetectorConfig, plain: DetectorConfig, path: Path) -> Iterator[Finding]:
    """Name the keys in which the detectors of a distilled and a plain student differ."""
    if unequal := detector_differences(config, plain):
        both = [f"{key} ({shown(mine)} and {shown(theirs)})" for key, (mine, theirs) in unequal.items()]
        yield Finding(
            check="detector",
            severity="warning",
            what=f"the distilled student and the plain one ({path}) are not the same detector: {listed(both, 6)}",
            why="The difference in AP is not due to distillation alone.",
            remedy="train the plain student with " + as_keys(unequal),
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
    mine, theirs = dict(log.evaluations), dict(plain.evaluations)
    steps = sorted(mine.keys() & theirs.keys())
    if len(steps) < FEW or max(mine) != max(theirs):
        return
    early = fmean(mine[step] - theirs[step] for step in steps if 2 * step <= steps[-1])
    gained = gain(log, plain)
    there = next((step for step in sorted(mine) if mine[step] >= plain.best), None)
    reached = f"it had the plain student's best AP ({percent(plain.best)}) after {there} of {steps[-1]} steps"
    facts = {"lead_in_the_first_half": early, "gain": gained}
    if early <= -HARDLY and gained < HARDLY:
        yield Finding(
            check="slower learning",
            severity="warning",
            what=f"below the plain student in the first half, too: by {percent(-early)} AP on average; in the end "
            f"{signed(gained)}",
            why="A suitable term speeds up learning from the start. One that slows it down is too strong, or what it "
            "imitates does not help this student.",
            remedy=weaker(config),
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
            why="What speeds the student up at first holds it back in the end."
            if lost
            else "The student learned faster. What remains in the end is limited by the teacher's lead, and by what a "
            "student of this size can hold.",
            remedy=weaker(config) if lost else "a better teacher" + (", or fewer epochs" if there else ""),
            likelihood=0.84 if lost else 0.58,
            facts=facts,
        )
    else:
        what = f"{signed(early)} AP against the plain student on average in the first half; in the end {signed(gained)}"
        yield Finding(check="course", severity="ok", what=what + (f"; {reached}" if there else ""), facts=facts)


def weaker(config: DistillConfig) -> str:
    """Return what makes the distillation weaker, or another one."""
    less = (
        "balance=0.8, so that weights follow from the gradient (now off)"
        if config.balance == "off"
        else f"balance={config.balance / 2:g} (now {config.balance:g})"
    )
    return less if are_default(config.methods, config.balance) else f"{less}, or the default methods (no --method)"


def _place_findings(run: Run, plain: Run, teacher: Run | None) -> Iterator[Finding]:
    """Say in which classes and sizes the student lost and gained, beside the teacher's lead in the same classes."""
    names = [name for name in run.evaluation.per_class if name in plain.evaluation.per_class]
    theirs = teacher.evaluation.per_class if teacher else {}
    changes = _changes(run.evaluation.per_class, plain.evaluation.per_class, names)
    leads = _changes(theirs, plain.evaluation.per_class, names)
    sizes = _changes(run.evaluation.coco, plain.evaluation.coco, list(SIZES.values()))
    if len(changes) < 2:
        return
    ordered = sorted(changes, key=lambda name: changes[name])
    ends = ordered if len(ordered) <= 2 * MOST else [*ordered[:MOST], *ordered[-MOST:]]
    said = [f"{name} {signed(changes[name])}" + _beside(leads.get(name)) for name in ends]
    by_size = [f"{size} {signed(sizes[key])}" for size, key in SIZES.items() if key in sizes]
    yield Finding(
        check="where",
        severity="note",
        what=f"AP against the plain student, by class{' (the lead of the teacher)' if leads else ''}: "
        f"{', '.join(said)}; by size: {', '.join(by_size)}",
        facts={"classes": changes, "teacher_leads": leads, "sizes": sizes},
    )


def _proposal_findings(teacher: Run, run: Run, plain: Run) -> Iterator[Finding]:
    """Name the command that compares proposals, which terms on predictions imitate."""
    families = [family_of(each.config.detector.name) for each in (teacher, run, plain)]
    if all(family and family.facts.get("two_stage") for family in families):
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
