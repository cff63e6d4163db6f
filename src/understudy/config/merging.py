"""Merges a config file, ``key=value`` arguments and Python keywords into one config."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from understudy.config.describing import all_keys
from understudy.config.faults import faults_of, not_key_value
from understudy.config.keys import Section, TrainConfig
from understudy.config.paths import (
    as_section,
    bare,
    expected_at,
    field_at,
    first_key,
    is_mapping,
    is_text,
    path_of,
    type_at,
)
from understudy.config.values import names_as_options, one_as_list, repeated
from understudy.config.yaml_text import NULL, DuplicateKey, parse_text, read_config, typed_by_look
from understudy.errors import UserError
from understudy.reading import yaml_problem
from understudy.recipes import read_recipe
from understudy.text import shown

Config = TypeVar("Config", bound=TrainConfig)
Source = Path | str | Mapping[str, Any] | TrainConfig | None
Assignment = tuple[tuple[str, ...], Any]  # the path of a key, and its value


def load_config(
    cls: type[Config],
    source: Source = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    methods: Sequence[str] = (),
) -> Config:
    """Make a config from a recipe, a source and overrides; each replaces values of those before it.

    >>> from understudy.config import TrainConfig
    >>> config = load_config(TrainConfig, {"data": "photos"}, ["run=runs/a", "data.flip=0"])
    >>> config.data.flip
    0.0

    Args:
        cls: :class:`TrainConfig` or :class:`DistillConfig`.
        source: a YAML file, a mapping or a finished config; None: the defaults.
        overrides: values that replace those of the source, as ``["data.flip=0", ...]`` or as a mapping. Keys may be
            dotted; a number in them is a list index. A mapping given for a section is merged; any other value
            replaces. A single value for a section sets its first key. The order has no effect. The key ``recipe``, here
            or in the source, names the recipe to start from.
        methods: names of the methods to use. Each keeps its options in the source; other methods of the source are
            dropped, and overrides may not name them. Empty: all methods of the source.

    Raises:
        UserError: the file cannot be read, or the config has faults; the message lists all of them.
    """
    draft, written = _Draft(cls), isinstance(source, str | Path)
    values = read_config(Path(source)) if isinstance(source, str | Path) else source
    values = values.model_dump() if isinstance(values, TrainConfig) else values or {}
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    recipe = _recipe_of(overrides, values)
    if recipe is not None and not _is_complete(cls, values):
        draft.add_recipe(recipe)
    draft.add(values, written=written)
    if methods:
        draft.keep_methods(methods)
    if isinstance(overrides, Mapping):
        draft.add(overrides)
    else:
        draft.add_arguments(overrides)
    if methods:
        draft.check_methods(methods)
    where = f" ({source})" if isinstance(source, str | Path) else ""
    return draft.finish(f"Invalid config{where}:")


def dump_config(config: TrainConfig) -> str:
    """Write a config as YAML with every value filled in; :func:`load_config` reads it back as an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Draft:
    """An unfinished config: nested values, and the faults found so far."""

    def __init__(self, cls: type[TrainConfig]) -> None:
        self.cls = cls
        self.values: dict[str, Any] = {}
        self.faults: list[str] = []
        self.plain_recipe: str | None = None  # the name of a recipe without methods

    def add(self, mapping: Mapping[str, Any], *, written: bool = False) -> None:
        """Add the values of a mapping; ``written`` ones come from YAML and are still text."""
        self._put_all(_assignments(self.cls, mapping, ()), written)

    def add_recipe(self, name: Any) -> None:
        """Add the values of a recipe; those of distillation are left out for a run without a teacher."""
        try:
            recipe = read_recipe(str(name))
        except UserError as error:
            self.faults.append(f"recipe: {error}")
            return
        self.plain_recipe = None if recipe.methods else recipe.name
        self.add({key: value for key, value in recipe.config.items() if key in self.cls.model_fields})

    def add_arguments(self, arguments: Iterable[str]) -> None:
        """Add ``key=value`` arguments, split at the first ``=``."""
        assignments = [found for argument in arguments for found in self._parsed(argument)]
        given: dict[tuple[str, ...], Any] = {}
        for path, value in assignments:
            if given.setdefault(path, value) != value:
                values = f"{shown(given[path])} and {shown(value)}"
                self.faults.append(f"{'.'.join(path)}: given twice, with the values {values}; leave one out")
        self._put_all(assignments, written=True)

    def keep_methods(self, names: Sequence[str]) -> None:
        """Keep only the named methods with their options; add those that are absent."""
        present = names_as_options(self.values.get("methods"))
        options = present if isinstance(present, dict) else {}
        self.values["methods"] = {name: options.get(name, {}) for name in names}
        self.faults += [f"--method {name} is given twice" for name in repeated(names)]

    def check_methods(self, names: Sequence[str]) -> None:
        """Refuse keys of methods that ``--method`` does not name, and keys that dropped methods it does name."""
        present = names_as_options(self.values["methods"])
        found, chosen = list(present) if isinstance(present, dict) else [], f"--method {' --method '.join(names)}"
        if set(names) - set(found):
            given = shown(self.values["methods"])
            self.faults.append(f"methods={given} conflicts with {chosen}; use one of the two to name the methods")
            return
        self.faults += [
            f"methods.{name}: not selected by {chosen}; add --method {name} or remove its keys"
            for name in found
            if name not in names
        ]

    def finish(self, summary: str) -> Any:
        """Return the config, or raise one error with every fault."""
        if self.plain_recipe and "methods" in self.cls.model_fields.keys() - self.values.keys():
            self.faults.append(
                f"recipe: {self.plain_recipe} is a plain student, without methods; use `understudy train`, or name the "
                "methods, e.g. methods=frs"
            )
        try:
            config = self.cls.model_validate(self.values)
        except ValidationError as error:
            self.faults += faults_of(self.cls, self.values, error)
        else:
            if not self.faults:
                return config
        raise UserError.listing(summary, dict.fromkeys(self.faults)) from None

    def _parsed(self, argument: str) -> list[Assignment]:
        """Parse one ``key=value`` argument; on a fault, note it and return nothing."""
        key, equals, text = argument.partition("=")
        path = path_of(key)
        if not text.startswith("{"):
            path = first_key(self.cls, path)
        if not equals or not re.fullmatch(r"\w[\w.:]*", key):
            self.faults.append(not_key_value(self.cls, argument))
            return []
        if is_text(type_at(self.cls, path), text):
            return [(path, None if NULL.match(text) else text)]
        try:
            return _assignments(self.cls, {key: parse_text(text)}, ())
        except DuplicateKey as error:
            self.faults.append(f"{key}: {error.problem}")
        except yaml.YAMLError as error:
            self.faults.append(f"{key}: {shown(text)} is not valid YAML: {yaml_problem(error)}")
        return []

    def _put_all(self, assignments: Iterable[Assignment], written: bool) -> None:
        """Set values, those of sections before those of their keys, so that the order given has no effect."""
        for path, value in sorted(assignments, key=lambda assignment: len(assignment[0])):
            owners = (path[:depth] for depth in range(1, len(path) + 1))
            undeclared = any(is_mapping(type_at(self.cls, owner)) for owner in owners)
            self._put(path, typed_by_look(value) if written and undeclared else copy.deepcopy(value))

    def _put(self, path: tuple[str, ...], value: Any) -> None:
        """Set one value, making the containers on its path; a list index that does not exist is a fault."""
        node: Any = self.values
        for depth, key in enumerate(path):
            place = _place(node, key)
            if place is None:
                owner = path[:depth]
                expects = expected_at(self.cls, owner)
                self.faults.append(f"{'.'.join(path)}: no such item; {'.'.join(owner)} is {expects}")
                return
            if depth == len(path) - 1:
                node[place] = value
            else:
                present = node[place] if isinstance(node, list) else node.get(place)
                node[place] = _container(self.cls, path[: depth + 1], present)
                node = node[place]


