"""What ``understudy methods`` prints: every method, or one in full."""

import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from understudy.methods import METHODS, Method, method_class, method_options
from understudy.outputs import Spec
from understudy.pairing import pair

USUAL = {
    "retinanet": {"num_anchors": 9},
    "fcos": {"num_anchors": 1, "box_code": "distances in strides"},
    "gfl": {"num_anchors": 1, "box_code": "distributions", "box_size": 4 * 17},
    "faster_rcnn": {"num_anchors": 3, "num_classes": 1, "objectness": True},
}
"""What methods look at, of detectors of each family as they are usually built; the rest is in usual_spec."""

READABLE = {
    "features": "neck features",
    "stages": "backbone stages",
    "class_logits": "class scores",
    "box_raw": "boxes",
    "extra": "centre-ness",
    "truth": "ground truth",
    "layers": "the teacher's own layers",
}
"""What a method may read, in words."""

Terms = tuple[str, ...]


def usual_spec(family: str, name: str = "", neck_channels: int = 256) -> Spec:
    """What is known of a detector of a family as it is usually built: ResNet-50, neck of 256 channels, 80 classes."""
    facts: dict[str, Any] = {"num_classes": 80, **USUAL[family]}
    first = 4 if family == "faster_rcnn" else 8
    stages = {4: 256, 8: 512, 16: 1024, 32: 2048}
    return Spec(
        channels=(neck_channels,) * 5,
        strides=tuple(first * 2**level for level in range(5)),
        stage_channels=tuple(channels for stride, channels in stages.items() if stride >= first),
        stage_strides=tuple(stride for stride in stages if stride >= first),
        tower_channels=() if family == "faster_rcnn" else (neck_channels,) * 4,
        family=family,
        name=name or family,
        **facts,
    )


def served_pairs(method: type[Method], student_channels: int = 256) -> dict[tuple[str, str], Terms]:
    """The terms that a method computes by its default options, for each pair of families: the student, its teacher."""
    found = {}
    for student, teacher in itertools.product(USUAL, USUAL):
        common = pair(usual_spec(student, "student", student_channels), usual_spec(teacher, "teacher"))
        obstacles = method.obstacles(common.student, common.teacher)
        found[student, teacher] = tuple(term for term in _all_terms(method) if term not in obstacles)
    return found


# ---------------------------------------------------------------------------------------------------------------- pages


def table() -> str:
    """Every method in some lines: what it does, reads and serves, its terms with their weights, its source."""
    advice = "`understudy methods NAME` explains one: its options, weights, and the pairs it serves, one by one."
    return "\n\n".join([*(_summary(name, method) for name, method in METHODS.items()), _wrapped(advice)])


def explain(name: str) -> str:
    """What one method does, the pairs it serves, its weights and its options.

    Args:
        name: of a method, or ``package.module:Class``.

    Raises:
        UserError: there is no such method.
    """
    method = method_class(name)
    prose, meanings = _documentation(method)
    blocks = ["\n\n".join(map(_wrapped, prose)), "\n".join([*_facts(method), *_necks(method)]), _matrix(method)]
    if method.weights:
        blocks += ["\n".join(["Weights, by the student's family:", *_weights(method.weights)])]
    blocks += ["\n".join(["Options with their defaults:", *_options(name, meanings)])]
    return "\n\n".join([*blocks, f"Example:\n  understudy distill ... --method {name}"])


def _summary(name: str, method: type[Method]) -> str:
    prose, _ = _documentation(method)
    return "\n".join([_wrapped(f"{name}: {prose[0]}"), *_facts(method), *_usual_weights(method), *_serves(method)])


def _facts(method: type[Method]) -> Iterator[str]:
    optional = "".join(f", {method.name}_{term} (off by default)" for term in method.optional_terms)
    yield _fact("terms", ", ".join(f"{method.name}_{term}" for term in method.terms) + optional)
    if method.reads:
        yield _fact("reads", ", ".join(READABLE[part] for part in method.reads))
    yield _fact("source", method.source)


def _usual_weights(method: type[Method]) -> Iterator[str]:
    """The weights in one line, families with the same ones together."""
    families: dict[str, list[str]] = {}
    for family, weights in method.weights.items():
        families.setdefault(" / ".join(f"{weight:g}" for weight in weights.values()), []).append(family)
    yield _fact(
        "weights",
        "; ".join(f"{weights} ({', '.join(owners)})" for weights, owners in families.items()) or "none: give your own",
    )


