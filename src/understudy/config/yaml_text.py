"""YAML in which every scalar but null is text, since the type of a key decides how its value is read.

So ``no`` stays the name of a folder and ``1e-3`` is a number; YAML 1.1, as in PyYAML, reads them as false and as text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from understudy.reading import parse_yaml, read_yaml

NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
"""Matches the spellings of null."""


class DuplicateKey(yaml.MarkedYAMLError):
    """A key occurs twice in a mapping; PyYAML would silently drop the first value."""


class _TextLoader(yaml.BaseLoader):
    """Reads scalars as text, except null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, or raise for a key that occurs twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise DuplicateKey(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", NULL, [*"~nN", ""])
_TextLoader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def parse_text(text: str) -> Any:
    """Parse YAML with its scalars as text; raises yaml.YAMLError."""
    return parse_yaml(text, _TextLoader)


def read_config(file: Path) -> dict[str, Any]:
    """Read the mapping in a config file, with its scalars as text.

    Raises:
        UserError: the file cannot be read or does not contain a mapping.
    """
    return read_yaml(file, "config file", _TextLoader)


def typed_by_look(value: Any) -> Any:
    """Turn text into numbers and booleans (YAML 1.2), at any depth, for keys that no section declares."""
    if isinstance(value, dict):
        return {key: typed_by_look(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed_by_look(item) for item in value]
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
