"""Values and types in words, for messages and docs: what a value must be, what came, what it may have been."""

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
LIMITS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value of a type must be.

    Args:
        annotation: the type, as it is declared.
        metadata: the limits of a number, where they are not in the type.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(parts[0], [*parts[1:], *metadata])
    if origin in (Union, types.UnionType):
        items = {part: item for part in parts if (item := _item(part)) in parts}
        words = [
            f"one or several of {_names(items[part])}" if part in items else expected(part, metadata)
            for part in parts
            if part not in items.values()
        ]
        return (", or " if items else " or ").join(words)
    if origin is Literal:
        names = [str(part) for part in parts]
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    if item := _item(annotation):
        return f"a list, each item {expected(item)}"
    if origin is tuple:
        return f"{len(parts)} values, each {expected(parts[0])}"
    if origin is dict:
        return "names, each with its options" if get_origin(parts[1]) is dict else "keys and values"
    return NOUNS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _limits(metadata)


def mismatch(name: str, wanted: str, value: Any, annotation: Any) -> str:
    """Say of a key what its value must be, what came, and which of the names that its type allows may be meant."""
    separator = ";" if ", or " in wanted else ","
    return f"{name}: expected {wanted}{separator} got {shown(value)}{_meant(annotation, value)}"


def shown(value: Any) -> str:
    """A value as a user would write it, shortened."""
    try:
        text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    except TypeError:  # from Python, keys may be anything
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of some names that a wrong one was probably meant to be; case, dashes and underscores do not matter."""
    alike = {_folded(each): each for each in names}
    close = difflib.get_close_matches(_folded(name), alike, n=1, cutoff=cutoff)
    return alike[close[0]] if close else None


def _meant(annotation: Any, value: Any) -> str:
    if not isinstance(value, str):
        return ""
    names = [name for name in _choices(annotation) if isinstance(name, str)]
    several = any(map(_item, get_args(annotation)))
    found = [closest(part, names) or "" for part in (value.split(",") if several else [value])]
    meant = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
    return f"; did you mean {meant}?" if all(found) else ""


def _choices(annotation: Any) -> Iterator[Any]:
    """The names that are allowed anywhere in a type."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _item(annotation: Any) -> Any:
    """The type of the items of a list, or a tuple of any length; None of anything else."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _item(parts[0])
    return parts[0] if origin is list or (origin is tuple and parts[1:] == (...,)) else None


def _names(annotation: Any) -> str:
    names = get_args(annotation) if get_origin(annotation) is Literal else ()
    return ", ".join(map(str, names)) or expected(annotation)


def _limits(metadata: Iterable[Any]) -> str:
    """The limits of a number."""
    marks = [mark for each in metadata for mark in (each.metadata if isinstance(each, FieldInfo) else [each])]
    limit = {name: getattr(mark, name) for name in ("ge", "gt", "le", "lt") for mark in marks if hasattr(mark, name)}
    if "ge" in limit and "le" in limit:
        return f" from {limit['ge']} to {limit['le']}"
    found = [f"{LIMITS[name]} {value}" for name, value in limit.items()]
    return f" {' and '.join(found)}" if found else ""


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "_- ")