def _serves(method: type[Method]) -> Iterator[str]:
    """Families whose detectors it compares with their own kind, and with which others; terms where not all."""
    pairs = served_pairs(method)
    alike = _grouped(method, {student: terms for (student, teacher), terms in pairs.items() if student == teacher})
    yield _fact("detectors", _listing(alike, len(USUAL), "all"))
    across = {f"{student} from {teacher}": terms for (student, teacher), terms in pairs.items() if student != teacher}
    yield _fact("across families", _listing(_grouped(method, across), len(across), "every pair"))
    yield from _necks(method)


def _necks(method: type[Method]) -> Iterator[str]:
    """What is asked of the necks, where a narrower student is not served as well."""
    if served_pairs(method, student_channels=128) != served_pairs(method):
        yield _fact("necks", "the student's as wide as the teacher's (detector.neck_channels)")


def _grouped(method: type[Method], served: Mapping[str, Terms]) -> dict[str, list[str]]:
    """What is served, by the terms that are; the smallest groups first, what is not served at all left out."""
    groups: dict[str, list[str]] = {}
    for what, terms in served.items():
        if terms:
            only = "" if terms == _all_terms(method) else f" ({', '.join(terms)} only)"
            groups.setdefault(only, []).append(what)
    return dict(sorted(groups.items(), key=lambda group: len(group[1])))


def _listing(groups: Mapping[str, list[str]], total: int, everything: str) -> str:
    """The groups in words; the last, where it is all that remains, is not spelled out."""
    parts, left = [], total
    for number, (only, members) in enumerate(groups.items(), start=1):
        remaining = number == len(groups) and len(members) == left and len(members) > 2
        named = ("the others" if parts else everything) if remaining else ", ".join(members)
        parts.append(named + only)
        left -= len(members)
    return "; ".join(parts) or "none"


def _matrix(method: type[Method]) -> str:
    """Which family teaches which, with letters for pairs of which some terms are served."""
    pairs = served_pairs(method)
    partly = dict.fromkeys(terms for terms in pairs.values() if terms and terms != _all_terms(method))
    letters = dict(zip(partly, "abcdefghij", strict=False))
    width = max(map(len, USUAL)) + 2

    def cell(terms: Terms) -> str:
        return letters.get(terms, "yes" if terms else "-")

    lines = [
        "Teachers (across) of which students (down) can learn, as the families are usually built:",
        "  " + " " * width + "".join(f"{teacher:>{width}}" for teacher in USUAL),
        *(
            f"  {student:{width}}" + "".join(f"{cell(pairs[student, teacher]):>{width}}" for teacher in USUAL)
            for student in USUAL
        ),
        *(f"  {letter}: {', '.join(terms)} only" for terms, letter in letters.items()),
    ]
    return "\n".join(itertools.chain([_wrapped(lines[0])], lines[1:]))


def _weights(weights: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for family, of_family in weights.items():
        given = ", ".join(f"{term}_weight={weight:g}" for term, weight in of_family.items())
        yield _wrapped(f"{family}: {given}", "  ", hanging=4)


def _options(name: str, meanings: Mapping[str, str]) -> Iterator[str]:
    for option, field in method_options(name).model_fields.items():
        yield f"  methods.{name}.{option}={_as_yaml(field.default)}"
        if meaning := (field.description or meanings.get(option, "")).replace("None", "null"):  # as configs spell it
            yield _wrapped(meaning, "      ")


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_as_yaml, value))}]" if isinstance(value, tuple | list) else str(value)


def _documentation(method: type[Method]) -> tuple[list[str], dict[str, str]]:
    """The paragraphs of a method's docstring, and the meaning of each argument."""
    document = re.sub(r":\w+:`(?:[^`]*\.)?([^`]*)`", r"\1", inspect.getdoc(method) or "").replace("``", "")
    prose, _, sections = document.partition("\n\nArgs:\n")
    arguments = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", sections.partition("\n\n")[0], flags=re.MULTILINE)
    return prose.split("\n\n"), dict(arguments)


def _all_terms(method: type[Method]) -> Terms:
    return (*method.terms, *method.optional_terms)


def _fact(title: str, text: str) -> str:
    return _wrapped(f"{title}: {text}", "  ", hanging=4)


def _wrapped(text: str, indent: str = "", hanging: int | None = None) -> str:
    following = indent if hanging is None else " " * hanging
    return textwrap.fill(
        " ".join(text.split()), 80, initial_indent=indent, subsequent_indent=following, break_on_hyphens=False
    )
