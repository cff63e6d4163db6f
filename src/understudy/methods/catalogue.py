"""What ``understudy methods`` prints: every method, or one in full."""

import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from understudy.methods import METHODS, Method, method_class, method_options, own_code
from understudy.outputs import Spec
from understudy.pairing import pair
from understudy.wording import expected

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
    "layers": "the detectors themselves",
}
"""What a method may read, in words."""

HEADINGS = {"frs": "The papers' own", "hint": "What they are compared with", "ld": "What came later"}
"""What stands over methods of METHODS, from the one that is named to the next."""

ADVICE = (
    "`understudy methods NAME` explains one: its options, weights, and the pairs it serves, one by one; "
    "{}. A method of your own is named package.module:Class."
)

WIDEST = 120
"""Columns of a line, at most: longer ones are hard to read."""

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


def overview() -> str:
    """Every method in a line, and how more is to be had."""
    column, lines = max(map(len, METHODS)) + 2, []
    for name, method in METHODS.items():
        if name in HEADINGS:
            lines += ["", f"{HEADINGS[name]}:"]
        lines.append(_wrapped(_documentation(method)[0][0], f"  {name:{column}}", hanging=column + 2))
    return "\n".join([*lines[1:], "", _wrapped(ADVICE.format("`understudy methods` says what each reads and serves"))])


def details() -> str:
    """Every method in some lines: what it does, reads and serves, its terms with their weights, its source."""
    blocks = []
    for name, method in METHODS.items():
        if name in HEADINGS:
            blocks.append(f"{HEADINGS[name].upper()}")
        blocks.append(_summary(name, method))
    return "\n\n".join([*blocks, _wrapped(ADVICE.format("`understudy methods --short` says in a line what each does"))])


def explain(name: str) -> str:
    """What one method does, the pairs it serves, its weights and its options.

    Args:
        name: of a method, or ``package.module:Class``.

    Raises:
        UserError: there is no such method.
    """
    method = method_class(name)
    prose, meanings = _documentation(method)
    with own_code(name, "explained"):
        blocks = [
            "\n\n".join(map(_wrapped, prose)),
            "\n".join([*_facts(method), *_necks(method)]),
            _matrix(name, method),
        ]
    blocks += ["\n".join(["Weights, by the student's family:", *_weights(method)])]
    blocks += ["\n".join(["Options with their defaults:", *_options(name, meanings)])]
    return "\n\n".join([*blocks, "\n".join(["Example:", *_examples(name, method)])])


def _summary(name: str, method: type[Method]) -> str:
    prose, _ = _documentation(method)
    first = _wrapped(f"{name}: {prose[0]}")
    return "\n".join([first, *_facts(method), *_usual_weights(method), *_serves(name, method)])


def _facts(method: type[Method]) -> Iterator[str]:
    optional = "".join(f", {method.name}_{term} (off by default)" for term in method.optional_terms)
    yield _fact("terms", ", ".join(f"{method.name}_{term}" for term in method.terms) + optional)
    if method.reads:
        yield _fact("reads", ", ".join(READABLE.get(part, part) for part in method.reads))
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


def _serves(name: str, method: type[Method]) -> Iterator[str]:
    """Families whose detectors it compares with their own kind, and with which others; terms where not all."""
    pairs = served_pairs(method)
    alike = {student: terms for (student, teacher), terms in pairs.items() if student == teacher}
    unweighted = [family for family, terms in alike.items() if _unweighted(method, family, terms)]
    note = f" (no weight: {', '.join(unweighted)})" if unweighted else ""
    yield _fact("detectors", _listing(_grouped(name, method, alike), len(USUAL), "all") + note)
    across = {f"{student} from {teacher}": terms for (student, teacher), terms in pairs.items() if student != teacher}
    yield _fact("across families", _listing(_grouped(name, method, across), len(across), "every pair"))
    yield from _necks(method)


def _necks(method: type[Method]) -> Iterator[str]:
    """What is asked of the necks, where a narrower student is not served as well."""
    if served_pairs(method, student_channels=128) != served_pairs(method):
        yield _fact("necks", "the student's as wide as the teacher's (detector.neck_channels)")


def _grouped(name: str, method: type[Method], served: Mapping[str, Terms]) -> dict[str, list[str]]:
    """What is served, by the terms that are; the smallest groups first, what is not served at all left out."""
    groups: dict[str, list[str]] = {}
    for what, terms in served.items():
        if terms:
            only = _only(name, method, what.split()[0], terms)  # whatever it is, the student's family comes first
            groups.setdefault(f" ({only})" if only else "", []).append(what)
    return dict(sorted(groups.items(), key=lambda group: len(group[1])))


