"""Texts that several parts of the package print: types and values in words, lists of names, wrapped lines."""

import difflib
import json
import math
import re
import reprlib
import shutil
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
UNLIMITED = 10**9
"""Upper limits from here on only keep the arithmetic from overflowing, and are not mentioned."""

LIMITS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters apart from tab and line feed, changes of the direction of writing, and lone surrogates."""

_ENCODER = json.JSONEncoder(default=str, ensure_ascii=False)

WIDEST = 120
"""Most columns of a printed line; longer lines are hard to read."""


# ------------------------------------------------------------------------------------------------------ types in words


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Describe the values that a type allows.

    >>> expected(int | None)
    'an integer or null'
    >>> expected(Literal["sgd", "adamw"])
    'sgd or adamw'

    Args:
        annotation: the declared type.
        metadata: limits of a number that are not part of the type (pydantic's ``FieldInfo.metadata``).
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(parts[0], [*parts[1:], *metadata])
    if origin in (Union, types.UnionType):
        items = {part: item for part in parts if (item := _item(part)) in parts}
        words = [
            f"one or several {_several(items[part])}" if part in items else expected(part, metadata)
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
        return f"a list of {len(parts)} values, each {expected(parts[0])}"
    if origin is dict:
        return "names, each with its options" if get_origin(parts[1]) is dict else "keys and values"
    return NOUNS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _limits(metadata)


def mismatch(name: str, wanted: str, value: Any, annotation: Any) -> str:
    """Describe a value of the wrong type, with the closest name that the type allows.

    >>> mismatch("optimizer.name", "sgd or adamw", "adam", Literal["sgd", "adamw"])
    'optimizer.name: expected sgd or adamw, got adam; did you mean adamw?'

    Args:
        name: the key.
        wanted: the allowed values in words, see :func:`expected`.
        value: the wrong value.
        annotation: the declared type.
    """
    if _is_not_finite(value):
        wanted = wanted.replace("a number", "a finite number", 1)
    separator = ";" if ", or " in wanted else ","
    return f"{name}: expected {wanted}{separator} got {shown(value)}{_meant(annotation, value)}"


def shell_lines(command: str, width: int) -> str:
    """Wrap a command to lines of at most `width` characters that a shell reads as one."""
    lines = textwrap.wrap(command, width - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(f"  {line}" for line in lines)


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the name most similar to a wrong one; case, dashes and underscores are ignored.

    Args:
        name: the wrong name.
        names: the names to choose from.
        cutoff: least similarity, 0 to 1.

    Returns:
        One of ``names``, or None if no name is similar enough.
    """
    alike = {_folded(each): each for each in names}
    close = difflib.get_close_matches(_folded(name), alike, n=1, cutoff=cutoff)
    return alike[close[0]] if close else None


def _is_not_finite(value: Any) -> bool:
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _meant(annotation: Any, value: Any) -> str:
    """Suggest the allowed names closest to a wrong value; empty if there are none."""
    if not isinstance(value, str):
        return ""
    names = [name for name in _choices(annotation) if isinstance(name, str)]
    several = any(map(_item, get_args(annotation)))
    found = [closest(part, names) or "" for part in (value.split(",") if several else [value])]
    meant = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
    return f"; did you mean {meant}?" if all(found) else ""


def _choices(annotation: Any) -> Iterator[Any]:
    """Yield the names of every ``Literal`` in a type."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _item(annotation: Any) -> Any:
    """Return the item type of a list or of a tuple of any length; None for other types."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _item(parts[0])
    return parts[0] if origin is list or (origin is tuple and parts[1:] == (...,)) else None


def _several(item: Any) -> str:
    """Describe the items of a list in words that follow "one or several"."""
    if expected(item) == NOUNS[Path]:
        return "paths"
    names = get_args(item) if get_origin(item) is Literal else ()
    return f"of {', '.join(map(str, names))}" if names else f"values, each {expected(item)}"


def _limits(metadata: Iterable[Any]) -> str:
    """Describe the limits of a number, with a leading space."""
    marks = [mark for each in metadata for mark in getattr(each, "metadata", [each])]
    limit = {name: getattr(mark, name) for name in ("ge", "gt", "le", "lt") for mark in marks if hasattr(mark, name)}
    if limit.get("le", 0) >= UNLIMITED:
        del limit["le"]
    if "ge" in limit and "le" in limit:
        return f" from {limit['ge']} to {limit['le']}"
    found = [f"{LIMITS[name]} {value}" for name, value in limit.items()]
    return f" {' and '.join(found)}" if found else ""


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "_- ")


# ----------------------------------------------------------------------------------------------------- values in words


def shown(value: Any) -> str:
    """Write a value as in a config, shortened to 60 characters.

    >>> shown(None), shown([1, 2])
    ('null', '[1, 2]')
    """
    text = ""
    try:
        parts = [value] if isinstance(value, str) and value else _ENCODER.iterencode(value)
        for part in parts:  # piece by piece: a small file can contain a value that is endless when written
            text += part
            if len(text) > 60:
                break
    except (TypeError, ValueError):  # keys that come from Python can have any type
        text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_printable(name: str) -> bool:
    """Return whether a name can be printed in one line as it is."""
    return not (UNPRINTABLE.search(name) or "\n" in name or "\t" in name)


def printable(text: str) -> str:
    r"""Replace characters that would control the terminal, or cannot be encoded, by escapes; line breaks stay.

    >>> print(printable("cat\x1b[31m"))
    cat\x1b[31m
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def as_yaml(value: Any) -> str:
    """Write a value in one line of YAML.

    >>> as_yaml((0.5, None)), as_yaml("32")
    ('[0.5, null]', "'32'")
    """
    import yaml  # here, so that listings, which do not need it, appear at once

    plain = _without_tuples(value)
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _without_tuples(value: Any) -> Any:
    """Replace tuples by lists, at any depth of lists and tuples."""
    return [_without_tuples(item) for item in value] if isinstance(value, tuple | list) else value


def listed(names: Sequence[object], most: int = 12, separator: str = ", ") -> str:
    """Write names in one line: the first ``most``, then the number of the others.

    >>> listed(["cat", "dog", "cow"], most=2)
    'cat, dog and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(map(str, names[:most])) + more


def percent(value: float) -> str:
    """Write a number from 0 to 1 in percent, as papers do; nan is ``-``.

    >>> percent(0.4213)
    '42.1'
    """
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Write a difference of numbers from 0 to 1, in percent with its sign; one that is rounded to zero has none.

    >>> signed(0.0123), signed(-0.00001)
    ('+1.2', '0.0')
    """
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


# ------------------------------------------------------------------------------------------------------- wrapped lines


def wrapped(text: str, indent: str = "", hanging: int | None = None, width: int | None = None) -> str:
    """Wrap a paragraph; blanks and line breaks in it count as one blank.

    Args:
        text: the paragraph.
        indent: prefix of the first line.
        hanging: blanks before the following lines; None: ``indent`` again.
        width: columns of a line; None: of the terminal, see :func:`terminal_width`.
    """
    following = indent if hanging is None else " " * hanging
    return textwrap.fill(
        " ".join(text.split()),
        width or terminal_width(),
        initial_indent=indent,
        subsequent_indent=following,
        break_on_hyphens=False,
    )


def terminal_width() -> int:
    """Return the columns of the terminal, at most 120; 80 without a terminal."""
    return min(shutil.get_terminal_size().columns, WIDEST)
