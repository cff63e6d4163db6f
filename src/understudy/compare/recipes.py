"""How a distilled run differs from the published recipe of its methods, for the notes below the table."""

from collections.abc import Iterator
from typing import Any

from understudy.compare.rows import Row
from understudy.config import DistillConfig, TrainConfig, flat
from understudy.detectors.families import family_of
from understudy.errors import UserError
from understudy.recipes import Recipe, read_recipe, recipe_names, teachers
from understudy.text import as_yaml, listed

GROUPS = {
    "detector.name": "detector",
    "detector.neck_channels": "channels",
    "detector.width_mult": "width",
    "inherit": "inheritance",
    "optimizer.clip_norm": "gradient clip",
    "schedule.epochs": "epochs",
    "ema": "moving average",
    "batch_size": "images per step",
    "data.shorter_side": "image size",
    "data.longer_side": "image size",
    "data.shorter_side_mode": "image size",
    "methods": "options of the methods",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "detector": "settings of the detector",
    "data": "loading of the data",
}
"""What a difference in a key is called, by key or section; the first that fits, in the order of the note."""

VALUES = {"detector", "channels", "inheritance", "gradient clip", "epochs", "images per step"}
"""Groups whose values a note states."""

MOST = 4
"""Most differences that a note names."""


def recipe_notes(row: Row) -> Iterator[str]:
    """Yield at most one note: that a distilled run follows its recipe, or in what it differs from the closest one."""
    config = row.config
    if not isinstance(config, DistillConfig):
        return
    candidates = _candidates(config)
    if not candidates:
        return
    differences, recipe = min(
        ((_differences(row, config, recipe), recipe) for recipe in candidates),
        key=lambda pair: _distance(config, *pair),
    )
    if not differences:
        yield f"{row.name}: the settings are those of the recipe {recipe.name}."
        return
    which = "the recipe" if config.recipe == recipe.name else "the closest recipe,"
    several = len(differences) > MOST  # then without their values, to stay in a line
    named = [difference.partition(" (")[0] if several else difference for difference in differences]
    yield f"{row.name} differs from {which} {recipe.name} in {listed(named, MOST)}."


def _candidates(config: DistillConfig) -> list[Recipe]:
    """Return the recipe of a run; if it names none that has its methods, all recipes that have them."""
    recipes = [read_recipe(name) for name in recipe_names()]
    fitting = [recipe for recipe in recipes if recipe.methods.keys() == config.methods.keys()]
    try:
        named = read_recipe(config.recipe) if config.recipe else None
    except UserError:  # of another version of the package
        named = None
    return [named] if named in fitting else fitting


def _differences(row: Row, config: DistillConfig, recipe: Recipe) -> list[str]:
    """Return the differences in words, the most important first; each group of keys once."""
    found = {}
    for key, own, value in _unequal(config, recipe):
        group = next((name for prefix, name in GROUPS.items() if f"{key}.".startswith(f"{prefix}.")), None)
        if group:
            found.setdefault(group, f"{group} ({_shown(own)}, not {_shown(value)})" if group in VALUES else group)
    if row.teacher and recipe.teacher:
        own, value = row.teacher.config.detector.name, teachers()[recipe.teacher].detector["name"]
        if own != value:
            found["teacher"] = f"teacher ({own}, not {value})"
    order = ["detector", "teacher", *GROUPS.values()]
    return [found[group] for group in sorted(found, key=order.index)]


def _unequal(config: DistillConfig, recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys of a recipe that a run sets to another value, with its value and the recipe's."""
    mine = config.model_dump(mode="json") | {"batch_size": _images_per_step(config)}
    for key, value in flat(recipe.config).items():
        if (own := _value_at(mine, key)) != value and key not in ("data.train", "data.val"):
            yield key, own, value


def _distance(config: DistillConfig, differences: list[str], recipe: Recipe) -> tuple[Any, ...]:
    """Return how far a recipe is from a run; of equally close ones, that of the first table is taken."""
    other_family = _family(recipe.config["detector"]["name"]) != _family(config.detector.name)
    place = recipe.table.startswith("Figure"), recipe.table
    return other_family, len(differences), len(list(_unequal(config, recipe))), *place


def _family(detector: str) -> str | None:
    family = family_of(detector)
    return family.name if family else None


def _images_per_step(config: TrainConfig) -> int | None:
    devices = config.devices
    return config.batch_size * devices * config.num_nodes if isinstance(devices, int) else None


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _shown(value: Any) -> str:
    return "none" if value is None or value is False else "yes" if value is True else as_yaml(value)