def _only(name: str, method: type[Method], student: str, terms: Terms, without: Collection[str] = ()) -> str:
    """Which terms are served, where not all are, and the weights that a run needs; of `without`, any."""
    only = f"{', '.join(terms)} only" if terms != _all_terms(method) else ""
    usual = method.weights.get(student, {})
    off = [term for term in method.terms if term not in terms and usual.get(term) != 0]
    keys = [f"methods.{name}.{term}_weight=0" for term in off]
    keys += [f"methods.{name}.{term}_weight=..." for term in without]
    return ", ".join([*([only] if only else []), *([f"with {' '.join(keys)}"] if keys else [])])


def _unweighted(method: type[Method], family: str, terms: Terms) -> Terms:
    """Those of some terms that need a weight, and have none for a family of students."""
    return tuple(term for term in method.terms if term in terms and term not in method.weights.get(family, {}))


def _listing(groups: Mapping[str, list[str]], total: int, everything: str) -> str:
    """The groups in words; the last, where it is all that remains, is not spelled out."""
    parts, left = [], total
    for number, (only, members) in enumerate(groups.items(), start=1):
        remaining = number == len(groups) and len(members) == left and len(members) > 2
        named = ("the others" if parts else everything) if remaining else ", ".join(members)
        parts.append(named + only)
        left -= len(members)
    return "; ".join(parts) or "none"


def _matrix(name: str, method: type[Method]) -> str:
    """Which family teaches which, with letters for pairs that are served in part, or with weights of one's own."""
    pairs = served_pairs(method)
    how = {
        pair: _only(name, method, pair[0], terms, _unweighted(method, pair[0], terms))
        for pair, terms in pairs.items()
        if terms
    }
    letters = dict(zip(dict.fromkeys(only for only in how.values() if only), "abcdefghij", strict=False))
    width = max(map(len, USUAL)) + 2

    def cell(student: str, teacher: str) -> str:
        only = how.get((student, teacher))
        return "-" if only is None else letters.get(only, "yes")

    title = "Teachers (across) of which students (down) can learn, as the families are usually built:"
    return "\n".join(
        [
            _wrapped(title),
            "  " + " " * width + "".join(f"{teacher:>{width}}" for teacher in USUAL),
            *(
                f"  {student:{width}}" + "".join(f"{cell(student, teacher):>{width}}" for teacher in USUAL)
                for student in USUAL
            ),
            *(_wrapped(only, f"  {letter}: ", hanging=5) for only, letter in letters.items()),
        ]
    )


def _weights(method: type[Method]) -> Iterator[str]:
    for family, of_family in method.weights.items():
        given = ", ".join(f"{term}_weight={weight:g}" for term, weight in of_family.items())
        yield _wrapped(f"{family}: {given}", "  ", hanging=4)
    if _families_without(method):
        given = ", ".join(f"{term}_weight=..." for term in method.terms)
        yield _wrapped(f"{'others' if method.weights else 'all'}: none, give {given}", "  ", hanging=4)


def _families_without(method: type[Method]) -> list[str]:
    """Families that are served, and have no weight for what is served."""
    return [family for (family, _), terms in served_pairs(method).items() if _unweighted(method, family, terms)]


def _options(name: str, meanings: Mapping[str, str]) -> Iterator[str]:
    for option, field in method_options(name).model_fields.items():
        value = "..." if field.is_required() else _as_yaml(field.default)
        yield f"  methods.{name}.{option}={value}"
        meaning = (field.description or meanings.get(option, "")).replace("None", "null")  # as configs spell it
        needed = "; it must be given" if field.is_required() else ""
        yield _wrapped(f"{meaning} ({expected(field.annotation, field.metadata)}{needed})", "      ")


def _examples(name: str, method: type[Method]) -> Iterator[str]:
    """Commands that run as they stand, but for what is to be filled in."""
    command = ["understudy distill ...", f"--method {name}"]
    command += [
        f"methods.{name}.{option}=..."
        for option, field in method_options(name).model_fields.items()
        if field.is_required()
    ]
    weights = [f"methods.{name}.{term}_weight=..." for term in method.terms]
    if method.weights:
        yield _command(command)
    if _families_without(method):
        yield _command([*command, *weights])


def _command(words: list[str]) -> str:
    """A command in lines that a shell takes for one."""
    lines = textwrap.wrap(" ".join(words), _width() - 6, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n      ".join(lines)


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_as_yaml, value))}]" if isinstance(value, tuple | list) else str(value)


def _documentation(method: type[Method]) -> tuple[list[str], dict[str, str]]:
    """The paragraphs of a method's docstring, and the meaning of each argument."""
    document = inspect.getdoc(method) or ""
    if document == inspect.getdoc(Method):  # a class without a docstring has that of the class it extends
        document = "It has no docstring that would say what it does."
    document = re.sub(r":\w+:`(?:[^`]*\.)?([^`]*)`", r"\1", document).replace("``", "")
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
        " ".join(text.split()), _width(), initial_indent=indent, subsequent_indent=following, break_on_hyphens=False
    )


def _width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return min(shutil.get_terminal_size().columns, WIDEST)
