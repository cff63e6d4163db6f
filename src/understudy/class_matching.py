"""Classes of two label spaces matched by name: exact names, other spellings, aliases, and VOC's names for COCO's."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from understudy.errors import UserError
from understudy.text import closest, listed

SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
)
"""Classes that VOC and COCO name differently: VOC's name and COCO's. They match in both directions."""

Aliases = Mapping[str, str]
"""Pairs of names of one class."""

NO_ALIASES: Aliases = MappingProxyType({})

MOST_HINTS = 12
"""Similar names that a message lists."""

ALIKE = 0.75
"""Least similarity of two names that may be those of one class."""


def match_names(names: Sequence[str], others: Sequence[str], aliases: Aliases = NO_ALIASES) -> list[int | None]:
    """Return the position of each name among others, None if it is not there.

    Case and outer blanks do not matter. A name without an equal one matches one of another name, given by the aliases
    or by :data:`SYNONYMS`, that no name has matched yet.

    Examples:
        >>> match_names(["Cat", "cow"], ["dog", "cat"])
        [1, None]
        >>> match_names(["motorbike", "moped"], ["scooter", "motorcycle"], {"moped": "scooter"})
        [1, 0]
    """
    exact = {name: place for place, name in enumerate(others)}
    alike = {_folded(name): place for place, name in enumerate(others) if name not in names}
    places = [exact.get(name, alike.get(_folded(name))) for name in names]
    free = {_folded(name): place for place, name in enumerate(others) if place not in places}
    for number, name in enumerate(names):
        if places[number] is None:
            found = next((other for other in _other_names(name, aliases) if other in free), None)
            places[number] = None if found is None else free.pop(found)
    return places


def renamed(names: Sequence[str], others: Sequence[str], places: Sequence[int | None]) -> list[tuple[str, str]]:
    """Return the pairs of names that match although they are not spelled alike."""
    pairs = ((name, others[place]) for name, place in zip(names, places, strict=True) if place is not None)
    return [(name, other) for name, other in pairs if _folded(name) != _folded(other)]


def shown_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """Write pairs of names of one class.

    >>> shown_pairs([("sofa", "couch")])
    'sofa = couch'
    """
    return listed([f"{name} = {other}" for name, other in pairs])


def hint_on(unmatched: Sequence[str], others: Sequence[str], option: str = "data.aliases") -> str:
    """Return a hint on names without a match that resemble others without one; empty if there are none.

    >>> hint_on(["motor-bike", "cow"], ["motorbike"])
    "If motor-bike and motorbike are the same class: data.aliases='{motor-bike: motorbike}'."
    >>> hint_on(["moto bike"], ["motorbike"], "--alias")
    "If moto bike and motorbike are the same class: --alias 'moto bike=motorbike'."
    """
    found = [(name, other) for name in unmatched if (other := closest(name, others, ALIKE)) is not None]
    if not found:
        return ""
    pairs = " and ".join(f"{name} and {other}" for name, other in found[:MOST_HINTS])
    if option == "--alias":
        remedy = " ".join(f"--alias '{name}={other}'" for name, other in found[:MOST_HINTS])
    else:
        remedy = f"{option}='{{{', '.join(f'{name}: {other}' for name, other in found[:MOST_HINTS])}}}'"
    return f"If {pairs} are the same class{'es' if len(found) > 1 else ''}: {remedy}."


def check_aliases(aliases: Aliases, names: Sequence[str], others: Sequence[str], option: str = "data.aliases") -> None:
    """Check that every alias pairs two names of the two label spaces.

    Raises:
        UserError: some do not, so they would have no effect; all are listed.
    """
    known = {_folded(name): name for name in (*names, *others)}
    faults = []
    for pair in aliases.items():
        for name in pair:
            if _folded(name) not in known:
                close = closest(name, known.values())
                faults.append(f"{name}: no such class{f'; did you mean {close}?' if close else ''}")
    if faults:
        raise UserError.listing(f"{option} names classes that neither side has:", faults)


def no_common_name(whose: str, names: Sequence[str], whose_others: str, others: Sequence[str]) -> list[str]:
    """Describe two label spaces without a common name, and point out similar names."""
    folded = {_folded(other): other for other in others}
    close = [
        f"{name!r} of the {whose} resembles {folded[match]!r} of the {whose_others}: if they are the same, rename one, "
        f"or set data.aliases='{{{name}: {folded[match]}}}'"
        for name in names
        for match in difflib.get_close_matches(_folded(name), folded, n=1)
    ]
    return [
        f"no class of the same name: the {whose} has {listed(names)}; the {whose_others} has {listed(others)}",
        *close[:MOST_HINTS],
    ]


def _other_names(name: str, aliases: Aliases) -> list[str]:
    """Return the other names of a class, those of the aliases first."""
    found = []
    for pairs in (aliases, SYNONYMS):
        for pair in pairs.items():
            one, other = map(_folded, pair)
            found += [other] if one == _folded(name) else [one] if other == _folded(name) else []
    return found


def _folded(name: str) -> str:
    return name.strip().casefold()
