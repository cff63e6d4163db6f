"""The config that an mmdet checkpoint carries: Python text, which is parsed and never executed."""

import ast
from collections.abc import Mapping
from typing import Any

_UNKNOWN = object()
LONGEST_TEXT = 2_000_000
"""Characters beyond which a text is no config."""


def parse_config(text: Any) -> dict[str, Any] | None:
    """Read the assignments of a config: ``dict(...)``, lists, tuples, literals and the names assigned before.

    Args:
        text: as in ``meta["cfg"]`` of mmdet 3.x or ``meta["config"]`` of 2.x.

    Returns:
        Plain values by name. What is computed is left out. None: the text is no config.
    """
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        return None
    names: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        names[target.id] = _value(statement.value, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return {name: value for name, value in names.items() if value is not _UNKNOWN}


def look_up(config: Mapping[str, Any] | None, path: str, default: Any = None) -> Any:
    """The value below a dotted path (``"model.neck.type"``), or the default where there is none."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def find_all(value: Any, key: str) -> list[Any]:
    """Every value that has this key, anywhere in a nested config, in its order."""
    if isinstance(value, Mapping):
        found = [value[key]] if key in value else []
        return found + [one for inner in value.values() for one in find_all(inner, key)]
    if isinstance(value, list | tuple):
        return [one for inner in value for one in find_all(inner, key)]
    return []


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression, or ``_UNKNOWN`` where it is more than a literal."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, _UNKNOWN)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand, names)
            return -number if isinstance(number, int | float) else _UNKNOWN
        case ast.List() | ast.Tuple():
            values = [_value(element, names) for element in node.elts]
            if any(value is _UNKNOWN for value in values):
                return _UNKNOWN
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.Dict():
            keys = [_UNKNOWN if key is None else _value(key, names) for key in node.keys]
            return _known(zip(keys, [_value(value, names) for value in node.values], strict=True))
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return _known((keyword.arg, _value(keyword.value, names)) for keyword in node.keywords)
        case _:
            return _UNKNOWN


def _known(entries: Any) -> dict[str, Any]:
    return {key: value for key, value in entries if isinstance(key, str) and value is not _UNKNOWN}
