"""Files that a user gives, read within bounds: regular files in UTF-8, and YAML and JSON of limited depth and size.

Every fault is a :class:`~understudy.errors.UserError` that names the file, and the line if there is one.
"""

import csv
import functools
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.errors import UserError
from understudy.text import shown

DEEPEST = 40
"""Most levels of lists and mappings within each other."""

MOST_VALUES = 1_000_000
"""Most values of a YAML text after its aliases are filled in; a few lines of aliases can stand for billions."""

LARGEST_YAML = 8 * 2**20
"""Most characters of a YAML text; PyYAML reads about a million in a second."""


# ---------------------------------------------------------------------------------------------------- bytes and text


def require_file(file: Path, what: str = "file") -> None:
    """Refuse a path that is not a regular file: reading a named pipe or a device may never end.

    Raises:
        UserError: there is no such file, or it is a folder, a named pipe, a socket or a device.
    """
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"The {what} {file} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise _unreadable(file, what, error) from None
    if stat.S_ISDIR(mode):
        raise UserError(f"The {what} {file} is a folder: expected a file.")
    if not stat.S_ISREG(mode):
        raise UserError(f"The {what} {file} is a named pipe, socket or device: expected a regular file.")


def read_bytes(file: Path, what: str = "file") -> bytes:
    """Return the content of a regular file; `what` names its kind in messages, as in "config file"."""
    require_file(file, what)
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, what, error) from None


def read_text(file: Path, what: str = "file") -> str:
    """Return the text of a regular file in UTF-8, without a byte order mark.

    Raises:
        UserError: the file cannot be read, or is not UTF-8; the message names the line.
    """
    content = read_bytes(file, what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "UTF-16" if utf_16 else f"byte 0x{content[error.start]:02x}, perhaps Latin-1"
        line = "" if utf_16 else f", line {content[: error.start].count(10) + 1},"
        raise UserError(f"The {what} {file}{line} is not UTF-8 text ({found}). Save it as UTF-8.") from None


def _unreadable(file: Path, what: str, error: Exception) -> UserError:
    return UserError(f"The {what} {file} cannot be read: {getattr(error, 'strerror', None) or error}.")


# --------------------------------------------------------------------------------------------------- JSON, CSV, YAML


def read_json(file: Path, what: str = "file") -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: the file cannot be read, is not JSON, is nested too deeply, or contains no object.
    """
    content = read_bytes(file, what)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"The {what} {file}, line {error.lineno}, is not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"The {what} {file} is not valid JSON: {reason}.") from None
    if _is_deeper(value, DEEPEST):
        raise UserError(f"The {what} {file} is nested more than {DEEPEST} levels deep.")
    if not isinstance(value, dict):
        raise UserError(f"The {what} {file} must contain a JSON object, got a {type(value).__name__}.")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(each, levels - 1) for each in inner))


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column name; none if there is no file. An incomplete last line is left out.

    Raises:
        UserError: the file cannot be read, or a row has another number of cells than the header.
    """
    if not file.exists():
        return []
    lines = [line for line in read_text(file).splitlines(keepends=True) if line.endswith("\n")]
    reader = csv.DictReader(lines)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise csv.Error(f"expected {len(reader.fieldnames or ())} cells, as in the header")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"The file {file}, line {reader.line_num}, is damaged: {error}.") from None
    return rows


def number_in(row: Mapping[str, str], column: str, file: Path) -> float:
    """Return the number in a cell of a CSV file; nan if the cell is empty.

    Raises:
        UserError: there is no such column, or the cell holds no number.
    """
    try:
        return float(row[column] or "nan")
    except KeyError:
        raise UserError(f"The file {file} is damaged: it has no column {column}.") from None
    except ValueError:
        raise UserError(f"The file {file} is damaged: {column} is {row[column][:40]!r}, not a number.") from None


def parse_yaml(text: str, loader: Any = None) -> Any:
    """Parse YAML within the bounds of this module.

    Args:
        text: the YAML.
        loader: a loader class of PyYAML; None: its SafeLoader.

    Raises:
        yaml.YAMLError: the text is not YAML, or is nested too deeply or too large once its aliases are filled in.
    """
    import yaml  # here, so that listings, which do not need it, appear at once

    if len(text) > LARGEST_YAML:
        raise yaml.YAMLError(f"it has {len(text)} characters, more than {LARGEST_YAML}")
    try:
        reader = _bounded(loader or yaml.SafeLoader)(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _measure(node, {})
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep") from None
    except Exception as error:  # PyYAML's constructors raise many types: a date of month 13 is a ValueError
        raise yaml.YAMLError(f"a value is invalid ({error})") from None


@functools.cache
def _bounded(loader: Any) -> Any:
    """Return a loader that raises as soon as a text is nested too deeply."""

    class Bounded(loader):
        level = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.level += 1
            if self.level > DEEPEST + 1:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.level -= 1
            return node

    return Bounded


def read_yaml(file: Path, what: str = "file", loader: Any = None) -> dict[Any, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, is not YAML within the bounds of this module, or contains no mapping.
    """
    import yaml

    text = read_text(file, what)
    try:
        values = parse_yaml(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"The {what} {file} is not valid YAML{line}: {yaml_problem(error)}.") from None
    if not isinstance(values, dict | None):
        raise UserError(f"The {what} {file} must contain `key: value` lines, got {shown(values)}.")
    return values or {}


def yaml_problem(error: Exception) -> str:
    """Return what PyYAML found, in one line."""
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _measure(node: Any, measured: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the values and the levels of a node with its aliases filled in; raise above the bounds.

    Args:
        node: of PyYAML; an alias is the node that it stands for.
        measured: the results for the nodes that were seen; (0, 0) for those that contain the present one.
    """
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return 1, 0
    if id(node) in measured:
        if measured[id(node)] == (0, 0):
            raise yaml.MarkedYAMLError(problem="it contains itself through an alias", problem_mark=node.start_mark)
        return measured[id(node)]
    measured[id(node)] = 0, 0
    inner = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
    found = [_measure(each, measured) for each in inner]
    values, levels = 1 + sum(count for count, _ in found), 1 + max((level for _, level in found), default=0)
    if values > MOST_VALUES:
        problem = f"its aliases multiply to over {MOST_VALUES} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if levels > DEEPEST:
        raise RecursionError
    measured[id(node)] = values, levels
    return values, levels
