"""What the numbers of a study mean, in words."""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.compare.convergence import has_converged
from understudy.compare.intervals import MOST_SEEDS, seeds_to_tell
from understudy.studies.rows import LONGER, NONE
from understudy.text import percent, signed

if TYPE_CHECKING:
    from understudy.studies.results import ResultRow, StudyResult


def sentences_of(result: "StudyResult") -> list[str]:
    """What the numbers mean: the teacher, the plain student, and each row."""
    found = [*_on_teachers(result), *_on_plain(result)]
    found += [sentence for row in result.rows if (sentence := sentence_of(row))]
    for row in result.rows:
        found += [f"{row.name}, seed {seed}: {reason}" for seed, reason in row.missing.items()]
    return found


def _on_teachers(result: "StudyResult") -> Iterator[str]:
    plain = result.rows[0].mean()
    for path, numbers in result.teachers.items():
        ap = numbers.get("AP", math.nan)
        lead = f"The teacher {'/'.join(Path(path).parts[-2:])} has AP {percent(ap)}"
        if math.isnan(plain) or math.isnan(ap):
            yield f"{lead}."
        elif ap <= plain:
            yield (
                f"{lead}, the plain student {percent(plain)}: there is nothing to close. Differences below are not "
                "due to what the teacher knows better. Use a better teacher."
            )
        else:
            yield f"{lead}, {100 * (ap - plain):.1f} above the plain student."


def _on_plain(result: "StudyResult") -> Iterator[str]:
    plain, longer = result.rows[0], next((row for row in result.rows if row.name == LONGER), None)
    gained = longer.difference if longer else None
    advice = "Longer training may help more than any method: raise schedule.epochs before you compare methods."
    if longer and gained and longer.kind == "better":
        times = longer.epochs / plain.epochs
        found = f"trained {times:.2g} x as long, it gains {signed(gained.mean)} AP"
        yield f"The plain student had not converged: {found}. {advice}"
    elif result.converged is None:
        yield "Whether the plain student had converged is unknown: its runs have too few evaluations."
    else:
        brought = f"the last fifth of its run brought {signed(result.converged)} AP"
        if has_converged(result.converged, plain.mean()):
            yield f"The plain student had converged: {brought}."
        else:
            yield f"The plain student had not converged: {brought}. {advice}"


def sentence_of(row: "ResultRow") -> str | None:
    """Say in words what the difference to the plain student means; None for the plain student itself."""
    if row.difference is None:
        return None
    shown = f"{row.name}: {signed(row.difference.mean)} AP against {NONE}"
    if not row.difference.is_known:
        return f"{shown}, from one seed. One seed cannot tell a difference from noise: add seeds."
    over = f"{row.difference.count} seeds {span(row.difference.low, row.difference.high)}"
    images = f", over images {span(*row.over_images)}" if row.over_images else ""
    shown += f" (95 % interval over {over}{images})"
    if row.kind == "better":
        said = "better beyond noise"
    elif row.kind == "worse":
        said = "worse beyond noise"
    elif row.difference.excludes_zero:
        said = f"{'better' if row.difference.mean > 0 else 'worse'} on these images; on others it may differ"
    else:
        count = seeds_to_tell(row.differences)
        said = f"it cannot be told from noise; {_remedy(count, row.difference.count)}"
    return f"{shown}: {said}.{_against_longer(row)}"


def _remedy(needed: int | None, present: int) -> str:
    if needed is None:
        return f"{MOST_SEEDS} seeds would not tell it"
    more = max(needed - present, 1)
    return f"about {more} more seed{'s' if more > 1 else ''} would tell a difference of this size"


def _against_longer(row: "ResultRow") -> str:
    if row.to_longer is None or not row.to_longer.is_known:
        return ""
    shown = f"{signed(row.to_longer.mean)} ({span(row.to_longer.low, row.to_longer.high)})"
    return f" Against the plain student trained as long in time: {shown}."


def notes_on(result: "StudyResult") -> Iterator[str]:
    """Yield what is needed to read the numbers."""
    yield (
        f"AP in percent, at the best epoch of each run, on the validation split. ±: standard deviation over "
        f"{len(result.plan.seeds)} seeds. Runs of a seed share initialisation and batches, so differences are paired; "
        "their interval is Student's t over the seeds. They are means of unrounded values, so a difference can differ "
        "by 0.1 from that of the printed APs."
    )
    if result.samples:
        yield (
            f"The interval over images comes from {result.samples} bootstrap samples of the validation images, with "
            "the trained students as they are. A difference counts as better or worse if both intervals exclude zero."
        )
    longer = result.facts.get("longer")
    if longer and any(row.name == LONGER for row in result.rows):
        yield (
            f"{LONGER}: {longer:.2f} x the epochs of {NONE}, which take as long as the slowest row that was measured "
            "when the study began."
        )
    elif longer and result.plan.longer:
        yield f"The slowest row takes {longer:.2f} x as long as {NONE}: no epoch more, so there is no longer run of it."
    if unhelped := [row for row in result.rows if row.kind in ("worse", "not told") and row.name != LONGER]:
        row, plain = unhelped[0], result.rows[0]
        seed = next((seed for seed in row.runs if seed in plain.runs), None)
        if seed is not None:
            folders = row.runs[seed].folder.path, plain.runs[seed].folder.path
            yield f"What the log of a run shows: understudy doctor {shlex.join(map(str, folders))}"
    yield (
        "Time and memory are those of a training step, measured in turns before the training; time is relative to the "
        "plain student's step, and a mean over the run, in which a cache saves passes of the teacher. Loading of "
        "images is not included."
    )


def span(low: float, high: float) -> str:
    """Write the ends of an interval of a difference."""
    return f"{signed(low)} to {signed(high)}"
