"""Messages for the faults of a config: unknown and missing keys, wrong values, wrong arguments."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from understudy.config.describing import Key, all_keys
from understudy.config.distillation import DistillConfig
from understudy.config.keys import Section
from understudy.config.paths import as_section, expected_at, is_mapping, type_at, value_at
from understudy.config.values import repeated
from understudy.text import UNLIMITED, mismatch, shown


def faults_of(cls: type[Section], values: dict[str, Any], error: ValidationError) -> list[str]:
    """Describe the values that pydantic refused, with one message per key.

    Args:
        cls: the config.
        values: the validated values.
        error: pydantic's error.
    """
    faults = {}
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if detail["type"] == "extra_forbidden":
            faults[location] = unknown_key(cls, [str(part) for part in location])
        elif detail["type"] == "missing":
            for key in _missing(cls, ".".join(map(str, location))):
                faults[key.name] = f"{key.name}: missing; expected {key.expected}, e.g. {key.name}={key.example}"
        else:
            path = _up_to_a_key(cls, location)
            about = ".".join(path), expected_at(cls, path), value_at(values, path), type_at(cls, path)
            hints = _not_names(cls, path, values), _too_large(detail), _of_bytes(path, detail)
            faults[path] = mismatch(*about) + "".join(hints)
    return list(faults.values())


def unknown_key(cls: type[Section], path: Sequence[str]) -> str:
    """Describe an unknown key and suggest the closest one."""
    name = ".".join(path)
    if close := closest_key(cls, name):
        return f"{name}: no such key; did you mean {close}?"
    if path[0] in DistillConfig.model_fields.keys() - cls.model_fields.keys():
        return f"{name}: a key of `understudy distill` only"
    owner = type_at(cls, path[:-1]) if len(path) > 1 else cls
    where = f"the keys of {'.'.join(path[:-1])}" if len(path) > 1 else "the keys"
    return f"{name}: no such key; {where} are {', '.join(owner.model_fields)}"


def closest_key(cls: type[Section], name: str) -> str | None:
    """Find the key most similar to a wrong one: first by the whole name, then by its last part in any section."""
    names = [key.name for key in all_keys(cls)] + [
        name for name, field in cls.model_fields.items() if as_section(field.annotation)
    ]
    by_last_part = {known.rpartition(".")[2]: known for known in reversed(names)}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if close:
        return close[0]
    close = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, n=1, cutoff=0.75)
    return by_last_part[close[0]] if close else None


def not_key_value(cls: type[Section], argument: str) -> str:
    """Describe an argument that is not ``key=value``, with an example of the key it may mean."""
    word = re.split(r"[=:\s]", argument.lstrip("-").strip(), maxsplit=1)[0]
    close = closest_key(cls, word)
    key = next(key for key in all_keys(cls) if key.name.startswith(close or "data.flip"))
    if argument.startswith("-"):
        return f'"{argument}": no such option (see --help); write keys without dashes, e.g. {key.name}={key.example}'
    return f'"{argument}": expected key=value, e.g. {key.name}={key.example}'


def _missing(cls: type[Section], name: str) -> list[Key]:
    """Return the required keys at or below a name."""
    return [
        key for key in all_keys(cls) if key.default is None and (key.name == name or key.name.startswith(f"{name}."))
    ]


def _up_to_a_key(cls: type[Section], location: tuple[str | int, ...]) -> tuple[str, ...]:
    """Shorten pydantic's location to a key: without list indices and the branches of a union."""
    depth = 1
    while depth < len(location) and as_section(type_at(cls, location[:depth])):
        depth += 1
    if is_mapping(type_at(cls, location[:depth])) and location[-1] != "[key]":
        depth += 1  # the entry of the mapping that is at fault
    return tuple(map(str, location[:depth]))


def _too_large(detail: ErrorDetails) -> str:
    """Describe an upper limit that the expected value does not mention; empty for other faults."""
    limit = detail.get("ctx", {}).get("le", 0)
    return f"; at most {limit:g} is possible" if limit >= UNLIMITED else ""


def _of_bytes(path: Sequence[str], detail: ErrorDetails) -> str:
    """Say how to convert a mean or a deviation of pixels from 0 to 255, as other tools give it; empty for others."""
    large = path[-1] in ("image_mean", "image_std") and detail["type"] == "less_than_equal"
    return "; divide values of pixels from 0 to 255 by 255" if large else ""


def _not_names(cls: type[Section], path: Sequence[str], values: dict[str, Any]) -> str:
    """Describe the entry of a list of names that is not a name, or that occurs twice; empty for other values."""
    value = value_at(values, path)
    if not is_mapping(type_at(cls, path)) or not isinstance(value, list | tuple):
        return ""
    if others := [entry for entry in value if not isinstance(entry, str)]:
        return f"; {shown(others[0])} is not a name; give options as {path[0]}={{NAME: {{OPTION: VALUE}}, ...}}"
    twice = repeated(value)
    return f"; {', '.join(twice)} is given twice; give options as {path[0]}.{twice[0]}.OPTION=..." if twice else ""
