"""Finished runs, read from their folders: config, result, and which run was the teacher of which."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.data import as_paths, shown_location
from understudy.errors import UserError
from understudy.evaluation import Evaluation
from understudy.reading import read_json, read_yaml
from understudy.training.folder import RunFolder

Role = Literal["teacher", "plain", "distilled"]
"""The teacher, a student trained without one, or a distilled student."""

_NOT_OF_THE_RESULT = {"run", "seed", "teacher", "accelerator", "strategy", "log_every"}
"""Keys in which the configs of one experiment may differ."""

_NOT_OF_THE_RESULT_IN_DATA = ("workers", "max_pixels", "allow_outside")
"""The same in the section ``data``."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        config: its resolved config; a :class:`~understudy.config.DistillConfig` for a distilled student.
        evaluation: of its best checkpoint on the validation split.
        parameters: number of weights of the detector.
        epoch: the best epoch.
        train_seconds: duration of the training; None if unknown.
        measured_on: data set and split of the evaluation.
    """

    folder: Path
    config: TrainConfig
    evaluation: Evaluation
    parameters: int
    epoch: int
    train_seconds: float | None
    measured_on: tuple[str | list[str], str]

    @property
    def experiment(self) -> str:
        """Everything in the config that decides the result, except the seed and the teacher, as text."""
        settings = self.config.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT)
        for key in _NOT_OF_THE_RESULT_IN_DATA:
            settings["data"].pop(key)
        return json.dumps(settings, sort_keys=True)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders of finished runs.

    Raises:
        UserError: there is none, or some are given twice, are no run folders, or have no result; all are listed.
    """
    if not folders:
        raise UserError("No runs to compare: expected at least one run folder.")
    runs, faults = [], []
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            faults.append(f"{folder} is given twice")
            continue
        seen.add(folder.resolve())
        try:
            runs.append(_read_run(folder))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError.listing("These runs cannot be compared:", faults)
    return runs


def teachers_of(runs: Sequence[Run]) -> dict[Path, Run]:
    """Find the teacher of each distilled run among the runs, by the folder of the distilled run.

    A config names the teacher's folder or a checkpoint in it. If the runs were moved since, a single folder of the same
    name is taken.
    """
    found = {}
    for run in runs:
        if isinstance(run.config, DistillConfig):
            named = run.config.teacher
            folder = named.parent if named.suffix == ".ckpt" else named
            same_place = [other for other in runs if other.folder.resolve() == folder.resolve()]
            same_name = [other for other in runs if other.folder.resolve().name == folder.name]
            for candidates in (same_place, same_name):
                if len(candidates) == 1 and candidates[0] is not run:
                    found.setdefault(run.folder, candidates[0])
    return found


def differences(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings of data and budget in which two runs differ, with both values."""
    mine, theirs = _budget(one), _budget(other)
    return {what: (mine[what], theirs[what]) for what in mine if mine[what] != theirs[what]}


def _read_run(folder: Path) -> Run:
    files = RunFolder.open(folder)
    if not files.result.is_file():
        raise UserError(f"{folder} is not finished: it has no result.json. Finish it: `understudy resume {folder}`")
    result, config = read_json(files.result), read_yaml(files.config, "config file")
    try:
        return Run(
            folder=folder,
            config=load_config(DistillConfig if "teacher" in config else TrainConfig, files.config),
            evaluation=Evaluation.from_dict(result),
            parameters=result["parameters"],
            epoch=result["epoch"],
            train_seconds=result["train_seconds"],
            measured_on=_measured_on(config, result),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: its config.yaml or result.json is damaged ({error!r})") from error


def _measured_on(config: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str | list[str], str]:
    """Return data set and split of a result: those of the run, unless the result names others."""
    path, split = result.get("measured_on") or (config["data"]["path"], config["data"]["val"])
    paths = [str(each.resolve()) for each in as_paths(path)]
    return paths[0] if len(paths) == 1 else paths, split


def _budget(run: Run) -> dict[str, Any]:
    """Collect the settings that two runs must share for a fair comparison."""
    config = run.config
    data, optimizer, schedule = config.data, config.optimizer, config.schedule
    measured_path, measured_split = run.measured_on
    return {
        "training images": f"{shown_location([path.resolve() for path in as_paths(data.path)])} {data.train}",
        "validation images": f"{shown_location(measured_path)} {measured_split}",
        "shorter side": data.shorter_side,
        "mode of the shorter side": data.shorter_side_mode,
        "longer side": data.longer_side,
        "flip": data.flip,
        "grouping by aspect ratio": data.group_by_aspect,
        "images without objects": "left out" if data.skip_empty else "used",
        "unlabelled images per step": data.unlabelled_batch or 0,
        "epochs": schedule.epochs,
        "schedule": schedule.name,
        "warm-up": [schedule.warmup, schedule.warmup_steps, schedule.warmup_factor],
        "batch size": config.batch_size,
        "devices": config.devices,
        "machines": config.num_nodes,
        "optimizer": optimizer.name,
        "learning rate": optimizer.lr,
        "weight decay": optimizer.weight_decay,
        "factors of biases": [optimizer.bias_lr_mult, optimizer.bias_decay_mult],
        "largest norm of the gradient": optimizer.clip_norm,
        "precision": config.precision,
        "epochs between evaluations": config.evaluate_every,
    }
