"""Checks that a resumed run is still the run of its checkpoint: same config, same data, same teacher."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.checkpoints import faults_of_metadata, read_checkpoint
from understudy.config import DistillConfig, TrainConfig, filled_from, flat
from understudy.config.methods import DEFAULT_METHODS
from understudy.data import DetectionData, as_paths
from understudy.errors import UserError
from understudy.files import drop_rows_after
from understudy.methods.loading import is_own
from understudy.text import listed, shown
from understudy.training.default_methods import in_common
from understudy.training.environment import environment
from understudy.training.folder import RunFolder

_OF_THE_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "pytorch-lightning_version")

MAY_CHANGE = (
    "run",
    "data.path",
    "data.workers",
    "data.max_pixels",
    "data.allow_outside",
    "data.unlabelled",
    "teacher",
    "teacher_check",
    "detector.backbone_weights",
    "init",
    "accelerator",
    "threads",
    "devices",
    "num_nodes",
    "strategy",
    "evaluate_every",
    "log_every",
)
"""Keys of config.yaml that may be edited before a run is resumed: paths, devices and logging."""


def read_resumable(file: Path) -> dict[str, Any]:
    """Read a ``last.ckpt``, with everything that a run needs to continue.

    Raises:
        UserError: the file is damaged, or contains only a detector, as ``best.ckpt`` does.
    """
    content = read_checkpoint(file)
    if missing := [key for key in _OF_THE_TRAINING if key not in content]:
        raise UserError(
            f"{file} cannot be continued: it lacks {', '.join(missing)}. Expected a checkpoint that a run saved as "
            "last.ckpt; best.ckpt contains only the detector."
        )
    meta = content["understudy"]
    kinds: dict[str, Any] = {"step": int, "epoch": int | float, "seconds": int | float}
    faults = list(faults_of_metadata(meta)) + (["config: missing"] if meta.get("config") == {} else [])
    faults += [
        f"{key}: expected {getattr(kind, '__name__', 'a number')}, got {shown(meta.get(key))}"
        for key, kind in kinds.items()
        if not isinstance(meta.get(key), kind)
    ]
    if not faults and not (meta["step"] > 0 and meta["epoch"] > 0):
        faults.append("step and epoch: expected positive numbers")
    if faults:
        raise UserError.listing(f"The metadata in {file} are damaged:", faults)
    return content


def load_unchanged_config(folder: RunFolder, saved: Mapping[str, Any]) -> TrainConfig:
    """Load the config of a run folder, checking that it still describes the run of its checkpoint.

    Args:
        folder: the run folder.
        saved: metadata of its last checkpoint.

    Raises:
        UserError: a key was edited that changes the result.
    """
    config = folder.read_config()
    changed = _changed(config, saved["config"])
    faults = [f"{key}: {then} in the checkpoint, {now} now" for key, (then, now) in changed.items()]
    if faults:
        command = "distill" if isinstance(config, DistillConfig) else "train"
        command = f"understudy {command} --config {folder.config} run=NEW_FOLDER"
        faults.append(f"restore these values, or start a new run: {command}")
        raise UserError.listing(f"{folder.config} was changed since {folder.last} was written:", faults)
    return config


def own_methods(config: TrainConfig) -> list[str]:
    """Return the methods of a config that are imported from modules, ``package.module:Class``."""
    return [name for name in config.methods if is_own(name)] if isinstance(config, DistillConfig) else []


def check_own_methods(folder: RunFolder, config: TrainConfig, named: Sequence[str]) -> None:
    """Check that the user names every method of a run that is imported from a module: the folder may be foreign.

    Raises:
        UserError: an own method of the run is not named, or a named one is not of the run.
    """
    own = own_methods(config)
    if set(named) == set(own):
        return
    if others := [name for name in named if name not in own]:
        kinds = ", ".join(own) or "none"
        raise UserError(f"--method {others[0]} is not an own method of this run. Its own methods: {kinds}.")
    command = shlex.join(["understudy", "resume", str(folder.path), *(part for name in own for part in ("-m", name))])
    raise UserError(
        f"The config of {folder.path} names methods that are imported from modules, and so run their code: "
        f"{', '.join(own)}. If you trust them: {command}"
    )


def check_data_is_there(folder: RunFolder, config: TrainConfig) -> None:
    """Check that the data set is where the config has it.

    Raises:
        UserError: with how to name its new place.
    """
    if missing := [path for path in as_paths(config.data.path) if not path.exists()]:
        raise UserError(
            f"No data set at {listed(missing)}, where {folder.config} has it. If it was moved, set data.path in this "
            f"file to its new place, and repeat: understudy resume {folder.path}"
        )


def requeued() -> bool:
    """Return whether SLURM has started this job again, after a time limit or for a job of higher priority."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def same_run(config: TrainConfig, begun: TrainConfig) -> bool:
    """Return whether a config describes the run that began with another one, in which all options are filled in."""
    if type(config) is not type(begun):
        return False
    if isinstance(config, DistillConfig) and isinstance(begun, DistillConfig):
        if config.methods == DEFAULT_METHODS:  # the run began with those that its pair permits
            balance = None if config.balance == "off" else config.balance
            config = config.model_copy(update={"methods": in_common(begun.methods, balance)})
        if config.methods.keys() != begun.methods.keys():
            return False
    return not _changed(filled_from(config, begun), begun.model_dump(mode="json"))


