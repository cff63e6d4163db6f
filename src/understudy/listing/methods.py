"""The output of ``understudy methods``: every method, or one in full.

It is printed from stored facts, so that it appears at once; see :mod:`.facts`.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from understudy.text import shell_lines, terminal_width, wrapped

Facts = Mapping[str, Any]
Terms = Sequence[str]

STORED = Path(__file__).with_name("methods.json")
"""Facts about the package's own methods; ``python docs/generate.py --quick`` updates them."""

HEADINGS = {"frs": "The papers' own", "hint": "Methods they are compared with", "ld": "Later methods"}
"""Headings, each by the method above which it stands."""

PLUGINS = "Installed plugins"

ADVICE = (
    "`understudy methods NAME` shows one in full: formulas, evidence, options, weights and supported pairs of "
    "detectors. {} For your own method, use package.module:Class."
)


@cache
def stored_facts() -> dict[str, Facts]:
    """Return the facts about the package's own methods, by name."""
    return {facts["name"]: facts for facts in json.loads(STORED.read_text(encoding="utf-8"))}


def facts_of(name: str) -> Facts:
    """Return the facts about a method: stored ones, or for a method of a user or of a plugin computed ones.

    Raises:
        UserError: there is no such method.
    """
    if name in stored_facts():
        return stored_facts()[name]
    from understudy.listing.facts import method_facts

    return method_facts(name)


def overview() -> str:
    """Return one line for each method, and advice."""
    names = [*stored_facts(), *_plugins()]
    column, lines = max(map(len, names)) + 2, []
    for name in names:
        if heading := _heading(name):
            lines += ["", f"{heading}:"]
        lines.append(wrapped(marked(facts_of(name)), f"  {name:{column}}", hanging=column + 2))
    advice = ADVICE.format("`understudy methods` also lists the inputs and the supported detectors of each.")
    return "\n".join([*lines[1:], "", wrapped(advice)])


def details() -> str:
    """Return a few lines for each method: its summary, terms, reads, weights, source and detectors."""
    blocks = []
    for name in [*stored_facts(), *_plugins()]:
        if heading := _heading(name):
            blocks.append(heading.upper())
        blocks.append(_summary(facts_of(name)))
    return "\n\n".join([*blocks, wrapped(ADVICE.format("`understudy methods --short` prints one-line summaries."))])


def explain(name: str) -> str:
    """Return everything about one method: text and formulas, evidence, pairs, weights and options.

    Args:
        name: of a method, or ``package.module:Class``.

    Raises:
        UserError: there is no such method.
    """
    facts = facts_of(name)
    blocks = [wrapped(facts["summary"]), *map(_block, facts["body"])]
    if facts["evidence"]:
        lines = [wrapped(f"{key}: {plain(text)}", "  ", hanging=4) for key, text in facts["evidence"].items()]
        blocks.append("\n".join(["Evidence:", *lines]))
    blocks += [
        "\n".join([*_facts(facts), *_necks(facts)]),
        _matrix(facts),
        "\n".join(["Weights, by the student's family:", *_weights(facts)]),
        "\n".join(["Options and their defaults:", *_options(facts)]),
        "\n".join(["Example:", *_examples(facts)]),
    ]
    return "\n\n".join(blocks)


def marked(facts: Facts) -> str:
    """Return the summary of a method, with a mark if its arithmetic could not be verified against its paper."""
    return facts["summary"] + (" (Not verified against the paper.)" if facts["unverified"] else "")


def plain(text: str) -> str:
    """Remove the markup of a docstring's text; inline formulas stay LaTeX."""
    text = re.sub(r":math:`([^`]*)`", r"\1", text)
    return re.sub(r":\w+:`(?:[^`]*\.)?([^`]*)`", r"\1", text).replace("``", "")


def _block(block: Facts) -> str:
    return textwrap.indent(block["math"], "    ") if "math" in block else wrapped(plain(block["text"]))


def _plugins() -> list[str]:
    return [entry.name for entry in entry_points(group="understudy.methods") if entry.name not in stored_facts()]


def _heading(name: str) -> str | None:
    return PLUGINS if name in _plugins()[:1] else HEADINGS.get(name)


# --- lines of both lists ----------------------------------------------------------------------------------------------


def _summary(facts: Facts) -> str:
    first = wrapped(f"{facts['name']}: {marked(facts)}")
    return "\n".join([first, *_facts(facts), *_usual_weights(facts), *_serves(facts)])


def _facts(facts: Facts) -> Iterator[str]:
    prefix = facts["prefix"]
    terms = [f"{prefix}_{term}" for term in facts["terms"]]
    terms += [f"{prefix}_{term} (off by default)" for term in facts["optional_terms"]]
    yield _fact("terms", ", ".join(terms))
    yield _fact("reads", ", ".join(dict.fromkeys(words for reads in facts["reads"].values() for words in reads)))
    if facts["aliases"]:
        yield _fact("also called", ", ".join(facts["aliases"]))
    yield _fact("source", facts["source"])
    if facts["checked"]:
        yield _fact("checked against", facts["checked"])


def _usual_weights(facts: Facts) -> Iterator[str]:
    """Return the weights in one line, families with the same ones together."""
    families: dict[str, list[str]] = {}
    for family, weights in facts["weights"].items():
        if weights:
            families.setdefault(" / ".join(f"{weight:g}" for weight in weights.values()), []).append(family)
    owners = {weights: "every family" if facts["for_every_family"] and len(families) == 1 else ", ".join(names)
              for weights, names in families.items()}  # fmt: skip
    text = "; ".join(f"{weights} ({names})" for weights, names in owners.items())
    yield _fact("weights", text or "none published")


