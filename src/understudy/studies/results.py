"""The results of a study: means, paired differences with their intervals, and the cost of each row."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy.checkpoints import load_checkpoint
from understudy.compare.intervals import Interval, seeds_to_tell
from understudy.config import DistillConfig, TrainConfig
from understudy.data import Limits, open_data
from understudy.evaluation import choose_device, detect_all, loader_at_evaluation_size, on_device
from understudy.evaluation.resampling import Matches
from understudy.studies.plan import Plan
from understudy.studies.sentences import notes_on, sentence_of, sentences_of
from understudy.studies.tables import NUMBERS, terminal_table
from understudy.training.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Trained:
    """One run of a study, finished or not.

    Attributes:
        row: the name of its row.
        seed: of the run.
        config: of the run.
        folder: of the run.
        matches: its detections on the validation split; None if it is not finished.
        missing: why it is not finished; None if it is.
    """

    row: str
    seed: int
    config: TrainConfig
    folder: RunFolder
    matches: Matches | None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A row of the results.

    Attributes:
        name: in the table.
        runs: the finished ones, by seed.
        missing: for each other seed, why it has none.
        values: for each of :data:`NUMBERS`, its value for each finished run, 0..1; nan if not defined.
        difference: of AP to the plain student over the seeds that both have; None for the plain student itself.
        over_images: 95 % interval of the same difference over bootstrap samples of the images.
        to_longer: of AP to the plain student trained as long in time; None if there is none.
        gap_closed: share of the teacher's lead that is closed; None if not defined.
        cost: ``seconds`` and ``memory`` (bytes) of a step, ``ratio`` to the plain student's, ``steps`` per epoch.
        epochs: of each run.
    """

    name: str
    runs: Mapping[int, Trained]
    missing: Mapping[int, str]
    values: Mapping[str, Sequence[float]]
    difference: Interval | None
    over_images: tuple[float, float] | None
    to_longer: Interval | None
    gap_closed: float | None
    cost: Mapping[str, float]
    epochs: int
    differences: tuple[float, ...] = ()

    def mean(self, number: str = "AP") -> float:
        """Return a mean over the seeds, 0..1; nan if there is no run."""
        values = self.values[number]
        return statistics.fmean(values) if values else math.nan

    def spread(self, number: str = "AP") -> float | None:
        """Return a standard deviation over the seeds (n - 1); None for fewer than two."""
        values = self.values[number]
        return statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else None

    @property
    def kind(self) -> str:
        """``better``, ``worse``, ``not told``, or ``unknown`` for fewer than two seeds."""
        if self.difference is None or not self.difference.is_known:
            return "unknown"
        low, high = self.over_images or (-math.inf, math.inf)
        if self.difference.low > 0 and low > 0:
            return "better"
        return "worse" if self.difference.high < 0 and high < 0 else "not told"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON."""
        first = next(iter(self.runs.values()), None)
        return {
            "name": self.name,
            "methods": first.config.methods if first and isinstance(first.config, DistillConfig) else {},
            "seeds": list(self.runs),
            "missing": {str(seed): reason for seed, reason in self.missing.items()},
            "folders": [str(run.folder.path) for run in self.runs.values()],
            **{
                number: {
                    "mean": _plain(self.mean(number)),
                    "spread": _plain(self.spread(number)),
                    "of_seeds": list(map(_plain, self.values[number])),
                }
                for number in NUMBERS
            },
            "difference": None
            if self.difference is None
            else {
                "mean": _plain(self.difference.mean),
                "of_seeds": list(self.differences),
                "interval": self.difference.to_list(),
                "interval_over_images": list(self.over_images) if self.over_images else None,
                "seeds_to_tell": seeds_to_tell(self.differences),
            },
            "difference_to_longer": None
            if self.to_longer is None
            else {"mean": _plain(self.to_longer.mean), "interval": self.to_longer.to_list()},
            "kind": self.kind,
            "gap_closed": self.gap_closed,
            "epochs": self.epochs,
            "seconds_per_step": self.cost["seconds"],
            "time_ratio": self.cost["ratio"],
            "memory_per_step": self.cost["memory"],
            "sentence": sentence_of(self),
        }


@dataclass(frozen=True, slots=True)
class StudyResult:
    """The results of a study.

    Attributes:
        rows: the plain student first.
        teachers: COCO's numbers of each teacher on the validation split.
        converged: what the last fifth of the plain student's runs brought in AP, mean over the seeds; None: unknown.
        samples: number of bootstrap samples of the images.
        plan: of the study.
        facts: version, fingerprints and costs.
    """

    rows: tuple[ResultRow, ...]
    teachers: Mapping[str, Mapping[str, float]]
    converged: float | None
    samples: int
    plan: Plan
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "teachers": {path: dict(numbers) for path, numbers in self.teachers.items()},
            "converged": self.converged,
            "image_samples": self.samples,
            "sentences": sentences_of(self),
            "notes": list(notes_on(self)),
            "seeds": list(self.plan.seeds),
            "facts": dict(self.facts),
        }

    def __rich__(self) -> Group:
        """Return the table for a terminal of at least 80 columns, with what it means below it."""
        lines = Table.grid(padding=(0, 1))
        lines.add_column()
        lines.add_column(overflow="fold")  # a long path is not cut
        for line in [*sentences_of(self), *notes_on(self)]:
            lines.add_row("-", Text(line))
        return Group(terminal_table(self), "", lines)


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def matches_of(config: TrainConfig, run: Path) -> Matches:
    """Match the detections of the best checkpoint on the validation split with its objects."""
    loaded = load_checkpoint(run, quantised=True)
    data = open_data(config.data.path, config.data.val, Limits.of(config.data))
    device = choose_device("cpu" if config.accelerator == "cpu" else None)
    loader = loader_at_evaluation_size(data, loaded.config, batch_size=config.batch_size, workers=config.data.workers)
    found = detect_all(on_device(loaded.detector, device), loader, device, data.category_ids, config.precision)
    return Matches.of(data, found)
