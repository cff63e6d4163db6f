"""Why a finished run did not help: what its log shows, in words, the most likely cause first."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from understudy.checkpoints import read_checkpoint
from understudy.compare.runs import Run, read_runs
from understudy.config import DistillConfig
from understudy.data import Limits, open_data
from understudy.detectors import build_detector
from understudy.diagnosis.beside_plain import check_pair, gain, other_terms, outcome, plain_findings, teacher_of
from understudy.diagnosis.findings import Diagnosis, Finding, Tell
from understudy.diagnosis.log import Log, convergence_findings
from understudy.diagnosis.pair import anchor_findings
from understudy.diagnosis.teacher import HARDLY, clearly_below
from understudy.diagnosis.terms import HOPELESS_ABOVE, HOPELESS_BELOW
from understudy.errors import UserError
from understudy.methods.weighting import LARGEST_SHARE, SMALLEST_SHARE
from understudy.text import listed, percent, shown
from understudy.training.folder import RunFolder
from understudy.training.teacher_check import NEAR_ZERO

DETECTS = 0.1
"""AP of a class above which it is detected, so that a class near zero is worth a remark."""

FALLEN = 0.05
"""Fall of AP after its peak, relative to the peak, from which it is worth a remark; at least one AP."""

EXPLODED, GONE = 10.0, 1e-6
"""A loss at the end, relative to the start: above the first it has exploded, below the second nothing is left of it."""


def explain(path: Path, plain: Path | None = None, *, tell: Tell | None = None) -> Diagnosis:
    """Explain the result of a run from its log.

    Args:
        path: the run folder, of a finished or an interrupted run.
        plain: folder of the same student trained without a teacher.
        tell: is called with each finding, in order of likelihood.

    Raises:
        UserError: a folder is not a run folder, is given twice, or a file of it is damaged; or the first of two runs is
            a plain one, or the second is distilled.
    """
    started = time.monotonic()
    if plain is not None and plain.resolve() == path.resolve():
        raise UserError(f"{path} is given twice: give the distilled run, then the plain one.")
    log, other = Log.of(path), None if plain is None else Log.of(plain)
    if other is not None:
        check_pair(log, other)
    found = sorted(_findings(log, other), key=lambda finding: (finding.severity in ("ok", "note"), -finding.likelihood))
    if all(finding.severity in ("ok", "note") for finding in found):
        found.insert(0, _nothing_wrong(log, other))
    for finding in found:
        if tell:
            tell(finding)
    result, said = outcome(log, other)
    return Diagnosis(
        f"the run {path}",
        tuple(found),
        time.monotonic() - started,
        finished=True,
        listed=tell is not None,
        outcome=said,
        result=result,
    )


def _nothing_wrong(log: Log, plain: Log | None) -> Finding:
    """Say that the log shows no cause, and what to try if the student is worse for it."""
    if not isinstance(log.config, DistillConfig):
        return Finding(check="the whole", severity="ok", what="the log shows nothing wrong")
    what = "the log shows nothing wrong: the terms act, and the student learned"
    if plain is None or not gain(log, plain) <= -HARDLY:
        return Finding(check="the whole", severity="ok", what=what)
    return Finding(
        check="the whole",
        severity="note",
        what=f"{what}, but it is below the plain student",
        why="What the terms imitate does not help this student, or too much of its gradient is theirs.",
        remedy=other_terms(log.config),
    )


def _findings(log: Log, plain: Log | None) -> Iterator[Finding]:
    teacher = teacher_of(log)
    yield from _end_findings(log)
    if isinstance(log.config, DistillConfig):
        yield from _teacher_findings(log, plain, teacher)
        yield from _class_findings(log)
        yield from _share_findings(log)
        yield from _term_findings(log)
    yield from _own_loss_findings(log)
    yield from _undetected_findings(log, teacher)
    yield from convergence_findings(log, "this run")
    yield from _peak_findings(log)
    if plain is not None:
        yield from plain_findings(log, plain, teacher)
    yield from _anchor_findings(log)


def _end_findings(log: Log) -> Iterator[Finding]:
    """Say how far a run came, and whether it detects anything."""
    path = log.folder.path
    if not log.losses:
        yield Finding(
            check="progress",
            severity="warning",
            what=f"{path} has no row of losses: it ended before its first one",
            why="Nothing can be said about a run that has hardly begun.",
            remedy=f"understudy resume {path}",
            likelihood=1.0,
        )
        return
    if not log.finished:
        what = f"the run is not finished: its last row is of epoch {log.losses[-1]['epoch']:.1f} of "
        yield Finding(
            check="progress",
            severity="warning",
            what=f"{what}{log.config.schedule.epochs}",
            why="The learning rate is lowered towards the end, and AP rises then; its AP is no result yet.",
            remedy=f"understudy resume {path}",
            likelihood=0.92,
        )
    if log.best <= NEAR_ZERO:
        yield Finding(
            check="student's AP",
            severity="fatal" if log.finished else "warning",
            what=f"the student detects almost nothing: its best AP is {percent(log.best)}",
            why="It did not learn its own task, so nothing can be said about the distillation.",
            remedy=f"{_before(log)}; another optimizer.lr (now {shown(log.config.optimizer.lr)})",
            likelihood=0.98,
        )


def _before(log: Log) -> str:
    """Return the command that examines the pair of a run."""
    return f"examine the pair: understudy doctor --config {log.folder.config}"


def _teacher_findings(log: Log, plain: Log | None, run: Run | None) -> Iterator[Finding]:
    """Judge the teacher by the check that the run made of it, or else by its own run."""
    assert isinstance(log.config, DistillConfig)
    checked = log.check.get("AP")
    if checked is not None and not math.isnan(checked):
        teacher, student, images = (
            checked,
            log.check.get("student_AP") or math.nan,
            f"{log.check.get('images', 0)} validation images",
        )
    elif run is not None:
        teacher, student = run.evaluation.coco["AP"], log.ap
        images = f"the same {run.evaluation.images} images, in its own run"
    else:
        yield Finding(
            check="teacher's AP",
            severity="note",
            what="unknown: the run did not evaluate its teacher or is not finished, and the teacher's own run is not "
            "there, cannot be read, or has other weights, images or another size",
            remedy=f"understudy evaluate {log.config.teacher} (a run with teacher_check=100 measures it)",
        )
        return
    recorded = _recorded_ap(log.config.teacher)
    if teacher <= NEAR_ZERO:
        yield Finding(
            check="teacher's AP",
            severity="fatal",
            what=f"the teacher detects almost nothing right: AP {percent(teacher)} on {images}",
            why="The student learned the errors of its teacher.",
            remedy=_before(log),
            likelihood=0.99,
        )
    elif recorded is not None and clearly_below(teacher, recorded):
        yield Finding(
            check="teacher's AP",
            severity="warning",
            what=f"the teacher is clearly worse on this data (AP {percent(teacher)} on {images}) than in its own "
            f"training ({percent(recorded)})",
            why="Its classes, its normalisation or the image size may not be those of its training.",
            remedy=_before(log),
            likelihood=0.9,
        )
    elif student > teacher:
        yield Finding(
            check="teacher's lead",
            severity="warning",
            what=f"the student ends above its teacher: AP {percent(student)} and {percent(teacher)} on {images}",
            why="There is nothing more to learn from this teacher.",
            remedy="a better teacher: a larger backbone, longer training, more pixels",
            likelihood=0.85,
        )
    elif plain is not None and not math.isnan(plain.ap) and teacher - plain.ap < HARDLY:
        yield Finding(
            check="teacher's lead",
            severity="warning",
            what=f"the gap is too small to close: teacher AP {percent(teacher)} (on {images}), plain student "
            f"{percent(plain.ap)}",
            why="Seeds alone move a student by 1 to 2 AP.",
            remedy="a better teacher: a larger backbone, longer training, more pixels",
            likelihood=0.88,
        )
    else:
        what = f"AP {percent(teacher)} on {images}" + (
            "" if math.isnan(student) else f", the student {percent(student)}"
        )
        yield Finding(check="teacher's AP", severity="ok", what=what)


def _recorded_ap(path: Path) -> float | None:
    """Return the AP in the teacher's checkpoint; None if it is not there, or records none."""
    try:
        return read_checkpoint(RunFolder(path).best if path.is_dir() else path)["understudy"].get("AP")
    except UserError:
        return None


