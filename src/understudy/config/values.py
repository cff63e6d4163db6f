"""The types of the values of keys, with their limits, and the forms that are accepted for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import core_schema

T = TypeVar("T")


class Nullable:
    """Marks a key that a user may leave null, although it has a value in a finished config."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.nullable_schema(handler(source))


def number_as_text(value: Any) -> Any:
    """Accept ``precision=32`` from Python for the name ``"32"``."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def digit_as_number(value: Any) -> Any:
    """Read a digit as a number, for keys that allow only some numbers: the scalars of a config file are text."""
    return int(value) if isinstance(value, str) and value in tuple("0123456789") else value


def possible_path(value: Any) -> Any:
    """Refuse a path that no file can have, and an empty one, which would silently mean the current folder."""
    text = str(value) if isinstance(value, str | Path) else "."
    if not text or "\0" in text:
        raise ValueError("empty, or with a null character")
    text.encode()  # a lone surrogate, from a name that is not UTF-8, could not be written to config.yaml
    return value


def expanded(path: Path) -> Path:
    """Replace ``~`` by the home folder; a user without one is a fault of the value, not of the program."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def one_as_list(value: Any) -> Any:
    """Turn a single number or text into a list of one; return anything else as it is."""
    return [value] if isinstance(value, int | str) else value


def false_as_off(value: Any) -> Any:
    """Read YAML's words for false as ``off``, and refuse those for true, which say neither how much nor where."""
    word = str(value).lower()
    if word in ("true", "on", "yes"):
        raise ValueError("no value of this key")
    return "off" if word in ("false", "off", "no") else value


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def names_as_options(value: Any) -> Any:
    """Turn a method's name, or a list of names, into a mapping of names to options; None means no options.

    Other values are returned as they are, for the check of types to refuse.
    """
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return value if repeated(value) else {name: {} for name in value}
    if isinstance(value, Mapping):
        return {name: {} if options is None else options for name, options in value.items()}
    return value


Auto = Annotated[T, Nullable()]
FILLED_IN: Any = None  # the default of an Auto key; typed as its value, because a finished config never holds the null

Text = Annotated[str, StringConstraints(min_length=1), BeforeValidator(number_as_text)]
FilePath = Annotated[Path, BeforeValidator(possible_path), AfterValidator(expanded)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Pixels = Annotated[int, Field(ge=32, le=32768)]
# Upper limits that no run needs, so that no arithmetic overflows; texts leave them out (`text.UNLIMITED`).
PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**9)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e30)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e30)]
ThreeFractions = tuple[Fraction, Fraction, Fraction]
ThreePositive = tuple[PositiveFraction, PositiveFraction, PositiveFraction]