def _changed(config: TrainConfig, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values before and now of changed keys that decide the result; a key that is new is not one."""
    now, then = flat(config.model_dump(mode="json")), flat(before)
    return {
        key: (then[key], value)
        for key, value in now.items()
        if key not in MAY_CHANGE and key in then and then[key] != value
    }


def check_unchanged_data(saved: Mapping[str, Any], data: DetectionData, steps_per_epoch: int, unlabelled: int) -> None:
    """Check that a run continues with the data that it began with.

    Args:
        saved: metadata of its last checkpoint.
        data: the training split.
        steps_per_epoch: optimizer steps of one epoch.
        unlabelled: number of unlabelled images.

    Raises:
        UserError: the classes, the number of steps or the number of unlabelled images differ.
    """
    faults = []
    if list(data.classes) != saved["classes"]:
        faults.append(f"classes: {saved['classes']} before, {list(data.classes)} now")
    steps_before = round(saved["step"] / saved["epoch"])
    if steps_before != steps_per_epoch:
        faults.append(
            f"steps of an epoch: {steps_before} before, {steps_per_epoch} now (other images, or another number of "
            "devices)"
        )
    if saved.get("unlabelled", 0) != unlabelled:
        faults.append(f"unlabelled images: {saved.get('unlabelled', 0)} before, {unlabelled} now")
    if faults:
        raise UserError.listing(f"The run cannot continue, {data.source} has changed:", faults)


def record_resumption(
    folder: RunFolder, facts: Mapping[str, Any], saved: Mapping[str, Any] | None, accept_changes: bool
) -> list[str]:
    """Prepare a run folder for the continuation of its run, and return notes on what differs from its start.

    Later rows than those of the checkpoint are dropped. ``environment.json`` gets an item of ``resumed``; without a
    checkpoint it is written anew, like that of a new run.

    Args:
        folder: the run folder.
        facts: those of the continuation.
        saved: metadata of the checkpoint; None if the run starts again.
        accept_changes: whether other data or another teacher are accepted.

    Raises:
        UserError: the data or the teacher are others than at the start.
    """
    step, now, start = saved["step"] if saved else 0, environment(), folder.read_environment()
    if saved is None:
        notes = ["The run has no checkpoint: it starts again from its first step"]
        record = {**now, **facts}
    else:
        notes = _changed_files(folder, facts, start, accept_changes) + _changed_software(start, now)
        resumed = {"started": now["started"], "step": step, "notes": notes}
        record = {**start, "fingerprints": facts["fingerprints"], "resumed": [*start.get("resumed", []), resumed]}
    if start or saved is None:  # a damaged file is left as it is
        folder.write_environment(record)
    for file in (folder.losses, folder.metrics):
        drop_rows_after(file, step)
    return notes


def _changed_files(
    folder: RunFolder, facts: Mapping[str, Any], start: Mapping[str, Any], accept_changes: bool
) -> list[str]:
    now: Mapping[str, str] = facts["fingerprints"]
    then = start.get("fingerprints")
    if not isinstance(then, dict):
        return [f"{folder.environment} has no fingerprints: whether data and teacher have changed is not known"]
    changed = [name for name in now if name in then and then[name] != now[name]]
    classes = [facts.get("pairing", {}).get("classes") for facts in (start, facts)]
    changed += ["classes in common with the teacher"] if classes[0] != classes[1] else []
    if changed and not accept_changes:
        accept = f"understudy resume {folder.path} --accept-changes"
        changed.append(f"restore them, start a new run, or continue with these on purpose: {accept}")
        raise UserError.listing(f"{folder.path} cannot continue, these are not the same as at its start:", changed)
    return [f"Not the same as at the start of the run, and accepted: {name}" for name in changed]


def _changed_software(start: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a note if other versions or numbers of threads than at the start may change the last digits."""
    flat_now, flat_then = (
        flat({key: one.get(key) for key in ("python", "packages", "threads", "gpus")}) for one in (now, start)
    )
    changed = [
        f"{key.removeprefix('packages.')} {flat_now.get(key)} (at the start {then})"
        for key, then in flat_then.items()
        if flat_now.get(key) != then
    ]
    what = f"Other software or hardware than at the start of the run: {', '.join(changed)}"
    return [f"{what}. Results may differ in their last digits"] if changed else []