def _class_findings(log: Log) -> Iterator[Finding]:
    """Say which classes took no part in the distillation."""
    unknown, known = (log.pairing.get(name, []) for name in ("classes_unknown_to_the_teacher", "classes"))
    if unknown:
        most = len(unknown) >= len(known)
        yield Finding(
            check="class names",
            severity="warning" if most else "note",
            what=f"the teacher lacks {len(unknown)} of {len(unknown) + len(known)} classes: {listed(unknown, 6)}",
            why="Their objects took no part in the distillation.",
            remedy="if only the spelling differs, give both the same names",
            likelihood=0.87,
        )


def _share_findings(log: Log) -> Iterator[Finding]:
    """Judge the measured share of the gradient, after the weights have grown from zero."""
    shares = [share for row in log.losses if (share := row.get("distillation_share", math.nan)) > 0]
    if not shares or not log.terms:
        return
    share = median(shares)
    last = log.losses[-1]
    weighted = {name: last[name] * last[f"{name}_weight"] for name in log.terms}
    name = max(weighted, key=lambda term: weighted[term])
    largest = f"largest term {name}: {last[name]:.3g} x {last[f'{name}_weight']:.3g} = {weighted[name]:.3g}"
    what = f"{share:.1%} of the student's gradient came from the distillation (median; {largest})"
    facts = {"median_share": share, "weighted": weighted}
    assert isinstance(log.config, DistillConfig)
    follow = ", or balance=0.8, so that weights follow from the gradient" if log.config.balance == "off" else ""
    if share > LARGEST_SHARE:
        factor = (share / (1 - share)) / 0.5 if share < 1 else 1000.0
        yield Finding(
            check="weights",
            severity="fatal" if share > HOPELESS_ABOVE else "warning",
            what=what,
            why="The student's own losses had almost no effect.",
            remedy=f"divide the weight of {name} by about {factor:.0f} (now {last[f'{name}_weight']:.3g}){follow}",
            likelihood=0.95,
            facts=facts,
        )
    elif share < SMALLEST_SHARE:
        factor = 0.5 / (share / (1 - share))
        yield Finding(
            check="weights",
            severity="fatal" if share < HOPELESS_BELOW else "warning",
            what=what,
            why="The distillation had almost no effect: the student is a plain one.",
            remedy=f"multiply the weights by about {factor:.0f} ({name}: now {last[f'{name}_weight']:.3g}){follow}",
            likelihood=0.93,
            facts=facts,
        )
    else:
        yield Finding(check="weights", severity="ok", what=what, facts=facts)


