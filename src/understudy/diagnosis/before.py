"""The checks of a teacher, a student, methods and data before training. Nothing is written."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from pydantic import Field

from understudy.checkpoints import Checkpoint, build_options, load_checkpoint
from understudy.config import DistillConfig, scale_of_teacher, with_values
from understudy.config.values import FilePath
from understudy.data import DetectionData, Limits, as_paths, check_data, open_unlabelled, shown_location, splits
from understudy.detectors import build_detector
from understudy.detectors.larger_images import with_larger_images
from understudy.diagnosis.beside_plain import detector_findings
from understudy.diagnosis.findings import Diagnosis, Finding, Tell
from understudy.diagnosis.log import Log, convergence_findings
from understudy.diagnosis.pair import (
    anchor_findings,
    cost_finding,
    default_findings,
    level_findings,
    method_findings,
    size_finding,
)
from understudy.diagnosis.teacher import accuracy_findings, lead_findings, proposal_findings, weight_findings
from understudy.diagnosis.terms import (
    Probe,
    capacity_findings,
    frozen_findings,
    share_findings,
    term_findings,
)
from understudy.diagnosis.trial import Trial
from understudy.errors import RunError, UserError
from understudy.evaluation import choose_device
from understudy.methods.loading import method_class
from understudy.pairing import pair
from understudy.text import listed
from understudy.training.assembly import AssembledRun, assemble, resolve_config
from understudy.training.defaults import derive
from understudy.training.folder import RunFolder
from understudy.training.image_size import ImageSize, longest
from understudy.training.sources import Sources
from understudy.training.teacher_check import sample_of
from understudy.training.trainer import make_trainer, quiet_lightning

IMAGES, STEPS = 100, 30
"""Validation images of the teacher's AP, and steps on one batch, by default."""

BATCHES = 2
"""Batches on which the terms are read before training: a term may be zero in one without suitable objects."""

FOR_TEACHER, FOR_STEPS = 40.0, 20.0
"""Seconds after which a part of the checks takes no further images or steps; all together under two minutes."""

MOST_FILES = 1000
"""Images of a data set that are all read; of a larger one, only the annotations are checked."""


class PairConfig(DistillConfig):
    """The config of a distillation run whose folder is not needed."""

    run: FilePath = Field("run", validate_default=True, description="Has no effect: nothing is written.")


