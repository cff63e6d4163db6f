"""How a distilled run differs from the published recipe of its methods, for the notes below the table."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from understudy.compare.rows import Row
from understudy.config import DistillConfig, TrainConfig, flat, load_config
from understudy.detectors.families import family_of
from understudy.errors import UserError
from understudy.methods.loading import method_class, resolve_options
from understudy.methods.shares import terms_on
from understudy.outputs import Spec
from understudy.recipes import Recipe, read_recipe, recipe_names, teachers
from understudy.text import as_yaml, listed

GROUPS = {
    "method names": "methods",
    "detector.name": "detector",
    "detector.neck_channels": "channels",
    "detector.width_mult": "width",
    "inherit": "inheritance",
    "balance": "balance",
    "balance_end": "balance",
    "balance_until": "balance",
    "pseudo_labels": "pseudo-labels",
    "data.unlabelled": "unlabelled images",
    "data.limit": "number of training images",
    "optimizer.clip_norm": "gradient clip",
    "schedule.epochs": "epochs",
    "ema": "moving average",
    "batch_size": "images per step",
    "data.shorter_side": "image size",
    "data.longer_side": "image size",
    "data.shorter_side_mode": "image size",
    "methods": "options of the methods",
    "init": "initial weights",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "precision": "precision",
    "quantise": "training for INT8",
    "detector": "settings of the detector",
    "data": "loading of the data",
}
"""What a difference in a key is called, by key or section; the first that fits, in the order of the note.

Keys of no group do not change what is trained."""

YOURS = ("path", "train", "val", "workers", "max_pixels", "allow_outside", "aliases", "unlabelled_batch")
"""Keys of ``data`` that no recipe decides. Unlabelled images are a difference themselves; their number is not."""

VALUES = {
    "methods",
    "detector",
    "channels",
    "inheritance",
    "pseudo-labels",
    "gradient clip",
    "epochs",
    "images per step",
}
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
    """Return the recipe that a run names; if it names none that exists, all recipes with its methods."""
    recipes = [recipe for recipe in map(read_recipe, recipe_names()) if recipe.methods]
    named = [recipe for recipe in recipes if recipe.name == config.recipe]  # none: of another version of the package
    return named or [recipe for recipe in recipes if recipe.methods.keys() == config.methods.keys()]


def _differences(row: Row, config: DistillConfig, recipe: Recipe) -> list[str]:
    """Return the differences in words, the most important first; each group of keys once."""
    found = {}
    for key, own, value in _unequal(config, recipe):
        group = _group(key)
        found.setdefault(group, f"{group} ({_shown(own)}, not {_shown(value)})" if group in VALUES else group)
    if row.teacher and recipe.teacher:
        own, value = row.teacher.config.detector.name, teachers()[recipe.teacher].detector["name"]
        if own != value:
            found["teacher"] = f"teacher ({own}, not {value})"
    order = ["methods", "detector", "teacher", *GROUPS.values()]
    return [found[group] for group in sorted(found, key=order.index)]


def _unequal(config: DistillConfig, recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys of a group in which a run differs from a recipe, with its value and the recipe's."""
    published = _whole(recipe.name)
    common = config.methods.keys() & published.methods.keys()
    mine, theirs = _settings(config, common), _settings(published, common)
    for key in dict.fromkeys([*mine, *theirs]):
        if _group(key) and mine.get(key) != theirs.get(key):
            yield key, mine.get(key), theirs.get(key)


@cache
def _whole(recipe: str) -> DistillConfig:
    """Return the config that a recipe makes: what it leaves open has its default."""
    return load_config(DistillConfig, {"recipe": recipe, "data": "data", "teacher": "teacher", "run": "run"})


def _settings(config: DistillConfig, common: Collection[str]) -> dict[str, Any]:
    """Return the settings of a config by dotted key; of methods in ``common``, with all their options and weights."""
    chosen = {name: options for name, options in config.methods.items() if name in common}
    try:
        methods, balanced = _resolved(config, chosen)
    except UserError:  # options of another version of the package
        methods, balanced = chosen, True
    values = config.model_dump(mode="json", exclude={"data": set(YOURS)}) | {
        "method names": " + ".join(sorted(config.methods)),
        "methods": methods,
        "batch_size": _images_per_step(config),
    }
    if not balanced and common == config.methods.keys():  # the others may have weights that follow from the balance
        values |= {"balance": "off", "balance_end": 1.0, "balance_until": 1.0}
    return flat(values)


def _resolved(config: DistillConfig, chosen: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return methods with all options and weights, and whether a weight follows from the balance."""
    family = family_of(config.detector.name)
    if family is None:
        raise UserError(f"there is no family of {config.detector.name}, whose default weights are needed")
    nothing = Spec(channels=(), strides=(), num_anchors=1, num_classes=1)  # default weights depend on the family alone
    student = replace(nothing, family=family.name, default_weights=family.weights)
    methods = resolve_options(chosen, student, None if config.balance == "off" else config.balance)
    terms = (terms_on(method_class(name), options) for name, options in methods.items())
    return methods, config.balance != "off" and any(None in weights.values() for weights in terms)


def _group(key: str) -> str:
    """Return the group of a key; empty: the key is not compared."""
    return next((name for prefix, name in GROUPS.items() if f"{key}.".startswith(f"{prefix}.")), "")


def _distance(config: DistillConfig, differences: list[str], recipe: Recipe) -> tuple[Any, ...]:
    """Return how far a recipe is from a run; of equally close ones, that of the first table is taken."""
    other_family = _family(recipe.config["detector"]["name"]) != _family(config.detector.name)
    place = recipe.table.startswith("Figure"), recipe.table
    return other_family, len(differences), len(list(_unequal(config, recipe))), *place


def _family(detector: str) -> str | None:
    family = family_of(detector)
    return family.name if family else None


def _images_per_step(config: TrainConfig) -> int | str:
    if not isinstance(config.devices, int):
        return f"{config.batch_size} a device"
    return config.batch_size * config.devices * config.num_nodes


def _shown(value: Any) -> str:
    return "none" if value is None or value is False or value == "off" else "yes" if value is True else as_yaml(value)
