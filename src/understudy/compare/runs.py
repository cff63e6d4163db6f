"""Finished runs, read from their folders, and checkpoints without one: config, result, and who taught whom."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from understudy.checkpoints import load_checkpoint
from understudy.class_matching import Aliases
from understudy.config import DetectorConfig, DistillConfig, TrainConfig, load_config
from understudy.data import as_paths, shown_location
from understudy.deployment.sizes import parameters_of_file
from understudy.errors import UserError
from understudy.evaluation import Evaluation, evaluate
from understudy.evaluation.models import is_exported, open_runnable
from understudy.evaluation.runtimes import FileRuntime
from understudy.reading import read_json
from understudy.training.fingerprints import split_digest, teacher_digest, weights_digest
from understudy.training.folder import RunFolder

Role = Literal["teacher", "plain", "distilled", "exported"]
"""The teacher, a student trained without one, a distilled student, or a detector as an exported file."""

Place = tuple[str | list[str], str]
"""Data set, or several, and split."""

_NOT_OF_THE_RESULT = {"run", "seed", "teacher", "accelerator", "threads", "strategy", "log_every", "recipe"}
"""Keys in which the configs of one experiment may differ."""

_NOT_OF_THE_RESULT_IN_DATA = ("path", "workers", "max_pixels", "allow_outside")
"""The same in the section ``data``; its images are compared by :func:`same_data`."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, or a checkpoint without a run folder.

    Attributes:
        folder: the run folder, or the checkpoint.
        config: its resolved config; a :class:`~understudy.config.DistillConfig` for a distilled student.
        evaluation: of its best checkpoint on the validation split.
        parameters: number of weights of the detector; None if unknown.
        epoch: the best epoch; None if unknown.
        train_seconds: duration of the training; None if unknown.
        measured_on: data set and split of the evaluation.
        trained_digest: digest of the training images and their annotations; None if unknown.
        teacher_digest: digest of the weights of its teacher; None if unknown, or without a teacher.
        stopped_after: the epoch after which it stopped early; None if it did not.
        kind: ``"checkpoint"``: without a run folder, and evaluated for the comparison. ``"imported"``: so is this, and
            its config states the detector and the image size only. ``"exported"``: the same of an exported file.
        runtime: that runs an exported file, in words; empty for PyTorch.
    """

    folder: Path
    config: TrainConfig
    evaluation: Evaluation
    parameters: int | None
    epoch: int | None
    train_seconds: float | None
    measured_on: Place
    kind: Literal["run", "checkpoint", "imported", "exported"] = "run"
    trained_digest: str | None = None
    teacher_digest: str | None = None
    stopped_after: int | None = None
    runtime: str = ""

    @property
    def training_is_known(self) -> bool:
        """Whether its config is that of a training."""
        return self.kind in ("run", "checkpoint")

    @property
    def trained_on(self) -> str:
        """The training images: their digest, or their place if that is not known."""
        return self.trained_digest or f"{shown_location(self.config.data.path)} {self.config.data.train}"

    @property
    def experiment(self) -> str:
        """Everything in the config that decides the result, except seed, teacher and place of the data, as text.

        A checkpoint without a run folder is an experiment of its own.
        """
        settings = self.config.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT)
        for key in _NOT_OF_THE_RESULT_IN_DATA:
            settings["data"].pop(key)
        if self.kind != "run":
            settings["checkpoint"] = str(self.folder)
        return json.dumps(settings, sort_keys=True)


def read_runs(paths: Sequence[Path], device: torch.device | str | None = None) -> list[Run]:
    """Read the folders of finished runs; evaluate checkpoints and exported files on the data of these runs.

    Args:
        paths: run folders, checkpoints without one, and exported files, in any order.
        device: on which these are evaluated; by default a GPU if there is one.

    Raises:
        UserError: there is none, some are given twice, are no run folders, have no result, or are checkpoints or files
            that cannot be evaluated on the data of the runs; all are listed.
    """
    if not paths:
        raise UserError("No runs to compare: expected at least one run folder.")
    runs: dict[Path, Run] = {}
    faults = []
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            faults.append(f"{path} is given twice")
        elif is_exported(path) and not path.exists():
            faults.append(f"{path} does not exist")
        elif not path.is_file():
            try:
                runs[path] = _read_run(path)
            except UserError as error:
                faults.append(str(error))
        seen.add(path.resolve())
    checkpoints = [path for path in dict.fromkeys(paths) if path.is_file()]
    measured = list(runs.values())
    distinct = [
        run for number, run in enumerate(measured) if not any(same_images(run, other) for other in measured[:number])
    ]
    places = [run.measured_on for run in distinct]
    if checkpoints and len(places) != 1 and not faults:
        faults.append(_no_common_data(checkpoints, places))
    if not faults:
        for path in checkpoints:
            try:
                evaluated = _exported if is_exported(path) else _evaluated
                runs[path] = evaluated(path, distinct[0], device)
            except UserError as error:
                faults.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if faults:
        raise UserError.listing("These runs cannot be compared:", faults)
    return [runs[path] for path in paths]


def teachers_of(runs: Sequence[Run]) -> dict[Path, Run]:
    """Find the teacher of each distilled run among the runs, by the folder of the distilled run.

    It is the run or checkpoint whose weights have the digest that the distilled run recorded, wherever it is. If a
    digest is not known, it is the one at the place that the config names: the teacher's folder, a checkpoint in it, or
    a checkpoint without a folder. If nothing is there any more, a single one of the same name is taken.
    """
    weights_of = cache(_weights_of)
    teachers = {run.folder: _teacher_of(run, runs, weights_of) for run in runs if isinstance(run.config, DistillConfig)}
    return {folder: teacher for folder, teacher in teachers.items() if teacher}


def _teacher_of(run: Run, runs: Sequence[Run], weights_of: Callable[[Path], str | None]) -> Run | None:
    assert isinstance(run.config, DistillConfig)
    named = run.config.teacher
    folder = named.parent if named.suffix == ".ckpt" else named
    others = [other for other in runs if other is not run and other.kind != "exported"]
    candidates = [
        [other for other in others if other.folder.resolve() in (named.resolve(), folder.resolve())],
        [other for other in others if other.folder.resolve().name in (named.name, folder.name)],
    ]
    if run.teacher_digest:
        unknown = []
        for other in chain(*candidates, others):  # the likely ones first: each digest is that of a checkpoint to read
            inside = named.name == "last.ckpt" and other.kind == "run"
            digest = weights_of(other.folder / named.name if inside else other.folder)
            if digest == run.teacher_digest:
                return other
            unknown += [other.folder] if digest is None else []
        candidates = [[other for other in found if other.folder in unknown] for found in candidates]
    for found in candidates if not named.exists() else candidates[:1]:
        if len(found) == 1:
            return found[0]
    return None


def _weights_of(path: Path) -> str | None:
    """Return the digest of the weights in a checkpoint or run folder; None if they cannot be read."""
    try:
        return weights_digest(load_checkpoint(path).detector)
    except UserError:
        return None


def read_teacher(run: Run, device: torch.device | str | None = None, known: Evaluation | None = None) -> Run:
    """Read the teacher that a distilled run names; without a result on the data of this run it is evaluated on it.

    Args:
        run: of a distilled student.
        device: on which the teacher is evaluated.
        known: an earlier evaluation of it on the same data.

    Raises:
        UserError: the teacher is no longer there, or cannot be evaluated on the data.
    """
    assert isinstance(run.config, DistillConfig)
    named = run.config.teacher
    if not named.exists():
        mark = "weights" if run.teacher_digest else "name"
        raise UserError(
            f"The teacher of {run.folder}, {named}, is not there. If it was moved, give its new path, too; it is "
            f"recognised by its {mark}."
        )
    return recorded_teacher(run) or _evaluated(named, run, device, known)


def recorded_teacher(run: Run) -> Run | None:
    """Return the run that a distilled run names as its teacher; None without a result of it on the same images.

    A result is that of the best checkpoint, so its weights must be those that the distilled run recorded.

    Raises:
        UserError: a file of its folder is damaged.
    """
    assert isinstance(run.config, DistillConfig)
    named = run.config.teacher
    folder = named.parent if named.name in ("best.ckpt", "last.ckpt") else named
    found = _read_run(folder) if RunFolder(folder).result.is_file() else None
    if found is None or not same_images(found, run):
        return None
    is_it = _weights_of(folder) == run.teacher_digest if run.teacher_digest else named.name != "last.ckpt"
    return found if is_it else None


def same_images(one: Run, other: Run) -> bool:
    """Return whether two runs were evaluated on the same images: by content, or by path if that is not recorded."""
    digests = one.evaluation.data_digest, other.evaluation.data_digest
    return digests[0] == digests[1] if all(digests) else one.measured_on == other.measured_on


def same_data(one: Run, other: Run) -> bool:
    """Return whether two runs were trained and evaluated on the same images; compared as by :func:`same_images`."""
    return same_images(one, other) and same_training_images(one, other)


def same_training_images(one: Run, other: Run) -> bool:
    """Return whether two runs have the same training images; compared as by :func:`same_images`."""
    used = [(run.config.data.limit, run.config.data.skip_empty) for run in (one, other)]  # of a part there is no digest
    if one.trained_digest and other.trained_digest and used[0] == used[1]:
        return one.trained_digest == other.trained_digest
    places = [
        ([path.resolve() for path in as_paths(run.config.data.path)], run.config.data.train) for run in (one, other)
    ]
    return places[0] == places[1]


def _read_run(folder: Path) -> Run:
    files = RunFolder.open(folder)
    if not files.result.is_file():
        raise UserError(f"{folder} is not finished: it has no result.json. Finish it: `understudy resume {folder}`")
    result, config, facts = read_json(files.result), files.read_config(), files.read_environment()
    try:
        evaluation = Evaluation.from_dict(result)
        if not evaluation.data_digest and "measured_on" not in result:  # of a version that did not record it there
            evaluation = replace(evaluation, data_digest=split_digest(facts, "data.val") or "")
        return Run(
            folder=folder,
            config=config,
            evaluation=evaluation,
            parameters=result["parameters"],
            epoch=result["epoch"],
            train_seconds=result["train_seconds"],
            measured_on=_measured_on(config, result),
            trained_digest=split_digest(facts, "data.train"),
            teacher_digest=teacher_digest(facts),
            stopped_after=(result.get("stopped_early") or {}).get("epoch"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: its result.json is damaged ({error!r})") from error


def _evaluated(file: Path, beside: Run, device: torch.device | str | None, known: Evaluation | None = None) -> Run:
    """Evaluate a checkpoint without a run folder on the data set and split of a run beside it."""
    path, split = beside.measured_on
    checkpoint = load_checkpoint(file)
    imported = "detector" not in checkpoint.config
    aliases = _aliases(checkpoint.classes, beside)
    if imported:
        config = _config(file, checkpoint.meta["build"], checkpoint.config, beside)
    else:
        config = load_config(DistillConfig if "teacher" in checkpoint.config else TrainConfig, checkpoint.config)
    return Run(
        folder=file,
        config=config,
        evaluation=known or evaluate(file, path, split=split, device=device, aliases=aliases or None),
        parameters=sum(parameter.numel() for parameter in checkpoint.detector.parameters()),
        epoch=checkpoint.meta.get("epoch"),
        train_seconds=None,
        measured_on=beside.measured_on,
        kind="imported" if imported else "checkpoint",
    )


def _exported(file: Path, beside: Run, device: torch.device | str | None) -> Run:
    """Evaluate an exported file on the data set and split of a run beside it."""
    path, split = beside.measured_on
    opened = open_runnable(file, device)
    assert isinstance(opened.runtime, FileRuntime)
    facts = opened.runtime.facts
    build = {"name": facts.detector, "conventions": facts.conventions}
    return Run(
        folder=file,
        config=_config(file, build, opened.config, beside),
        evaluation=evaluate(file, path, split=split, device=device, aliases=_aliases(opened.classes, beside) or None),
        parameters=parameters_of_file(file),
        epoch=None,
        train_seconds=None,
        measured_on=beside.measured_on,
        kind="exported",
        runtime=opened.runtime.description,
    )


def _aliases(classes: Sequence[str], beside: Run) -> Aliases:
    """Return the aliases of a run that name classes of a detector beside it."""
    names = {*classes, *beside.evaluation.per_class}
    return {name: other for name, other in beside.config.data.aliases.items() if {name, other} <= names}


def _config(file: Path, build: Mapping[str, Any], known: Mapping[str, Any], beside: Run) -> TrainConfig:
    """Return a config that states what is known of a detector without a training: itself and its image size."""
    detector = {key: build[key] for key in DetectorConfig.model_fields if build.get(key) is not None}
    sizes = {key: known["data"][key] for key in ("shorter_side", "longer_side")}
    data = {"path": beside.measured_on[0], **sizes}
    return load_config(TrainConfig, {"run": file, "data": data, "detector": detector})


def _no_common_data(checkpoints: Sequence[Path], places: Sequence[Place]) -> str:
    """Explain why checkpoints cannot be evaluated beside the runs."""
    names = ", ".join(map(str, checkpoints))
    if not places:
        return (
            f"{names}: a checkpoint has no result and is evaluated on the data of the runs beside it. Give at least "
            "one run folder, or evaluate it alone: understudy evaluate CHECKPOINT DATA"
        )
    listed = "; ".join(f"{split!r} in {shown_location(path)}" for path, split in places)
    return (
        f"{names}: a checkpoint has no result and is evaluated on the data of the runs beside it, but these were "
        f"evaluated on different data: {listed}. Compare it with the runs of one data set."
    )


def _measured_on(config: TrainConfig, result: Mapping[str, Any]) -> Place:
    """Return data set and split of a result: those of the run, unless the result names others."""
    path, split = result.get("measured_on") or (config.data.path, config.data.val)
    paths = [str(each.resolve()) for each in as_paths(path)]
    return paths[0] if len(paths) == 1 else paths, split