def _term_findings(log: Log) -> Iterator[Finding]:
    """Find terms that were never active, died, or exploded, and ramps that did not end."""
    if not log.losses:
        return
    for name in log.terms:
        first, last = log.course(name)
        zero = sum(row[name] == 0 for row in log.losses)
        if 2 * zero >= len(log.losses) or abs(last) < GONE * abs(first):
            yield Finding(
                check="terms",
                severity="warning",
                what=f"{name} was zero in {zero} of {len(log.losses)} rows of losses.csv ({first:.3g} at the start, "
                f"{last:.3g} at the end)",
                why="A term that is zero has no effect.",
                remedy="a lower threshold of the method, a teacher that detects objects, or leave the method out",
                likelihood=0.8,
            )
        elif not last <= EXPLODED * first or last < 0:
            yield Finding(
                check="terms",
                severity="warning",
                what=f"{name} grew from {first:.3g} to {last:.3g}",
                why="The student moves away from its teacher in this term.",
                remedy="a lower weight of this term, a lower optimizer.lr, or optimizer.clip_norm=10",
                likelihood=0.75,
            )
    final = log.losses[-1]["step"]
    assert isinstance(log.config, DistillConfig)
    for entry, options in log.config.methods.items():
        ramp = options.get("ramp_steps") or 0
        if log.finished and ramp > final:
            yield Finding(
                check="ramp",
                severity="warning",
                what=f"methods.{entry}.ramp_steps={ramp}, but the run had {final:.0f} steps",
                why=f"Its weights reached only {final / ramp:.0%} of their values.",
                remedy=f"methods.{entry}.ramp_steps={final / 10:.0f}",
                likelihood=0.7,
            )


