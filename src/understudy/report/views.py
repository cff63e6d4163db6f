"""The runs of a report: results, metrics and losses, read from their folders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from understudy.compare.rows import Row
from understudy.compare.runs import Role
from understudy.compare.table import Table
from understudy.reading import number_in, read_json, read_rows, read_text, read_yaml
from understudy.training.folder import RunFolder

Array = NDArray[np.floating]

_POSITION_COLUMNS = ("epoch", "step", "lr")  # of losses.csv: no losses


@dataclass(frozen=True, slots=True)
class RunView:
    """One run; empty mappings for files that a young run does not have yet.

    Attributes:
        name: in the report; unique.
        group: the name shared by runs that differ in the seed only; they have one colour.
        role: teacher, plain student or distilled student.
        folder: the run folder, or the checkpoint.
        result: the content of ``result.json``; ``coco`` and ``per_class`` in 0..1.
        metrics: the columns of ``metrics.csv``, each (P,).
        losses: the columns of ``losses.csv``, each (P,); nan if a row has no value.
        environment: the content of ``environment.json``.
        config: the resolved config.
        config_text: the same as YAML.
    """

    name: str
    group: str
    role: Role
    folder: Path
    result: Mapping[str, Any]
    metrics: Mapping[str, Array] = field(default_factory=dict)
    losses: Mapping[str, Array] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""

    @property
    def loss_terms(self) -> list[str]:
        """The named losses, the total first."""
        others = {f"{name}_{what}" for name in self.losses for what in ("weight", "share")} | {"distillation_share"}
        return [name for name in self.losses if name not in _POSITION_COLUMNS and name not in others]

    @property
    def terms(self) -> list["TermView"]:
        """Each loss of a distilled run at its beginning and at its end; empty for other runs."""
        terms = [name for name in self.loss_terms if name != "total"]
        if not any(f"{name}_weight" in self.losses for name in terms):
            return []
        epochs = self.losses["epoch"]
        first, last = epochs <= max(1, epochs.min()), epochs > epochs.max() - 1
        return [
            TermView(
                name,
                first=float(np.nanmean(self.losses[name][first])),
                last=float(np.nanmean(self.losses[name][last])),
                weight=float(weights[-1]) if (weights := self.losses.get(f"{name}_weight")) is not None else None,
            )
            for name in terms
        ]


@dataclass(frozen=True, slots=True)
class TermView:
    """One named loss of a distilled run.

    Attributes:
        name: of the loss.
        first: its unweighted mean over the logged steps of the first epoch.
        last: the same for the last epoch.
        weight: its weight at the end; None for the student's own losses, which have none.
    """

    name: str
    first: float
    last: float
    weight: float | None

    @property
    def weighted(self) -> float:
        """Its part of the total loss at the end."""
        return self.last * (1.0 if self.weight is None else self.weight)


def view_runs(table: Table) -> list[RunView]:
    """Read the run folders of a comparison, in its order and with its names; of a checkpoint, the result alone.

    Raises:
        UserError: one of the folders is not a run folder.
    """
    views = []
    for row in table.rows:
        group = row.name
        for run in row.runs:
            name = group if len(row.runs) == 1 else f"{group}, seed {run.config.seed}"
            if run.kind == "run":
                views.append(view_run(run.folder, name=name, group=group, role=row.role))
            else:
                result = {**run.evaluation.to_dict(), "epoch": run.epoch}
                views.append(RunView(name, group, row.role, run.folder, result))
    return views


def view_run(folder: Path, *, name: str, group: str, role: Role) -> RunView:
    """Read a run folder; files that a young run does not have yet count as empty.

    Raises:
        UserError: the folder is not a run folder.
    """
    run = RunFolder.open(folder)
    return RunView(
        name=name,
        group=group,
        role=role,
        folder=folder,
        result=_read_json(run.result),
        metrics=_read_columns(run.metrics),
        losses=_read_columns(run.losses),
        environment=_read_json(run.environment),
        config=read_yaml(run.config, "config file"),
        config_text=read_text(run.config, "config file"),
    )


def shown_runs(table: Table, runs: Sequence[RunView]) -> list[RunView]:
    """Return the teacher, the plain student and the distilled student whose detections the page shows.

    These are the distilled row of the highest AP, its plain student and its teacher, of each its first run; of the
    plain student the run of the same seed, if there is one. Without a distilled row, the first row of each role.

    Args:
        table: the comparison.
        runs: from :func:`view_runs`.
    """
    best = max((row for row in table.rows if row.role == "distilled"), key=_known_mean, default=None)
    rows = {row.role: row for row in reversed(table.rows)}
    if best:
        rows |= {role: row for role, row in (("plain", best.plain), ("teacher", best.teacher)) if row}
        rows["distilled"] = best
    by_folder = {run.folder: run for run in runs}
    seed = best.runs[0].config.seed if best else None
    shown = {
        role: next((run for run in row.runs if role == "plain" and run.config.seed == seed), row.runs[0])
        for role, row in rows.items()
    }
    return [by_folder[shown[role].folder] for role in get_args(Role) if role in shown and role != "exported"]


def _known_mean(row: Row) -> float:
    mean = row.mean()
    return -1.0 if math.isnan(mean) else mean


def _read_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _read_columns(file: Path) -> dict[str, Array]:
    """Read the columns of a CSV file of numbers; an empty cell is nan, a missing file has no columns."""
    rows = read_rows(file)
    names = list(rows[0]) if rows else []
    return {name: np.array([number_in(row, name, file) for row in rows]) for name in names}
