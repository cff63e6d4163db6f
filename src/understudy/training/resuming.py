"""Checks that a resumed run is still the run of its checkpoint: same config, same data."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.checkpoints import faults_of_metadata, read_checkpoint
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.data import DetectionData
from understudy.errors import UserError
from understudy.methods.loading import is_own
from understudy.reading import read_yaml
from understudy.text import shown
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
    "detector.backbone_weights",
    "accelerator",
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
    faults = list(faults_of_metadata(meta))
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
    distilled = "teacher" in read_yaml(folder.config, "config file")
    config = load_config(DistillConfig if distilled else TrainConfig, folder.config)
    now, then = _flat(config.model_dump(mode="json")), _flat(saved["config"])
    faults = [
        f"{key}: {then[key]} in the checkpoint, {value} now"
        for key, value in now.items()
        if key not in MAY_CHANGE and key in then and then[key] != value
    ]
    if faults:
        command = f"understudy {'distill' if distilled else 'train'} --config {folder.config} run=NEW_FOLDER"
        faults.append(f"restore these values, or start a new run: {command}")
        raise UserError.listing(f"{folder.config} was changed since {folder.last} was written:", faults)
    return config


def check_own_methods(folder: RunFolder, config: TrainConfig, named: Sequence[str]) -> None:
    """Check that the user names every method of a run that is imported from a module: the folder may be foreign.

    Raises:
        UserError: an own method of the run is not named, or a named one is not of the run.
    """
    own = [name for name in config.methods if is_own(name)] if isinstance(config, DistillConfig) else []
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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
