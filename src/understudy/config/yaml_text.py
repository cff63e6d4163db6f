"""YAML in which every scalar but null is text, since the type of a key decides how its value is read.

So ``no`` stays the name of a folder and ``1e-3`` is a number; YAML 1.1, as in PyYAML, reads them as false and as text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from understudy.errors import UserError
from understudy.text import shown

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


def parse_yaml(text: str) -> Any:
    """Parse YAML with its scalars as text; raises yaml.YAMLError."""
    return yaml.load(text, _TextLoader)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file, with its scalars as text.

    Raises:
        UserError: the file cannot be read or does not contain a mapping.
    """
    try:
        values = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"The config file {file} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {file} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        fault = "" if isinstance(error, DuplicateKey) else " is not valid YAML"
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"The config file {file}{fault}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"The config file {file} is not valid YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise UserError(f"The config file {file} must contain `key: value` lines, got {shown(values)}")
    return values or {}


def typed_by_look(value: Any) -> Any:
    """Turn text into numbers and booleans (YAML 1.2), at any depth, for keys that no section declares."""
    if isinstance(value, dict):
        return {key: typed_by_look(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed_by_look(item) for item in value]
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            pass
    return value
