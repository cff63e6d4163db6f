"""Values that a config leaves open, until data, teacher and machine of a run are known."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from understudy.config.keys import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)

LEFT_OPEN: dict[str, str | None] = {
    "data.shorter_side": None,
    "data.longer_side": None,
    "teacher_scale": None,
    "schedule.epochs": None,
    "data.colour": None,
    "data.scale": None,
    "evaluate_every": None,
    "detector.backbone_weights": "auto",
    "detector.head_norm": "auto",
    "detector.anchor_scale": "auto",
    "class_balance": None,
    "data.workers": None,
    "batch_size": None,
    "data.group_by_aspect": None,
    "data.unlabelled_batch": None,
    "detector.norm": "auto",
    "data.variants": "auto",
}
"""The keys, each with the value that leaves it open: ``auto`` where null has a meaning of its own. They are chosen in
this order."""


def open_keys(config: TrainConfig) -> list[str]:
    """Return the keys that a config leaves open, in the order in which they are chosen."""
    found = [key for key, mark in LEFT_OPEN.items() if has(config, key) and value_of(config, key) == mark]
    return [key for key in found if key != "data.unlabelled_batch" or config.data.unlabelled is not None]


def has(config: TrainConfig | type[TrainConfig], key: str) -> bool:
    """Return whether a dotted key is one of this config: some are of a distillation only."""
    return "." in key or key in (config if isinstance(config, type) else type(config)).model_fields


def value_of(config: TrainConfig, key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a config with other values, by dotted key. They are not checked."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        changed = getattr(config, section).model_copy(update={name: value}) if section else value
        config = config.model_copy(update={section or name: changed})
    return config


def filled_from(config: Config, other: TrainConfig, keys: Collection[str] = LEFT_OPEN) -> Config:
    """Take those values that a config leaves open from another one, for all keys or some of them."""
    return with_values(
        config, {key: value_of(other, key) for key in open_keys(config) if key in keys and has(other, key)}
    )
