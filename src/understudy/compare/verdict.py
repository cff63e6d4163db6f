"""The verdict on a distilled student: whether distillation helped, compared with the plain student.

Every difference is that of the two APs as they are printed, in percent with one decimal, so that a reader who subtracts
them finds the same number.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.text import percent, signed

Kind = Literal["helped", "no difference", "worse", "one seed", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of comparing a distilled student with a plain one.

    Attributes:
        kind: ``"no difference"``: of AP in percent with one decimal, or within the spread over the seeds.
            ``"one seed"``: one of the two students has one run, which cannot tell. ``"unknown"``: there is no plain
            student to compare with, or AP is not defined.
        gain: mean AP of the distilled student minus that of the plain one, each rounded as it is printed, -1..1; None
            if unknown.
        sentence: the same in words, with both APs.
        gains: the difference of each seed, if both students have the same seeds.
    """

    kind: Kind
    gain: float | None
    sentence: str
    gains: tuple[float, ...] = ()


def judge(
    name: str,
    distilled: Sequence[float],
    plain: Sequence[float] | None,
    teacher: Sequence[float] | None = None,
    *,
    plain_name: str = "plain",
    paired: bool = False,
) -> Verdict:
    """Compare a distilled student with a plain one.

    >>> judge("frs", [0.40, 0.42], plain=[0.30, 0.31], teacher=[0.50]).kind
    'helped'
    >>> judge("frs", [0.30, 0.34], plain=[0.29, 0.33]).kind
    'no difference'
    >>> judge("frs", [0.30, 0.34], plain=[0.29, 0.33], paired=True).kind  # each seed gained 1.0
    'helped'

    Args:
        name: of the distilled student in the table.
        distilled: its AP, 0..1, one value per seed.
        plain: AP of the plain student; None if there is none.
        teacher: AP of the teacher, if known.
        plain_name: of the plain student in the table.
        paired: both have the same seeds, in the same order, so that the differences of each seed are compared.
    """
    reached = f"AP {_mean_of(distilled)}"
    if plain is None:
        sentence = (
            f"The gain of {name} cannot be computed: no plain student of the same detector is among these runs. "
            f"{name} reaches {reached}. Add a run trained with the same settings and without a teacher."
        )
        return Verdict("unknown", None, sentence)
    mine, theirs = shown_mean(distilled), shown_mean(plain)
    gain = round(mine - theirs, 3)
    if math.isnan(gain):
        which = name if math.isnan(statistics.fmean(distilled)) else plain_name
        sentence = f"The gain of {name} cannot be computed: AP is not defined for {which} (no objects to evaluate on)."
        return Verdict("unknown", None, sentence)
    against = f"{reached} against {_mean_of(plain)} for {plain_name}"
    if min(len(distilled), len(plain)) == 1:
        sides = " and ".join(side for side, aps in ((plain_name, plain), (name, distilled)) if len(aps) == 1)
        sentence = (
            f"{name}: {against} ({signed(gain)}). There is only one run of {sides}, and one seed cannot tell whether "
            "a difference is due to distillation, since AP also varies with the seed. Train both with further seeds "
            "(seed=1, seed=2)."
        )
        return Verdict("one seed", gain, sentence)
    gains = tuple(one - other for one, other in zip(distilled, plain, strict=True)) if paired else ()
    if gain == 0:
        return Verdict("no difference", gain, f"{name} made no difference: {against}.", gains)
    spread = statistics.stdev(gains) if paired else max(map(statistics.stdev, (distilled, plain)))
    over = f" ±{100 * spread:.1f} over {len(gains)} paired seeds" if paired else ""
    against += f" ({signed(gain)}{over})"
    if abs(gain) <= spread:
        sentence = f"{name} made no clear difference: {against}, which is within the spread over the seeds."
        return Verdict("no difference", gain, sentence, gains)
    if gain < 0:
        return Verdict("worse", gain, f"{name} did not help: {against}.", gains)
    closed = None if teacher is None else gap_closed(mine, theirs, shown_mean(teacher))
    share = "" if closed is None else f" This closes {closed:.0%} of the gap to the teacher."
    return Verdict("helped", gain, f"{name} helped: {against}.{share}", gains)


def shown_mean(aps: Sequence[float]) -> float:
    """Return a mean AP as it is printed: 0..1, rounded to a tenth of a percent."""
    return round(100 * statistics.fmean(aps), 1) / 100


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
