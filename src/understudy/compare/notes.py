"""The notes below the table, which are needed to judge its numbers."""

import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from understudy.compare.differences import as_arguments, detector_differences, differences, told_apart, unnamed
from understudy.compare.recipes import recipe_notes
from understudy.compare.rows import Row, plain_candidates
from understudy.config import DistillConfig
from understudy.data import shown_location
from understudy.methods.weighting import LARGEST_SHARE, SMALLEST_SHARE
from understudy.reading import number_in, read_rows
from understudy.text import listed, percent
from understudy.training.folder import RunFolder

MOST = 8
"""Most differences in data and budget that a note names."""


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Collect the notes on all rows; the verdicts themselves are not among them."""
    recipes = (note for row in rows for note in recipe_notes(row))
    parts = (
        _ap_note(rows),
        _checkpoint_notes(rows),
        _partner_notes(rows),
        _budget_notes(rows),
        _early_stop_notes(rows),
        _seed_notes(rows),
        _gradient_notes(rows),
        _doctor_notes(rows),
        recipes,
    )
    return [note for part in parts for note in part]


def _ap_note(rows: Sequence[Row]) -> Iterator[str]:
    images = rows[0].runs[0].evaluation.images
    data, split = rows[0].runs[0].measured_on
    yield (
        f"AP in percent, at the best epoch of each run, on the {images} images of {split!r} in {shown_location(data)}."
    )
    runs = [run for row in rows for run in row.runs]
    unknown = [run.folder for run in runs if not run.evaluation.data_digest]
    if unknown and len(runs) > 1:
        yield (
            f"{listed(unknown, 3)}: an earlier version did not record the content of the validation images, so "
            "they are compared by path."
        )


def _checkpoint_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Name the checkpoints and files that have no run folder, which were evaluated for this comparison."""
    for run in (run for row in rows for run in row.runs if run.kind != "run"):
        kind = f"is run by {run.runtime}" if run.kind == "exported" else "has no run folder"
        note = f"{run.folder} {kind}: it was evaluated now, on the same images, at its own image size."
        if run.kind == "imported":
            note += " It was imported, so its training is not known and not compared."
        yield note
    if any(row.role == "exported" for row in rows):
        yield (
            "Exported files: their training is not known and not compared. Their parameters are the kernels of their "
            "convolutions and matrix products."
        )


def _partner_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Explain an undefined gap, and the choice among several plain students."""
    for row in rows:
        if not isinstance(row.config, DistillConfig):
            continue
        if row.plain is None:
            yield from _other_detector_notes(row, rows)
            continue
        if row.teacher is None:
            named = row.config.teacher.resolve()
            places = {run.folder.resolve() for each in rows for run in each.runs + each.repeated}
            there = named in places or (named.suffix == ".ckpt" and named.parent in places)
            yield f"{row.name}: the gap cannot be computed: " + (
                f"the weights of {row.config.teacher} are no longer those of its teacher. Add a run or checkpoint with "
                "its teacher's weights."
                if there
                else f"its teacher ({row.config.teacher}) is not among these runs. Add the teacher's run."
            )
        elif row.gap_closed is None:
            yield (
                f"{row.name}: the teacher (AP {percent(row.teacher.mean())}) is not better than the plain student "
                f"({percent(row.plain.mean())}), so there is no gap to close. Use a stronger teacher."
            )
        if len(plain_candidates(row, rows)) > 1:
            yield f"{row.name} is compared with {row.plain.name}, the plain student whose training is most similar."


def _other_detector_notes(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Say in what the plain student of the same name that is most like a distilled one differs from it."""
    detector = row.config.detector
    others = [other for other in rows if other.role == "plain" and other.config.detector.name == detector.name]
    unequal = {other.name: detector_differences(detector, other.config.detector) for other in others}
    if unequal and (found := unequal[name := min(unequal, key=lambda each: len(unequal[each]))]):
        yield (
            f"{row.name} and {name} are not the same detector: {told_apart(found)}. Train a plain student with "
            f"{as_arguments(found)}."
        )


def _budget_notes(rows: Sequence[Row]) -> Iterator[str]:
    """List differences in data and budget between each run and the run that it is compared with."""
    for row in rows:
        other = row.compared_with or rows[0]
        found, rest = differences(row.runs[0], other.runs[0]), unnamed(row.runs[0], other.runs[0])
        settings = [f"{what} ({mine} and {theirs})" for what, (mine, theirs) in found.items()]
        more = len(settings[MOST:]) + len(rest)
        if not settings and not rest:
            continue
        counted = f"{more} {'more ' if settings else ''}key{'s' if more > 1 else ''} of the config (--json lists them)"
        note = f"{row.name} and {other.name} differ in {', '.join([*settings[:MOST], *([counted] if more else [])])}."
        if "validation images" in found:
            note += " AP on different images cannot be compared."
        elif row.plain:
            note += " The difference in AP is not due to distillation alone."
        yield note


def _early_stop_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Name the runs that stopped early, whose budgets differ."""
    for row in rows:
        if stops := [f"{run.stopped_after}" for run in row.runs if run.stopped_after]:
            schedule = row.config.schedule
            yield (
                f"{row.name} stopped early (schedule.patience={schedule.patience}), after epoch {', '.join(stops)} of "
                f"{schedule.epochs}."
            )


def _seed_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Name the runs that repeat a seed, and explain ±."""
    for row in rows:
        if row.repeated:
            seeds = ", ".join(map(str, sorted({run.config.seed for run in row.repeated})))
            yield (
                f"{row.name}: not counted, since another run of the row has the same seed ({seeds}): "
                f"{listed([run.folder for run in row.repeated], 3)}. Train with another seed: seed=NUMBER."
            )
    if any(len(row.runs) > 1 for row in rows):
        yield "± is the standard deviation over runs that differ in the seed only."


def _gradient_notes(rows: Sequence[Row]) -> Iterator[str]:
    """State the share of each distilled student's gradient that came from distillation, and its likely effect."""
    for row in rows:
        shares = [share for run in row.runs for share in _gradient_shares(run.folder)]
        if not shares:
            continue
        share = statistics.median(shares)
        note = f"{row.name}: {share:.0%} of the student's gradient came from distillation (median over the run)."
        if row.plain and row.mean() <= row.plain.mean():
            if share > LARGEST_SHARE:
                note += " The student's own losses had almost no effect: lower the weights of the largest terms."
            elif share < SMALLEST_SHARE:
                note += " Distillation had almost no effect: raise its weights."
        yield note


def _doctor_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Name the command that looks for the reason why a student is no better than the plain one."""
    for row in rows:
        verdict = row.verdict
        if row.plain is None or verdict is None or verdict.gain is None:
            continue
        pairs = [
            (run, plain)
            for run in row.runs
            for plain in row.plain.runs
            if run.config.seed == plain.config.seed and {run.kind, plain.kind} == {"run"}
        ]
        if pairs and (verdict.gain <= 0 or verdict.kind == "no difference"):
            run, plain = min(pairs, key=lambda pair: pair[0].evaluation.coco["AP"] - pair[1].evaluation.coco["AP"])
            command = shlex.join(["understudy", "doctor", str(run.folder), str(plain.folder)])
            yield f"To find out why {row.name} is no better than {row.plain.name}: {command}"


def _gradient_shares(folder: Path) -> list[float]:
    """Read the measured shares of a distilled run, except those before the weights have grown from zero."""
    file = RunFolder(folder).losses
    measured = [number_in(row, "distillation_share", file) for row in read_rows(file) if "distillation_share" in row]
    return [share for share in measured if share > 0]
