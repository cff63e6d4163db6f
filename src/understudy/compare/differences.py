"""Differences between two runs: all keys of their configs, and the settings of data and budget in words."""

import shlex
from collections.abc import Mapping
from typing import Any

from understudy.compare.runs import Run, same_images, same_training_images
from understudy.config import DetectorConfig, DistillConfig, TrainConfig, flat
from understudy.data import as_paths, shown_location
from understudy.text import as_yaml, listed, shown

BUDGET: dict[str, tuple[str, ...]] = {
    "limit of training images": ("data.limit",),
    "epochs": ("schedule.epochs",),
    "batch size": ("batch_size",),
    "shorter side": ("data.shorter_side",),
    "mode of the shorter side": ("data.shorter_side_mode",),
    "longer side": ("data.longer_side",),
    "flip": ("data.flip",),
    "augmentation": ("data.colour", "data.scale"),
    "grouping by aspect ratio": ("data.group_by_aspect",),
    "leaving out images without objects": ("data.skip_empty",),
    "unlabelled images per step": ("data.unlabelled_batch",),
    "schedule": ("schedule.name", "schedule.drops"),
    "early stopping": ("schedule.patience",),
    "warm-up": ("schedule.warmup", "schedule.warmup_steps", "schedule.warmup_factor"),
    "devices": ("devices",),
    "machines": ("num_nodes",),
    "optimizer": ("optimizer.name",),
    "learning rate": ("optimizer.lr",),
    "weight decay": ("optimizer.weight_decay",),
    "factors of biases": ("optimizer.bias_lr_mult", "optimizer.bias_decay_mult"),
    "largest norm of the gradient": ("optimizer.clip_norm",),
    "initial weights": ("init",),
    "balanced classes": ("class_balance",),
    "moving average of the weights": ("ema",),
    "precision": ("precision",),
    "epochs between evaluations": ("evaluate_every",),
}
"""Settings that two runs must share for a fair comparison, with their keys of the config; a note names the first."""

_OF_THE_EVALUATION = ("shorter side", "longer side")
"""What is known of an imported checkpoint."""

_EXPECTED = {"run", "seed", "data.path", "data.train", "data.val", "data.workers", "accelerator", "log_every"}
"""Keys that differ without an effect on the result, or whose effect is compared otherwise."""


def differences(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Return the known settings of data and budget in which two runs differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    imported = not (one.training_is_known and other.training_is_known)
    if not imported and not same_training_images(one, other):
        found["training images"] = _told_apart(*map(_trained_on, (one, other)))
    if not same_images(one, other):
        found["validation images"] = _told_apart(*map(_measured_on, (one, other)))
    trained = [run.stopped_after or run.config.schedule.epochs for run in (one, other)]
    if any(run.stopped_after for run in (one, other)) and trained[0] != trained[1] and not imported:
        found["trained epochs"] = trained[0], trained[1]
    mine, theirs = _keys(one), _keys(other)
    for what, keys in BUDGET.items():
        values = [[values.get(key) for key in keys] for values in (mine, theirs)]
        if values[0] != values[1] and (not imported or what in _OF_THE_EVALUATION):
            found[what] = _shown(values[0]), _shown(values[1])
    return found


def config_differences(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Return all keys of the configs in which two runs differ, except ``run``; None for a key that one lacks."""
    return {key: values for key, values in _unequal(_keys(one), _keys(other)).items() if key != "run"}


def detector_differences(one: DetectorConfig, other: DetectorConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys of the config in which two detectors differ, with both values; None for one that one lacks."""
    return _unequal(*(flat({"detector": each.model_dump(mode="json")}) for each in (one, other)))


def told_apart(unequal: Mapping[str, tuple[Any, Any]]) -> str:
    """Write differences of :func:`detector_differences` in a line."""
    return listed([f"{key} ({shown(mine)} and {shown(theirs)})" for key, (mine, theirs) in unequal.items()], 6)


def as_arguments(unequal: Mapping[str, tuple[Any, Any]]) -> str:
    """Write the first values of differences as arguments of a command, and say which are to be left out."""
    mine = {key: value for key, (value, _) in unequal.items()}
    lacking = [key for key, value in mine.items() if value is None and key.startswith("detector.settings.")]
    given = shlex.join(f"{key}={as_yaml(value)}" for key, value in mine.items() if key not in lacking)
    return " and ".join([*([given] if given else []), *([f"without {listed(lacking)}"] if lacking else [])])


def _unequal(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*mine, *theirs])
    return {key: (mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)}


def unnamed(one: Run, other: Run) -> list[str]:
    """Return the keys in which two runs differ, and which neither the table nor :func:`differences` shows.

    The table shows the detectors and the methods, so their keys count only between runs that share them. A plain
    student has no cache that needs a fixed number of variants of an image, so it sees more of them.
    """
    if not (one.training_is_known and other.training_is_known):
        return []
    named = {key for keys in BUDGET.values() for key in keys} | _EXPECTED
    distilled = [isinstance(run.config, DistillConfig) for run in (one, other)]
    return [
        key
        for key in config_differences(one, other)
        if key not in named
        and (all(distilled) or key.partition(".")[0] in TrainConfig.model_fields)
        and not (key == "data.variants" and any(distilled) and not all(distilled))
        and not (key.startswith("detector.") and one.config.detector.name != other.config.detector.name)
    ]


def _keys(run: Run) -> dict[str, Any]:
    keys = flat(run.config.model_dump(mode="json"))
    return keys | {"class_balance": bool(run.config.class_balance)}  # runs of earlier versions lack it


def _trained_on(run: Run) -> tuple[str, str | None]:
    place = shown_location([path.resolve() for path in as_paths(run.config.data.path)])
    return f"{place} {run.config.data.train}", run.trained_digest


def _measured_on(run: Run) -> tuple[str, str | None]:
    path, split = run.measured_on
    return f"{shown_location(path)} {split}", run.evaluation.data_digest


def _told_apart(one: tuple[str, str | None], other: tuple[str, str | None]) -> tuple[str, str]:
    """Return the places of two splits; of two contents of one place also their digests."""
    if one[0] != other[0]:
        return one[0], other[0]
    mine, theirs = (f"{place}, digest {(digest or 'unknown')[:8]}" for place, digest in (one, other))
    return mine, theirs


def _shown(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else [value for value in values if value is not None]
