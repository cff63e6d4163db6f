"""The facts about a method that listings and pages print, as plain values.

Those of the package's own methods are stored in ``methods.json``, so that printing them needs no torch;
``python docs/generate.py --quick`` updates them.
"""

import inspect
import itertools
import re
from typing import Any

from understudy.detectors.families import FAMILIES, Family
from understudy.methods.base import CHECKS, EVERY_FAMILY, Method
from understudy.methods.compatibility import READS
from understudy.methods.loading import method_class, method_options, own_code
from understudy.outputs import Spec
from understudy.pairing import pair
from understudy.text import as_yaml, expected

Facts = dict[str, Any]

OWN_FAMILIES = {name: family for name, family in FAMILIES.items() if family.networks.startswith("understudy.")}
"""The families of the package itself, without those of plugins."""

NARROW = 128
"""Neck channels of a student, half of its teacher's, by which a method that needs equal channels is found."""


def usual_spec(family: Family, name: str = "", neck_channels: int = 256) -> Spec:
    """Return the Spec of a family's detector as it is usually built: ResNet-50, 80 classes."""
    usual: dict[str, Any] = {"num_classes": 80, **family.facts, **family.usual}
    if "tower_channels" in usual:
        usual["tower_channels"] = (neck_channels,) * len(usual["tower_channels"])
    return Spec(
        channels=(neck_channels,) * len(usual["strides"]),
        family=family.name,
        default_weights=family.weights,
        name=name or family.name,
        **usual,
    )


def served_pairs(method: type[Method], student_channels: int = 256) -> dict[tuple[str, str], list[str]]:
    """Return the terms that a method computes by its default options for each pair of families, student and teacher."""
    found = {}
    for student, teacher in itertools.product(OWN_FAMILIES.values(), OWN_FAMILIES.values()):
        common = pair(usual_spec(student, "student", student_channels), usual_spec(teacher, "teacher"))
        obstacles = method.obstacles(common.student, common.teacher)
        found[student.name, teacher.name] = [term for term in method.all_terms() if term not in obstacles]
    return found


def method_facts(name: str) -> Facts:
    """Collect the facts about a method.

    Args:
        name: of a method, or ``package.module:Class``.

    Raises:
        UserError: there is no such method, or its code raises.
    """
    method = method_class(name)
    with own_code(name, "described"):
        served = served_pairs(method)
        return {
            "name": name,
            "prefix": method.name,
            "aliases": list(method.aliases),
            **_documentation(method),
            "terms": list(method.terms),
            "optional_terms": list(method.optional_terms),
            "reads": {term: [READS[what].words for what in reads] for term, reads in _reads(method).items()},
            "source": method.source,
            "checked": method.checked,
            "unverified": any(method.checked.startswith(kind) for kind, verifies in CHECKS.items() if not verifies),
            "weights": {family: dict(method.default_weights(_student(family))) for family in OWN_FAMILIES},
            "for_every_family": EVERY_FAMILY in method.weights,
            "ramp_steps": method.ramp_steps,
            "served": [[student, teacher, terms] for (student, teacher), terms in served.items()],
            "equal_necks": served_pairs(method, NARROW) != served,
            "options": _options(name),
        }


def _student(family: str) -> Spec:
    return usual_spec(OWN_FAMILIES[family])


def _reads(method: type[Method]) -> dict[str, tuple[str, ...]]:
    """Return the inputs of each term with the default options; those of the class if an option has no default."""
    required = any(field.is_required() for field in method.Options.model_fields.values())
    return dict(method.reads if required else method.reads_with(method.Options()))


def _options(name: str) -> list[Facts]:
    fields = method_options(name).model_fields
    own = {option: field for option, field in fields.items() if option in method_class(name).Options.model_fields}
    weights = {option: field for option, field in fields.items() if option not in own}
    return [
        {
            "name": option,
            "default": None if field.is_required() else as_yaml(field.default),
            "expected": expected(field.annotation, field.metadata),
            "meaning": " ".join((field.description or "").split()).replace("None", "null"),  # as configs write it
            "own": option in own,
        }
        for option, field in (weights | own).items()
    ]


# --- docstrings -------------------------------------------------------------------------------------------------------


def _documentation(method: type[Method]) -> Facts:
    """Read a method's docstring: its first sentence, text and formulas in order, and the section on its evidence."""
    document = inspect.getdoc(method) or ""
    if not method.__doc__:  # a class without a docstring inherits that of the class it extends
        document = "It has no docstring."
    body, _, evidence = document.partition("\n\nEvidence:\n")
    summary, _, rest = body.partition("\n\n")
    return {"summary": " ".join(summary.split()), "body": _blocks(rest), "evidence": _entries(evidence)}


def _blocks(text: str) -> list[Facts]:
    """Split text into paragraphs and formulas."""
    blocks: list[Facts] = []
    for block in re.split(r"\n{2,}", text.strip()) if text.strip() else []:
        prose, marker, formula = block.partition(".. math::")
        if prose.strip():
            blocks.append({"text": " ".join(prose.split())})
        if marker:
            blocks.append({"math": inspect.cleandoc(formula)})
    return blocks


def _entries(section: str) -> dict[str, str]:
    """Read ``key: text`` entries, whose further lines are indented."""
    own = section.partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w[\w ]*): (.*(?:\n {5,}.*)*)", own, flags=re.MULTILINE)
    return {key: " ".join(text.split()) for key, text in found}
