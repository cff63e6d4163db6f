"""Checks that a resumed run is still the run of its checkpoint: same config, same data."""

from collections.abc import Mapping
from typing import Any

import yaml

from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.data import DetectionData
from understudy.errors import UserError
from understudy.training.folder import RunFolder

MAY_CHANGE = (
    "run",
    "data.path",
    "data.workers",
    "data.unlabelled",
    "teacher",
    "teacher_check",
    "detector.backbone_weights",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "evaluate_every",
    "log_every",
)
"""Keys of config.yaml that may be edited before a run is resumed: paths, devices and logging."""


def load_unchanged_config(folder: RunFolder, saved: Mapping[str, Any]) -> TrainConfig:
    """Load the config of a run folder, checking that it still describes the run of its checkpoint.

    Args:
        folder: the run folder.
        saved: metadata of its last checkpoint.

    Raises:
        UserError: a key was edited that changes the result.
    """
    content = yaml.safe_load(folder.config.read_text(encoding="utf-8-sig"))
    distilled = "teacher" in content
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
