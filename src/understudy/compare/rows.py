"""The rows of the comparison: runs grouped by experiment, each distilled student with its plain student and teacher."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

from understudy.compare.differences import config_differences, differences
from understudy.compare.names import distinct_names
from understudy.compare.runs import Role, Run, same_data, teachers_of
from understudy.compare.verdict import Verdict, gap_closed, judge, shown_mean
from understudy.config import DistillConfig, TrainConfig


@dataclass(frozen=True, slots=True)
class Row:
    """Runs of one experiment, which differ in the seed only.

    Attributes:
        name: in the table, unique: "teacher", "plain", the methods of distillation, or the name of an exported file,
            and what tells rows of the same name apart.
        role: teacher, plain student, distilled student, or exported file.
        runs: one for each seed.
        plain: the plain student that a distilled one is compared with, if it is among the runs.
        teacher: the teacher of a distilled student, if it is among the runs.
        images_per_second: of the first run's detector; None if not measured.
        speed_ratio: ``images_per_second`` divided by the teacher's.
        repeated: further runs of the same seeds, copies for example. No number includes them: they show no spread.
    """

    name: str
    role: Role
    runs: tuple[Run, ...]
    plain: Self | None = None
    teacher: Self | None = None
    images_per_second: float | None = None
    speed_ratio: float | None = None
    repeated: tuple[Run, ...] = ()

    @property
    def config(self) -> TrainConfig:
        """The config of the first run; those of the others have another seed and folder."""
        return self.runs[0].config

    def values(self, number: str = "AP") -> list[float]:
        """Return one of COCO's 12 numbers for each run, 0..1; nan if not defined."""
        return [run.evaluation.coco[number] for run in self.runs]

    def mean(self, number: str = "AP") -> float:
        """Return the mean over the runs, 0..1."""
        return statistics.fmean(self.values(number))

    def spread(self, number: str = "AP") -> float | None:
        """Return the sample standard deviation over the runs (n - 1); None for a single run."""
        return statistics.stdev(self.values(number)) if len(self.runs) > 1 else None

    @property
    def gap_closed(self) -> float | None:
        """The share of the gap to the teacher that a distilled student closes; None if not defined."""
        if self.plain is None or self.teacher is None:
            return None
        return gap_closed(*(shown_mean(row.values()) for row in (self, self.plain, self.teacher)))

    @property
    def compared_with(self) -> Self | None:
        """The row that its budget is compared with: of a distilled student the plain one, or else its teacher."""
        return self.plain or self.teacher

    @property
    def verdict(self) -> Verdict | None:
        """Whether distillation helped; None for a teacher or a plain student."""
        if self.role != "distilled":
            return None
        teacher = self.teacher.values() if self.teacher else None
        if self.plain is None:
            return judge(self.name, self.values(), None, teacher)
        plain = self._in_the_order_of_my_seeds(self.plain)
        values = plain or self.plain.values()
        return judge(self.name, self.values(), values, teacher, plain_name=self.plain.name, paired=plain is not None)

    def _in_the_order_of_my_seeds(self, other: Self) -> list[float] | None:
        """Return the AP of another row's runs in the order of this row's seeds; None if the seeds are not the same."""
        of_seed = {run.config.seed: run.evaluation.coco["AP"] for run in other.runs if run.training_is_known}
        seeds = [run.config.seed for run in self.runs]
        paired = len(set(seeds)) == len(seeds) == len(other.runs) and of_seed.keys() == set(seeds)
        return [of_seed[seed] for seed in seeds] if paired else None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON: COCO's numbers are means, lists have one value per run.

        ``differences`` holds every key of the config in which it differs from ``compared_with``, with both values.
        """
        other, spread = self.compared_with, self.spread()
        return {
            "name": self.name,
            "role": self.role,
            "detector": self.config.detector.name,
            "runtime": self.runs[0].runtime or None,
            "folders": [str(run.folder) for run in self.runs],
            "seeds": [run.config.seed for run in self.runs],
            **{number: _none_if_nan(self.mean(number)) for number in ("AP", "AP50", "AP75", "APs", "APm", "APl")},
            "AP_spread": None if spread is None else _none_if_nan(spread),
            "AP_of_runs": [_none_if_nan(value) for value in self.values()],
            "epochs": [run.epoch for run in self.runs],
            "train_seconds": [run.train_seconds for run in self.runs],
            "parameters": self.runs[0].parameters,
            "images_per_second": self.images_per_second,
            "speed_ratio": self.speed_ratio,
            "gap_closed": self.gap_closed,
            "compared_with": other and other.name,
            "differences": config_differences(self.runs[0], other.runs[0]) if other else {},
        }


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Group runs by experiment: teachers, plain students, distilled ones with their partners, exported files."""
    teachers = teachers_of(runs)
    taught_by = {teacher.folder for teacher in teachers.values()}
    groups: list[tuple[tuple[Role, str], list[Run]]] = []
    for run in runs:
        role: Role = "teacher" if run.folder in taught_by else "exported" if run.kind == "exported" else "plain"
        experiment = run.experiment
        if isinstance(run.config, DistillConfig):
            role = "distilled"
            teacher = teachers.get(run.folder)
            experiment += f"{teacher.experiment} {teacher.trained_on}" if teacher else str(run.config.teacher)
        key = role, experiment
        group = next((members for other, members in groups if other == key and same_data(members[0], run)), None)
        if group is None:
            groups.append((key, [run]))
        else:
            group.append(run)
    names = distinct_names([_name(members[0], role) for (role, _), members in groups], [runs[0] for _, runs in groups])
    rows = [_row(name, role, members) for name, ((role, _), members) in zip(names, groups, strict=True)]
    teacher_rows, plain_rows, distilled_rows, exported_rows = (
        [row for row in rows if row.role == role] for role in get_args(Role)
    )
    paired = [
        replace(
            row,
            plain=next(iter(plain_candidates(row, plain_rows)), None),
            teacher=next(
                (each for each in rows if teachers.get(row.runs[0].folder) in each.runs + each.repeated), None
            ),
        )
        for row in distilled_rows
    ]
    return [*teacher_rows, *plain_rows, *paired, *exported_rows]


def plain_candidates(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Return the plain students of the same detector as a distilled one; the first is compared with it.

    Those trained most like it come first: with the fewest differences in data and budget, then with the best AP.
    """
    same = [other for other in rows if other.role == "plain" and other.config.detector == row.config.detector]

    def rank(other: Row) -> tuple[int, bool, float]:
        ap = other.mean()
        return len(differences(row.runs[0], other.runs[0])), math.isnan(ap), -ap

    return sorted(same, key=rank)


def _row(name: str, role: Role, members: Sequence[Run]) -> Row:
    """Return a row in which each seed, of a distilled student with each teacher, has the first of its runs."""
    first: dict[tuple[int, str | Path | None], Run] = {}
    for run in members:
        teacher = run.config.teacher if isinstance(run.config, DistillConfig) else None
        first.setdefault((run.config.seed, run.teacher_digest or teacher), run)
    runs = tuple(first.values())
    return Row(name, role, runs, repeated=tuple(run for run in members if run not in runs))


def _name(run: Run, role: Role) -> str:
    if role == "exported":
        return run.folder.name
    if not isinstance(run.config, DistillConfig):
        return role
    return " + ".join([*run.config.methods, *(["inherit"] if run.config.inherit else [])])


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
