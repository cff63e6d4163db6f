"""The verdict on a distilled student: whether distillation helped, compared with the plain student."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.text import percent

Kind = Literal["helped", "no difference", "worse", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of comparing a distilled student with a plain one.

    Attributes:
        kind: ``"no difference"``: of AP in percent with one decimal, or within the spread over the seeds.
            ``"unknown"``: there is no plain student to compare with, or AP is not defined.
        gain: mean AP of the distilled student minus that of the plain one, -1..1; None if unknown.
        sentence: the same in words, with both APs.
    """

    kind: Kind
    gain: float | None
    sentence: str


def judge(
    name: str,
    distilled: Sequence[float],
    plain: Sequence[float] | None,
    teacher: Sequence[float] | None = None,
    *,
    plain_name: str = "plain",
) -> Verdict:
    """Compare a distilled student with a plain one.

    >>> judge("frs", [0.40], plain=[0.30], teacher=[0.50]).sentence
    'frs helped: AP 40.0 against 30.0 for plain (+10.0). This closes 50% of the gap to the teacher.'
    >>> judge("frs", [0.30, 0.34], plain=[0.29, 0.33]).kind
    'no difference'

    Args:
        name: of the distilled student in the table.
        distilled: its AP, 0..1, one value per seed.
        plain: AP of the plain student; None if there is none.
        teacher: AP of the teacher, if known.
        plain_name: of the plain student in the table.
    """
    reached = f"AP {_mean_of(distilled)}"
    if plain is None:
        sentence = (
            f"The gain of {name} cannot be computed: no plain student of the same detector is among these runs. "
            f"{name} reaches {reached}. Add a run trained with the same settings and without a teacher."
        )
        return Verdict("unknown", None, sentence)
    gain = statistics.fmean(distilled) - statistics.fmean(plain)
    if math.isnan(gain):
        which = name if math.isnan(statistics.fmean(distilled)) else plain_name
        sentence = f"The gain of {name} cannot be computed: AP is not defined for {which} (no objects to evaluate on)."
        return Verdict("unknown", None, sentence)
    against = f"{reached} against {_mean_of(plain)} for {plain_name}"
    shown = round(100 * statistics.fmean(distilled), 1) - round(100 * statistics.fmean(plain), 1)
    if abs(shown) < 0.05:
        return Verdict("no difference", gain, f"{name} made no difference: {against}.")
    against += f" ({shown:+.1f})"
    if min(len(distilled), len(plain)) > 1 and abs(gain) <= max(map(statistics.stdev, (distilled, plain))):
        sentence = f"{name} made no clear difference: {against}, which is within the spread over the seeds."
        return Verdict("no difference", gain, sentence)
    if gain < 0:
        return Verdict("worse", gain, f"{name} did not help: {against}.")
    closed = None if teacher is None else gap_closed(*map(statistics.fmean, (distilled, plain, teacher)))
    share = "" if closed is None else f" This closes {closed:.0%} of the gap to the teacher."
    return Verdict("helped", gain, f"{name} helped: {against}.{share}")


def gap_closed(distilled: float, plain: float, teacher: float) -> float | None:
    """Return the share of the gap between plain student and teacher that the distilled student closes.

    >>> gap_closed(distilled=0.375, plain=0.25, teacher=0.5)
    0.5

    Returns:
        (distilled - plain) / (teacher - plain); None if the teacher is not better than the plain student, or a
        number is nan.
    """
    lead = teacher - plain
    return (distilled - plain) / lead if lead > 0 and not math.isnan(distilled) else None


def _mean_of(aps: Sequence[float]) -> str:
    mean = percent(statistics.fmean(aps))
    return f"{mean} (mean of {len(aps)} runs)" if len(aps) > 1 else mean