def _serves(facts: Facts) -> Iterator[str]:
    """Return the families it is available for, alone and across; the terms if not all are available."""
    alike = {student: terms for student, teacher, terms in facts["served"] if student == teacher}
    unweighted = [family for family, terms in alike.items() if _unweighted(facts, family, terms)]
    note = f" (no published weight: {', '.join(unweighted)})" if unweighted else ""
    yield _fact("detectors", _listing(_grouped(facts, alike), len(alike), "all") + note)
    across = {f"{student} from {teacher}": terms for student, teacher, terms in facts["served"] if student != teacher}
    yield _fact("across families", _listing(_grouped(facts, across), len(across), "every pair"))
    yield from _necks(facts)


def _necks(facts: Facts) -> Iterator[str]:
    if facts["equal_necks"]:
        yield _fact("necks", "student and teacher need the same width (detector.neck_channels)")


def _grouped(facts: Facts, served: Mapping[str, Terms]) -> dict[str, list[str]]:
    """Group detectors or pairs by the terms that are available, the smallest groups first."""
    groups: dict[str, list[str]] = {}
    for what, terms in served.items():
        if terms:
            only = _only(facts, what.split()[0], terms)  # the student's family comes first
            groups.setdefault(f" ({only})" if only else "", []).append(what)
    return dict(sorted(groups.items(), key=lambda group: len(group[1])))


def _only(facts: Facts, student: str, terms: Terms) -> str:
    """Return which terms are available, if not all are, and the weights that a run has to set."""
    every = [*facts["terms"], *facts["optional_terms"]]
    only = f"{', '.join(terms)} only" if list(terms) != every else ""
    usual, name = facts["weights"].get(student, {}), facts["name"]
    off = [term for term in facts["terms"] if term not in terms and usual.get(term) != 0]
    keys = [f"methods.{name}.{term}_weight=0" for term in off]
    return ", ".join([*([only] if only else []), *([f"with {' '.join(keys)}"] if keys else [])])


def _unweighted(facts: Facts, family: str, terms: Terms) -> list[str]:
    """Return the terms that need a weight and have no default for a family of students."""
    weights = facts["weights"].get(family, {})
    return [term for term in facts["terms"] if term in terms and term not in weights]


def _listing(groups: Mapping[str, list[str]], total: int, everything: str) -> str:
    """Write the groups; the last one is not listed in full if it contains all the rest."""
    parts, left = [], total
    for number, (only, members) in enumerate(groups.items(), start=1):
        remaining = number == len(groups) and len(members) == left and len(members) > 2
        named = ("the others" if parts else everything) if remaining else ", ".join(members)
        parts.append(named + only)
        left -= len(members)
    return "; ".join(parts) or "none"


def _fact(title: str, text: str) -> str:
    return wrapped(f"{title}: {text}", "  ", hanging=4)


# --- blocks of one method ---------------------------------------------------------------------------------------------


def _matrix(facts: Facts) -> str:
    """Return the table of families of students and teachers; letters stand for a part of the terms, or for weights."""
    how = {(student, teacher): _only(facts, student, terms) for student, teacher, terms in facts["served"] if terms}
    letters = dict(zip(dict.fromkeys(only for only in how.values() if only), "abcdefghij", strict=False))
    families = list(dict.fromkeys(student for student, _, _ in facts["served"]))
    width = max(map(len, families)) + 2

    def cell(student: str, teacher: str) -> str:
        only = how.get((student, teacher))
        return "-" if only is None else letters.get(only, "yes")

    return "\n".join(
        [
            wrapped("Students (rows) and teachers (columns) it is available for, as the families are usually built:"),
            "  " + " " * width + "".join(f"{teacher:>{width}}" for teacher in families),
            *(
                f"  {student:{width}}" + "".join(f"{cell(student, teacher):>{width}}" for teacher in families)
                for student in families
            ),
            *(wrapped(only, f"  {letter}: ", hanging=5) for only, letter in letters.items()),
        ]
    )


def _weights(facts: Facts) -> Iterator[str]:
    given = {family: weights for family, weights in facts["weights"].items() if weights}
    for family, weights in given.items():
        yield wrapped(f"{family}: {_assigned(weights)}", "  ", hanging=4)
    if _families_without(facts):
        needed = ", ".join(f"{term}_weight=..." for term in facts["terms"])
        yield wrapped(
            f"{'others' if given else 'all'}: none published; with balance=off, set {needed}", "  ", hanging=4
        )


def _assigned(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{term}_weight={weight:g}" for term, weight in weights.items())


def _families_without(facts: Facts) -> list[str]:
    return [student for student, _, terms in facts["served"] if _unweighted(facts, student, terms)]


def _options(facts: Facts) -> Iterator[str]:
    for option in facts["options"]:
        missing = option["default"] is None
        yield f"  methods.{facts['name']}.{option['name']}={'...' if missing else option['default']}"
        yield wrapped(f"{plain(option['meaning'])} ({option['expected']}{'; required' if missing else ''})", "      ")


def _examples(facts: Facts) -> Iterator[str]:
    """Return commands that run as they are, except for the dots."""
    name = facts["name"]
    command = ["understudy distill ...", f"--method {name}"]
    command += [f"methods.{name}.{each['name']}=..." for each in facts["options"] if each["default"] is None]
    yield shell_lines(" ".join(command), terminal_width())
    if _families_without(facts):
        command += ["balance=off"]
        command += [f"methods.{name}.{term}_weight=..." for term in facts["terms"]]
        yield shell_lines(" ".join(command), terminal_width())
