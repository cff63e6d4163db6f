"""Dotted keys: the field, type and expected value that a path such as ``data.shorter_side.0`` leads to."""

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from understudy.config.keys import Section
from understudy.config.values import Nullable
from understudy.text import expected


def path_of(key: str) -> tuple[str, ...]:
    """Split a dotted key; a user's own method, ``methods.package.module:Class``, is one part."""
    own = re.fullmatch(r"methods\.([^:]+:[^.]+)(.*)", key)
    return ("methods", own[1], *own[2].split(".")[1:]) if own else tuple(key.split("."))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key; empty sections are left out.

    >>> flat({"data": {"flip": 0.5}, "methods": {}, "seed": 0})
    {'data.flip': 0.5, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def field_at(cls: type[Section], path: Sequence[str | int]) -> FieldInfo | None:
    """Return the field that a path leads to; None if it leads below a field, or nowhere."""
    section: type[Section] | None = cls
    field = None
    for key in path:
        field = section.model_fields.get(str(key)) if section else None
        section = as_section(field.annotation) if field else None
    return field


def type_at(cls: type[Section], path: Sequence[str | int]) -> Any:
    """Return the declared type of a path; None if it leads below a field, or nowhere."""
    field = field_at(cls, path)
    return field.annotation if field else None


def expected_at(cls: type[Section], path: Sequence[str]) -> str:
    """Describe the values that a path allows."""
    field, owner = field_at(cls, path), bare(type_at(cls, path[:-1]))
    if field is None:
        return expected(get_args(owner)[1]) if get_origin(owner) is dict else "a single value"
    if section := as_section(field.annotation):
        return f"a section with the keys {', '.join(section.model_fields)}"
    return expected_of(field)


def expected_of(field: FieldInfo) -> str:
    """Describe the values that a field allows."""
    limits = [mark for mark in field.metadata if not isinstance(mark, Nullable)]
    return expected(field.annotation, limits) + (" or null" if len(limits) < len(field.metadata) else "")


def value_at(values: Any, path: Sequence[str]) -> Any:
    """Return the value at a path of nested dicts; None if there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def first_key(cls: type[Section], path: tuple[str, ...]) -> tuple[str, ...]:
    """Extend the path of a section to its first key; return any other path as it is."""
    section = as_section(type_at(cls, path))
    return (*path, next(iter(section.model_fields))) if section else path


def as_section(annotation: Any) -> type[Section] | None:
    """Return a type if it is a section, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def bare(annotation: Any) -> Any:
    """Return a type without its ``Annotated``."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def is_mapping(annotation: Any) -> bool:
    """Return whether a type is a dict, whose keys no section lists."""
    return get_origin(bare(annotation)) is dict


def is_text(annotation: Any, value: str = "") -> bool:
    """Return whether a value of this type is taken literally instead of being parsed as YAML.

    A type that allows both text and a list of texts takes a value in brackets as a list.
    """
    if get_origin(annotation) in (Union, types.UnionType):
        lists = [part for part in get_args(annotation) if get_origin(bare(part)) is list]
        others = [part for part in get_args(annotation) if part not in lists]
        literal = all(is_text(part) or part is types.NoneType for part in others)
        return literal and not (lists and value.startswith("["))
    if get_origin(annotation) is Literal:
        return all(isinstance(name, str) for name in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return is_text(get_args(annotation)[0])
    return annotation in (str, Path)