def _recipe_of(overrides: Mapping[str, Any] | Sequence[str], values: Mapping[str, Any]) -> Any:
    """Return the recipe that overrides name, else that of the source; None: no recipe."""
    if not isinstance(overrides, Mapping):
        pairs = (argument.partition("=") for argument in overrides)
        overrides = {key: None if NULL.match(text) else text for key, _, text in pairs}
    return overrides["recipe"] if "recipe" in overrides else values.get("recipe")


def _is_complete(cls: type[TrainConfig], values: Mapping[str, Any]) -> bool:
    """Return whether a source states every key, as a run's own config does, so that its recipe has no effect."""
    stated = {".".join(path) for path, _ in _assignments(cls, values, ())}
    return all(key.name in stated for key in all_keys(cls))


def _assignments(cls: type[Section], mapping: Mapping[str, Any], prefix: tuple[str, ...]) -> list[Assignment]:
    """Flatten the sections of a mapping into values with their full paths; any other value stays whole."""
    found: list[Assignment] = []
    for key, value in mapping.items():
        path = (*prefix, *path_of(str(key)))
        if not as_section(type_at(cls, path)):
            found.append((path, value))
        elif isinstance(value, Mapping | Section):
            found += _assignments(cls, value if isinstance(value, Mapping) else value.model_dump(), path)
        elif value is not None:  # an empty section changes nothing
            found.append((first_key(cls, path), value))
    return found


def _place(node: Any, key: str) -> str | int | None:
    """Return the dict key or list index that a part of a path means; None if the container has no such item."""
    if isinstance(node, dict):
        return key
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return int(key)
    return None


def _container(cls: type[Section], path: tuple[str, ...], present: Any) -> Any:
    """Return the container at a path: the present one, else a copy of a list's default, else an empty dict."""
    annotation = bare(type_at(cls, path))
    if get_origin(annotation) in (list, tuple):
        field = field_at(cls, path)
        found = field.default if present is None and field else one_as_list(present)
        return list(found) if isinstance(found, list | tuple) else found
    if get_origin(annotation) is dict:
        of_options = get_origin(get_args(annotation)[1]) is dict  # in other dicts a null is a value
        return names_as_options(present or {}) if of_options else present or {}
    return {} if present is None else present