def examine(
    config: DistillConfig,
    plain: Path | None = None,
    *,
    images: int = IMAGES,
    steps: int = STEPS,
    tell: Tell | None = None,
) -> Diagnosis:
    """Examine the pair of a config.

    Args:
        config: of the run that is planned; ``run`` has no effect.
        plain: run folder or checkpoint of the student trained without a teacher, if there is one.
        images: validation images on which the teacher is measured; fewer if they take too long.
        steps: steps on one batch; fewer if they take too long.
        tell: is called with each finding at once.

    Raises:
        UserError: a path of the config does not exist, or a number is not above 0.
    """
    for name, number in (("images", images), ("steps", steps)):
        if number < 1:
            raise UserError(f"--{name}: expected a number of at least 1, got {number}.")
    started = time.monotonic()
    # One process is enough to examine a pair, and a cache in a folder would be written.
    alone = {"teacher_cache": "off", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    resolved = resolve_config(config.model_copy(update=alone))
    assert isinstance(resolved, DistillConfig)
    missing = [
        path
        for path in (*as_paths(resolved.data.path), resolved.teacher, *([plain] if plain else []))
        if not path.exists()
    ]
    if missing:
        raise UserError.listing("These paths do not exist:", map(str, missing))
    if plain and RunFolder(plain).config.is_file() and isinstance(RunFolder(plain).read_config(), DistillConfig):
        raise UserError(f"--plain {plain} is a distilled run; expected a student that was trained without a teacher.")
    findings = []
    with torch.random.fork_rng():
        for finding in _to_the_end(_checks(resolved, plain, images, steps)):
            if tell:
                tell(finding)
            findings.append(finding)
    subject = f"{config.detector.name} with the teacher {config.teacher} on {shown_location(config.data.path)}"
    return Diagnosis(subject, tuple(findings), time.monotonic() - started, listed=tell is not None)


def _to_the_end(checks: Iterator[Finding]) -> Iterator[Finding]:
    """Yield all findings; an error that would end the run, too, is the last of them."""
    try:
        yield from checks
    except (UserError, RunError) as error:
        yield _refused("run", error, "as the message says")


def _checks(config: DistillConfig, plain: Path | None, images: int, steps: int) -> Iterator[Finding]:
    try:
        teacher = load_checkpoint(config.teacher)
    except UserError as error:
        yield _refused("teacher's weights", error, "another checkpoint: teacher=PATH")
        return
    yield from weight_findings(teacher)
    limits = Limits.of(config.data)
    try:
        sources = Sources.of(config)
    except UserError as error:
        if (unlabelled := _images_alone(config, limits)) is None:
            yield _refused("data", error, f"understudy check {shown_location(config.data.path)}")
        else:
            yield from _without_truth(config, teacher, unlabelled)
        return
    train, val = sources.train, sources.val
    yield from _data_findings(config, train, val, limits)
    trainer = make_trainer(config, config.run)
    derived = derive(config, sources, trainer)
    config = cast("DistillConfig", derived.config)
    yield from default_findings(derived)
    size = (config.data.shorter_side[-1], config.data.longer_side)
    device = choose_device("cpu" if config.accelerator == "cpu" else None)
    scale, sample = scale_of_teacher(config), sample_of(val, images)
    larger = (size[0] * scale, size[1] * scale)
    trial = Trial(teacher, sample, larger, config.batch_size, device, config.data.aliases, scale).within(FOR_TEACHER)
    yield from accuracy_findings(trial)
    yield from _plain_findings(trial, plain, config)
    try:
        student = build_detector(**build_options(config, len(train.classes)))
        fit, finding = anchor_findings(student, train, config)
        yield finding
        taught_by = with_larger_images(teacher.detector, scale_of_teacher(config))
        pairing = pair(student.spec, taught_by.spec, train.classes, teacher.classes, config.data.aliases)
        yield from level_findings(pairing, fit)
        yield method_findings(pairing.student, pairing.teacher, balanced=config.balance != "off")
        yield size_finding(student, teacher.detector, config)
        yield cost_finding(derived)
        if derived.warning:
            return  # the steps that follow would need the memory, too
        with quiet_lightning():
            run = assemble(config, RunFolder(config.run), trainer, sources=sources)
    except UserError as error:
        yield _refused(
            "pair", error, "as the message says; `understudy methods` and `understudy detectors` list others"
        )
        return
    yield from _step_findings(run, steps)


def _refused(check: str, error: Exception, remedy: str) -> Finding:
    why = "The run would end at once with this message."
    return Finding(check=check, severity="fatal", what=str(error), why=why, remedy=remedy)


def _data_findings(
    config: DistillConfig, train: DetectionData, val: DetectionData, limits: Limits
) -> Iterator[Finding]:
    """Report faults of the data set; files are read if there are not too many."""
    what = f"{len(train)} training and {len(val)} validation images, {len(train.classes)} classes"
    if len(train) + len(val) > MOST_FILES:
        yield Finding(
            check="data",
            severity="ok",
            what=f"{what}; the annotations have no fault, the image files were not all read",
            remedy=f"understudy check {shown_location(config.data.path)}",
        )
        return
    report = check_data(config.data.path, limits=limits)
    details = [*report.faults, *report.warnings]
    yield Finding(
        check="data",
        severity="warning" if report.faults else "note" if details else "ok",
        what=what + (f"; {listed(details, 3, '; ')}" if details else ""),
        why="Objects are lost, or the run stops when it reaches the image." if report.faults else "",
        remedy=f"understudy check {shown_location(config.data.path)}" if details else "",
    )


def _plain_findings(trial: Trial, plain: Path | None, config: DistillConfig) -> Iterator[Finding]:
    """Compare the teacher with a plain student, if there is one; else say what cannot be known."""
    if plain is None:
        yield Finding(
            check="teacher's lead",
            severity="note",
            what="unknown: there is no trained plain student to compare the teacher with",
            remedy="train one (understudy train ... run=runs/plain), then add --plain runs/plain",
        )
        return
    try:
        checkpoint = load_checkpoint(plain)
    except UserError as error:
        yield _refused("plain student", error, "another run: --plain RUN")
        return
    size = (config.data.shorter_side[-1], config.data.longer_side)
    student = Trial.of(checkpoint, trial.sample, size, trial.batch_size, trial.device, trial.aliases)
    yield from lead_findings(trial, student, f"plain student {plain}")
    yield from proposal_findings(trial, student)
    if RunFolder(plain).config.is_file():
        log = Log.of(plain)
        yield from detector_findings(config.detector, log.config.detector, plain)
        yield from convergence_findings(log, "the plain student")


def _step_findings(run: AssembledRun, steps: int) -> Iterator[Finding]:
    """Read the terms of the run's first batches, and train on one of them."""
    config, frozen = run.engine.config, run.engine.teacher
    assert isinstance(config, DistillConfig)
    assert frozen is not None
    device, weights = run.trainer.strategy.root_device, run.engine.balance.given
    probe = Probe(run.engine.learner, weights, frozen, device, _keys(config))
    with quiet_lightning():
        batches = [batch.to(probe.device) for batch in islice(run.loader, BATCHES)]
    readings = [probe.read(batch) for batch in batches]
    yield from term_findings(probe, readings)
    losses = probe.train_on(batches[0], steps, FOR_STEPS)
    last = probe.read(batches[-1])
    yield from share_findings(probe, readings[-1], last, len(losses))
    yield from capacity_findings(losses, last.share)
    yield from frozen_findings(probe)


def _keys(config: DistillConfig) -> dict[str, str]:
    """Return the config key of each term's weight."""
    return {
        f"{method.name}_{term}": f"methods.{entry}.{term}_weight"
        for entry in config.methods
        for method in [method_class(entry)]
        for term in method.all_terms()
    }


# --- without ground truth ---------------------------------------------------------------------------------------------


def _images_alone(config: DistillConfig, limits: Limits) -> DetectionData | None:
    """Open a folder of images without annotations; None: something else, or a data set with a fault of its own."""
    paths = as_paths(config.data.path)
    try:
        splits(paths, limits)
    except UserError:
        with contextlib.suppress(UserError):
            return open_unlabelled(paths[0], limits=limits) if len(paths) == 1 else None
    return None


def _without_truth(config: DistillConfig, teacher: Checkpoint, data: DetectionData) -> Iterator[Finding]:
    yield Finding(
        check="ground truth",
        severity="fatal",
        what=f"{len(data)} images without annotations. Not known without them: the teacher's AP and its lead, class "
        "names and their order, pixels, image size, anchors, shares of the gradient, capacity",
        why="A student learns from labelled images; others can only be added to them.",
        remedy=f"a data set with labels: data=PATH data.unlabelled={shown_location(config.data.path)}",
    )
    few = replace(data, records=data.records[:16])
    device = choose_device("cpu" if config.accelerator == "cpu" else None)
    shorter = config.data.shorter_side or [ImageSize.of(data, device.type).shorter_side]
    longer = config.data.longer_side or longest(max(shorter))
    config = with_values(config, {"data.shorter_side": shorter, "data.longer_side": longer})
    size = (config.data.shorter_side[-1], config.data.longer_side)
    own = teacher.config.get("data", {}).get("shorter_side", [size[0]])[-1]
    if own != size[0]:
        yield Finding(
            check="image size",
            severity="warning",
            what=f"{size[0]} pixels, and {own} in the teacher's own training",
            why="Many teachers are good at their own size only. Whether this one is, is not known.",
            remedy=f"data.shorter_side={own}",
        )
    found = Trial.of(teacher, replace(few, classes=teacher.classes), size, 4).found
    count = int((found.scores >= 0.3).sum())
    yield Finding(
        check="teacher's detections",
        severity="note" if count else "warning",
        what=f"{count / len(few):.1f} objects with a score of at least 0.3 per image, in {len(few)} images",
        why="" if count else "Nothing is taught by a teacher that finds nothing. Whether it is right is not known.",
        remedy="" if count else f"understudy predict {teacher.path} {shown_location(config.data.path)} -o FOLDER",
    )
    try:
        student = build_detector(**build_options(config, len(teacher.classes)))
        pairing = pair(student.spec, teacher.detector.spec, teacher.classes, teacher.classes)
    except UserError as error:
        yield _refused("pair", error, "`understudy detectors` lists others")
        return
    yield from level_findings(pairing, None)
    yield method_findings(pairing.student, pairing.teacher, balanced=config.balance != "off")
    yield size_finding(student, teacher.detector, config)
