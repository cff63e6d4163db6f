"""The log of a run folder, and whether its AP was still rising at the end."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.checkpoints import read_checkpoint
from understudy.compare.convergence import LAST, Course, still_rises
from understudy.config import TrainConfig
from understudy.diagnosis.findings import Finding
from understudy.errors import UserError
from understudy.reading import number_in, read_json, read_rows
from understudy.text import percent
from understudy.training.folder import RunFolder

FEW = 5
"""Fewer evaluations show no course of AP."""


@dataclass(frozen=True, slots=True)
class Log:
    """What a run folder tells of its course.

    Attributes:
        folder: the run folder.
        config: its config.
        evaluations: step and AP (0..1) of each evaluation.
        losses: the rows of ``losses.csv`` as numbers; nan where a cell is empty.
        check: what the run's check of the teacher found: ``AP``, ``student_AP``, ``images``; empty for none.
        pairing: what student and teacher have in common, as in ``environment.json``; empty for a plain run.
        ap: AP of the best checkpoint; nan if the run is not finished.
        finished: whether the run is finished.
    """

    folder: RunFolder
    config: TrainConfig
    evaluations: tuple[tuple[int, float], ...]
    losses: tuple[Mapping[str, float], ...]
    check: Mapping[str, Any]
    pairing: Mapping[str, Any]
    ap: float
    finished: bool

    @classmethod
    def of(cls, path: Path) -> "Log":
        """Read a run folder.

        Raises:
            UserError: it is not a run folder, or a file of it is damaged.
        """
        folder = RunFolder.open(path)
        result = read_json(folder.result) if folder.result.is_file() else {}
        metrics, losses = folder.metrics, folder.losses
        evaluations = [
            (int(number_in(row, "step", metrics)), number_in(row, "AP", metrics)) for row in read_rows(metrics)
        ]
        rows = [{name: number_in(row, name, losses) for name in row} for row in read_rows(losses)]
        if not result and folder.best.is_file():  # an interrupted run keeps there what it found of its teacher
            check = read_checkpoint(folder.best)["understudy"].get("teacher_check", {})
        else:
            check = result.get("teacher_check", {})
        pairing = folder.read_environment().get("pairing", {})
        try:
            ap = float(result["coco"]["AP"]) if result else math.nan
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder.result} is damaged: it has no AP ({error!r}).") from error
        return cls(folder, folder.read_config(), tuple(evaluations), tuple(rows), check, pairing, ap, bool(result))

    @property
    def best(self) -> float:
        """The highest AP of all evaluations; nan without any."""
        return max((ap for _, ap in self.evaluations), default=math.nan)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the distillation terms."""
        names = self.losses[0] if self.losses else ()
        return tuple(name for name in names if f"{name}_weight" in names)

    @property
    def own_losses(self) -> tuple[str, ...]:
        """Names of the student's own losses."""
        others = {"epoch", "step", "lr", "total", *self.terms}
        names = self.losses[0] if self.losses else ()
        return tuple(name for name in names if name not in others and not name.endswith(("_weight", "_share")))

    def course(self, *names: str) -> tuple[float, float]:
        """Return the sum of some losses, averaged over the first and over the last tenth of the rows."""
        sums = [sum(row[name] for name in names) for row in self.losses]
        count = max(1, len(sums) // 10)
        return sum(sums[:count]) / count, sum(sums[-count:]) / count


def convergence_findings(log: Log, whose: str) -> Iterator[Finding]:
    """Judge from its evaluations whether AP was still rising in the last fifth of a run."""
    evaluations = log.evaluations
    if len(evaluations) < FEW:
        yield Finding(
            check="convergence",
            severity="note",
            what=f"{whose} has {len(evaluations)} evaluations: too few to see whether its AP was still rising",
            remedy="evaluate_every=1 in the next run" if log.config.evaluate_every > 1 else "",
        )
        return
    course = Course.of(evaluations) or Course(0.0, log.best)
    best = course.best
    what = (
        f"best AP of {whose} {percent(course.before)} before {1 - LAST:.0%} of its steps, {percent(best)} at its best"
    )
    facts = {"AP_before": course.before, "AP": best}
    if still_rises(course.rise, best):
        yield Finding(
            check="convergence",
            severity="warning",
            what=f"not converged: {what}",
            why="Distillation mostly speeds up learning: before convergence, longer training may gain as much.",
            remedy=f"schedule.epochs={2 * log.config.schedule.epochs} for the plain and the distilled student",
            likelihood=0.6 + 0.3 * min(1.0, 5 * course.rise / max(best, 1e-6)),
            facts=facts,
        )
    else:
        yield Finding(check="convergence", severity="ok", what=what, facts=facts)