def _own_loss_findings(log: Log) -> Iterator[Finding]:
    if not log.losses or not log.own_losses:
        return
    first, last = log.course(*log.own_losses)
    if not last < first:
        yield Finding(
            check="own losses",
            severity="warning",
            what=f"the student's own losses did not fall: {first:.3g} at the start, {last:.3g} at the end",
            why="The student does not learn its task.",
            remedy=f"another optimizer.lr (now {shown(log.config.optimizer.lr)}), optimizer.clip_norm=10, or lower "
            "weights of the distillation terms",
            likelihood=0.86,
        )


def _undetected_findings(log: Log, teacher: Run | None) -> Iterator[Finding]:
    """Name classes that a student which detects others hardly detects at all."""
    if not log.finished:
        return
    try:
        per_class = read_runs([log.folder.path])[0].evaluation.per_class
    except UserError:
        return
    gone = [name for name, ap in per_class.items() if ap <= NEAR_ZERO]
    if not gone or not any(ap > DETECTS for ap in per_class.values()):
        return
    theirs = teacher.evaluation.per_class if teacher else {}
    beside = [f"{name} {percent(per_class[name])}{_of_teacher(theirs.get(name))}" for name in gone]
    yield Finding(
        check="classes",
        severity="warning",
        what=f"it hardly detects {len(gone)} of {len(per_class)} classes: AP of {listed(beside, 4)}",
        why="Rare and small objects are learnt last: most of each loss is that of the others.",
        remedy=f"{'' if log.config.class_balance else 'class_balance=true (one-stage detectors), '}a longer run "
        f"(schedule.epochs, now {log.config.schedule.epochs}), more pixels, or more photos of them",
        likelihood=0.81,
        facts={"classes": gone},
    )


def _of_teacher(ap: float | None) -> str:
    return "" if ap is None or math.isnan(ap) else f" (the teacher {percent(ap)})"


def _peak_findings(log: Log) -> Iterator[Finding]:
    if not log.evaluations:
        return
    best_step, best = max(log.evaluations, key=lambda row: row[1])
    last_step, last = log.evaluations[-1]
    if best - last > max(0.01, FALLEN * best):
        yield Finding(
            check="peak",
            severity="warning",
            what=f"AP fell after its peak: {percent(best)} at step {best_step}, {percent(last)} at step {last_step}",
            why="The student overfits the training images, or the learning rate is too high at the end. The result is "
            "that of the peak.",
            remedy="fewer epochs, schedule.name=cosine, or more images (without labels: data.unlabelled=FOLDER)",
            likelihood=0.5,
        )


def _anchor_findings(log: Log) -> Iterator[Finding]:
    """Measure how the boxes fit the anchors, if the data set is still there; only a misfit is worth a line."""
    data = log.config.data
    try:
        split = open_data(data.path, data.train, Limits.of(data))
        options = log.config.detector.model_dump(exclude={"backbone_weights", "channel_order", "frozen_stages"})
        student = build_detector(**options, num_classes=len(split.classes))
    except UserError:
        return
    _, finding = anchor_findings(student, split, log.config)
    if finding.severity in ("fatal", "warning"):
        yield replace(finding, likelihood=0.97 if finding.severity == "fatal" else 0.65)
