"""Compute the results of a study from its runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.compare.convergence import Course
from understudy.compare.intervals import interval
from understudy.compare.verdict import gap_closed, shown_mean
from understudy.config import DistillConfig
from understudy.evaluation import Evaluation
from understudy.evaluation.resampling import image_interval, resampled_aps
from understudy.reading import number_in, read_json, read_rows
from understudy.studies.plan import Plan
from understudy.studies.results import ResultRow, StudyResult, Trained
from understudy.studies.rows import LONGER
from understudy.studies.tables import NUMBERS
from understudy.training.folder import RunFolder

SAMPLES = 1000
"""Bootstrap samples of the images."""


def summarise(
    plan: Plan, facts: Mapping[str, Any], runs: Sequence[Trained], teachers: Mapping[str, Mapping[str, float]]
) -> StudyResult:
    """Compute all numbers of a study from its runs.

    Args:
        plan: of the study.
        facts: with ``costs`` by row.
        runs: all of the study, in the order of the rows.
        teachers: COCO's numbers of each teacher by its path.
    """
    by_row: dict[str, list[Trained]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    finished = {name: {run.seed: run for run in each if run.matches} for name, each in by_row.items()}
    values = {name: _values(each) for name, each in finished.items()}
    plain = next(iter(by_row))
    samples, resampled = _resampled([run for each in finished.values() for run in each.values()])

    def difference(name: str, to: str) -> list[float]:
        if to not in finished:
            return []
        common = [seed for seed in finished[name] if seed in finished[to]]
        aps = [dict(zip(finished[each], values[each]["AP"], strict=True)) for each in (name, to)]
        return [found for seed in common if not math.isnan(found := aps[0][seed] - aps[1][seed])]

    def over_images(name: str) -> tuple[float, float] | None:
        common = [seed for seed in finished[name] if seed in finished[plain]]
        if not samples or not difference(name, plain):
            return None
        of_seeds = [resampled[name, seed] - resampled[plain, seed] for seed in common]
        return image_interval(statistics.fmean(difference(name, plain)), np.mean(of_seeds, axis=0))

    rows = []
    for name, each in by_row.items():
        differences = tuple(difference(name, plain)) if name != plain else ()
        to_longer = difference(name, LONGER) if name not in (plain, LONGER) else []
        config = each[0].config
        only = plan.teachers[0] if len(plan.teachers) == 1 and name != plain else None
        teacher = config.teacher if isinstance(config, DistillConfig) else only
        rows.append(
            ResultRow(
                name=name,
                runs=finished[name],
                missing={run.seed: run.missing for run in each if run.missing},
                values=values[name],
                difference=interval(differences) if differences else None,
                over_images=over_images(name) if differences else None,
                to_longer=interval(to_longer) if to_longer else None,
                gap_closed=_gap(teachers, teacher, values[name]["AP"], values[plain]["AP"]),
                cost=facts["costs"][plain if name == LONGER else name],
                epochs=each[0].config.schedule.epochs,
                differences=differences,
            )
        )
    courses = [found for run in finished[plain].values() if (found := _course(run.folder))]
    converged = statistics.fmean(course.rise for course in courses) if courses else None
    return StudyResult(tuple(rows), teachers, converged, samples, plan, facts)


def _course(folder: RunFolder) -> Course | None:
    file = folder.metrics
    return Course.of([(number_in(row, "epoch", file), number_in(row, "AP", file)) for row in read_rows(file)])


def _values(runs: Mapping[int, Trained]) -> dict[str, list[float]]:
    evaluations = [Evaluation.from_dict(read_json(run.folder.result)) for run in runs.values()]
    return {name: [evaluation.coco[name] for evaluation in evaluations] for name in NUMBERS}


def _resampled(runs: Sequence[Trained]) -> tuple[int, dict[tuple[str, int], Any]]:
    """Return the number of bootstrap samples, and the AP of each run on each, by row and seed."""
    matches = [run.matches for run in runs if run.matches]
    if not matches:
        return 0, {}
    found = resampled_aps(matches, SAMPLES)
    return SAMPLES, {(run.row, run.seed): found[:, number] for number, run in enumerate(runs)}


def _gap(
    teachers: Mapping[str, Mapping[str, float]], teacher: Any, own: Sequence[float], plain: Sequence[float]
) -> float | None:
    if teacher is None or not own or not plain or "AP" not in teachers.get(str(teacher), {}):
        return None
    means = (shown_mean(own), shown_mean(plain), shown_mean([teachers[str(teacher)]["AP"]]))
    return gap_closed(*means)
