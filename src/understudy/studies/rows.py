"""The rows of a study: sets of methods with their options, as a user writes them in one line."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from understudy.config import DistillConfig
from understudy.errors import UserError

NONE = "none"
"""The row of the plain student, which every study has."""

DEFAULT = "default"
"""The row of the methods that ``distill`` uses when its config names none."""

LONGER = "none, as long in time"
"""The row of the plain student that is trained for as long as the slowest distilled one."""


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A student that the study trains once for each seed.

    Attributes:
        name: in the table; unique.
        text: how the user wrote it, without the name.
        methods: names of the methods, or :data:`DEFAULT` alone; empty: the plain student.
        overrides: ``key=value`` arguments of the config.
    """

    name: str
    text: str
    methods: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as a part of a file name."""
        return re.sub(r"[^A-Za-z0-9.=]+", "_", self.name).strip("_.") or "row"

    @property
    def any_anchors(self) -> bool:
        """Whether it can have other anchors than its teacher: the plain student, and the default methods."""
        return set(self.methods) <= {DEFAULT}

    @property
    def own_detector(self) -> bool:
        """Whether its detector, or the weights that it starts with, are not those of the study."""
        return any(re.split("[.=]", word)[0] in ("detector", "inherit", "init") for word in self.overrides)


def read_row(text: str, *, named: bool = True) -> StudyRow:
    """Read a row: ``[NAME:] METHOD [OPTION=VALUE]... [+ METHOD [OPTION=VALUE]...]... [KEY=VALUE]...``.

    METHOD may also be ``none`` or ``default``. An option belongs to the method before it. Keys of the config
    (``inherit=true``, ``optimizer.lr=0.001``) hold for the row only.

    >>> row = read_row("light: frs feature_weight=0.0002 + pfi optimizer.lr=0.001")
    >>> row.name, row.methods
    ('light', ('frs', 'pfi'))
    >>> row.overrides
    ('methods.frs.feature_weight=0.0002', 'optimizer.lr=0.001')

    Args:
        text: of the row.
        named: whether it may begin with a name; :attr:`StudyRow.text` does not.

    Raises:
        UserError: the text is not a row.
    """
    name, colon, rest = text.partition(": ") if named else ("", "", text)
    rest = rest if colon else text
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise UserError(f'row "{text}": {error}') from None
    words = [piece for part in parts for piece in ([part] if "=" in part else re.split(r"(\+)", part)) if piece]
    methods: list[str] = []
    overrides: list[str] = []
    expects_method = True
    for word in words:
        if word == "+":
            if expects_method:
                raise UserError(f'row "{text}": expected a method beside each +')
            expects_method = True
        elif expects_method and "=" not in word:
            methods.append(word)
            expects_method = False
        elif "=" in word and not expects_method:
            key = re.split(r"[.=]", word)[0]
            overrides.append(word if key in DistillConfig.model_fields else f"methods.{methods[-1]}.{word}")
        else:
            raise UserError(f'row "{text}": expected METHOD [OPTION=VALUE]... [+ METHOD ...], got "{word}"')
    if expects_method:
        raise UserError(f'row "{text}": expected a method{" after +" if methods else ""}, or {NONE}')
    for reserved, meaning in ((NONE, "the plain student"), (DEFAULT, "what distill does without a method")):
        if reserved in methods and len(methods) > 1:
            raise UserError(f'row "{text}": {reserved} is {meaning}, it cannot be combined with a method')
        if options := [word for word in overrides if word.startswith(f"methods.{reserved}.")]:
            wrong = options[0].removeprefix(f"methods.{reserved}.")
            raise UserError(f'row "{text}": "{wrong}" is no key of a config, and {reserved} has no options')
    plain = methods == [NONE]
    label = name.strip() if colon else " ".join(rest.split())
    return StudyRow(label, " ".join(rest.split()), () if plain else tuple(methods), tuple(overrides))


def faults_of_rows(rows: Sequence[StudyRow]) -> Iterable[str]:
    """Yield what is wrong with rows together: names, contents or folders that occur twice."""
    seen: dict[str, StudyRow] = {}
    contents: dict[str, StudyRow] = {}
    for row in rows:
        if row.name in seen:
            yield f'row "{row.name}" is given twice; name one of them: --row "NAME: {row.text}"'
        elif row.text in contents:
            yield f'rows "{contents[row.text].name}" and "{row.name}" are the same: {row.text}'
        elif row.slug in {other.slug for other in seen.values()}:
            yield f'row "{row.name}" has the folder name of another row, {row.slug}; name it: --row "NAME: {row.text}"'
        elif row.name in (LONGER, "teacher"):
            yield f'"{row.name}" is the name of a row that a study adds itself'
        seen.setdefault(row.name, row)
        contents.setdefault(row.text, row)
