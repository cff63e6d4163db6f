"""Distillation methods, one file each; ``METHODS`` is all there is."""

import importlib
import re
import traceback
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from understudy.errors import UserError
from understudy.methods.base import Method
from understudy.methods.bckd import BCKD
from understudy.methods.crosskd import CrossKD
from understudy.methods.cwd import CWD
from understudy.methods.defeat import DeFeat
from understudy.methods.dist2 import Dist2
from understudy.methods.fgd import FGD
from understudy.methods.fine_grained import FineGrained
from understudy.methods.fkd import FKD
from understudy.methods.frs import FRS
from understudy.methods.gid import GID
from understudy.methods.hint import Hint
from understudy.methods.ld import LD
from understudy.methods.mgd import MGD
from understudy.methods.nonlocal_ import NonLocal
from understudy.methods.options import faults_of_class, options_model, read_options
from understudy.methods.overhaul import Overhaul
from understudy.methods.pairwise import Pairwise
from understudy.methods.pfi import PFI
from understudy.methods.pkd import PKD
from understudy.methods.rank_mimicking import RankMimicking
from understudy.methods.score_l2 import ScoreL2
from understudy.methods.soft_labels import SoftLabels
from understudy.outputs import Spec
from understudy.weighting import TermWeight
from understudy.wording import closest, shown

METHODS: dict[str, type[Method]] = {
    # The papers' own.
    "frs": FRS,
    "dist2": Dist2,
    "rank_mimicking": RankMimicking,
    "pfi": PFI,
    # What they are compared with.
    "hint": Hint,
    "pairwise": Pairwise,
    "nonlocal": NonLocal,
    "fkd": FKD,
    "overhaul": Overhaul,
    "gid": GID,
    "fine_grained": FineGrained,
    "defeat": DeFeat,
    "soft_labels": SoftLabels,
    # What came later.
    "ld": LD,
    "cwd": CWD,
    "pkd": PKD,
    "fgd": FGD,
    "mgd": MGD,
    "crosskd": CrossKD,
    "bckd": BCKD,
    "score_l2": ScoreL2,
}

PAPERS_NAMES = {
    "rm": "rank_mimicking",
    "fitnets": "hint",
    "fgfi": "fine_grained",
    "ofd": "overhaul",
    "pa": "pairwise",
    "kd": "soft_labels",
    "ultralytics": "score_l2",
}
"""What papers call a method that has another name here."""

STUDENTS = {"retinanet": "a RetinaNet", "fcos": "an FCOS", "gfl": "a GFL", "faster_rcnn": "a Faster R-CNN"}
"""Families in words."""

Entries = Mapping[str, Mapping[str, Any] | None]

__all__ = ["FRS", "METHODS", "Method", "build_methods", "method_class", "method_options", "resolve_options"]


def method_class(name: str) -> type[Method]:
    """Find a method by its name in ``METHODS``, or a method of one's own by ``package.module:Class``.

    Raises:
        UserError: there is no such method, or the class is not one.
    """
    if name in METHODS:
        return METHODS[name]
    if not isinstance(name, str) or ":" not in name:
        raise UserError(_unknown(name))
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise UserError(f"{name!r} is no import path; expected package.module:Class, e.g. own_method:ScoredFeatures")
    module, _, attribute = name.partition(":")
    try:
        with own_code(name, "imported"):
            found = importlib.import_module(module)
    except UserError as error:
        cause = error.__cause__
        if not (isinstance(cause, ModuleNotFoundError) and cause.name and f"{module}.".startswith(f"{cause.name}.")):
            raise
        remedy = "run where the file lies, or put its folder on PYTHONPATH"
        raise UserError(f"the method {name} cannot be imported: there is no module {cause.name}; {remedy}") from cause
    if not hasattr(found, attribute):
        known = [each for each, value in vars(found).items() if _is_method(value)]
        hint = f"; its methods are {', '.join(known)}" if known else ""
        raise UserError(f"the method {name} cannot be imported: {module} has no {attribute}{hint}")
    method = getattr(found, attribute)
    if not _is_method(method):
        kind = f"the class {method.__name__}" if isinstance(method, type) else f"a {type(method).__name__}"
        raise UserError(f"{name!r} is {kind}; expected a subclass of understudy.Method")
    if faults := list(faults_of_class(method)):
        raise UserError(f"the method {name} cannot be used: {'; '.join(faults)}")
    return method


def method_options(name: str) -> type[BaseModel]:
    """The typed options of a method: a weight for each term, the ramp, and the keyword arguments of its constructor."""
    return options_model(method_class(name))


@contextmanager
def own_code(name: str, done: str) -> Generator[None]:
    """Turn what the code of a method of one's own raises into a message; a fault of ours keeps its traceback."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if name in METHODS:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({Path(place.filename).name}, line {place.lineno})"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
        raise UserError(f"the method {name} cannot be {done}: {reason}") from error


def resolve_options(entries: Entries, family: str) -> dict[str, dict[str, Any]]:
    """Check the options of every method and fill in all defaults, published weights included.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        family: of the student, to which published weights belong; a weight that nobody published stays None.

    Raises:
        UserError: listing every unknown method, and unknown or wrong option, at once.
    """
    resolved, faults = _checked(entries, family)
    if faults:
        raise UserError.listing(SUMMARY, faults)
    return resolved


def build_methods(entries: Entries, student: Spec, teacher: Spec) -> tuple[list[Method], dict[str, TermWeight]]:
    """Build the methods of a config, and by term name (``frs_feature``) the weight of every term.

    A term whose weight is 0 is not computed, and needs nothing of the pair.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        student: what is known of the student; of a pair that differs, that of its pairing.
        teacher: what is known of the teacher, likewise.

    Raises:
        UserError: listing at once every unknown method, every unknown or wrong option, every term that cannot be
            computed for this pair and what can be, and every weight that is missing.
    """
    methods: list[Method] = []
    weights: dict[str, TermWeight] = {}
    unfit = False
    resolved, faults = _checked(entries, student.family)
    for name, options in resolved.items():
        method, ramp = method_class(name), options.pop("ramp_steps")
        possible = (*method.terms, *method.optional_terms)
        wanted = {term: weight for term in possible if (weight := options.pop(f"{term}_weight")) != 0}
        try:
            with own_code(name, "built"):
                obstacles = method.obstacles(student, teacher, **options)
                served = {term: weight for term, weight in wanted.items() if term not in obstacles}
                misfits = _misfits(name, wanted, obstacles)
                lacking = _unweighted(name, student.family, served)
                if not (misfits or lacking):
                    methods.append(method.narrowed(tuple(wanted))(student, teacher, **options))
                    weights |= {f"{method.name}_{term}": TermWeight(weight, ramp) for term, weight in wanted.items()}
        except UserError as error:
            faults.append(str(error))
            continue
        faults += misfits + lacking
        unfit = unfit or bool(misfits)
    if unfit:
        faults.append(
            f"what serves the student {student.name} and the teacher {teacher.name}: {_serving(student, teacher)}"
        )
    if faults:
        raise UserError.listing(SUMMARY, faults)
    return methods, weights


SUMMARY = "The methods of this run are not right:"


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _unknown(name: Any) -> str:
    """Say that there is no such method, and what it may have been."""
    if not isinstance(name, str):
        known = [each for each, method in METHODS.items() if method is name]
        return f"a method is named by text, {shown(known[0] if known else 'frs')!r}; got {name!r}"
    parts = name.replace(",", " ").split()
    if len(parts) > 1:
        options = " ".join(f"--method {part}" for part in parts)
        return f"there is no method {name!r}; several methods: {options}, or methods=[{', '.join(parts)}]"
    close = closest(name, [*METHODS, *PAPERS_NAMES])
    meant = ":".join(name.rsplit(".", 1)) if "." in name else PAPERS_NAMES.get(close or "", close)
    hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(METHODS)}."
    return f"there is no method {name!r}; {hint} A method of your own is named package.module:Class"


def _checked(entries: Entries, family: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The options of every method with all defaults, and their faults; a weight that nobody published stays None."""
    if not isinstance(entries, Mapping):
        raise UserError(f'methods: expected names, each with its options, e.g. {{"frs": {{}}}}, got {shown(entries)}')
    faults: list[str] = []
    resolved: dict[str, dict[str, Any]] = {}
    for name, given in entries.items():
        try:
            method = method_class(name)
        except UserError as error:
            faults.append(str(error))
            continue
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            faults.append(f"methods.{name}: expected options and their values, got {shown(given)}")
            continue
        checked, wrong = read_options(options_model(method), given, f"methods.{name}")
        faults += wrong
        if checked is None:
            continue
        options = checked.model_dump()
        published = method.weights.get(family, {})
        for term in method.terms:
            if options[f"{term}_weight"] is None:  # of a wrong one that was given, nothing more is to be said
                unknown = None if given.get(f"{term}_weight") is None else 1.0
                options[f"{term}_weight"] = published.get(term, unknown)
        if all(options[f"{term}_weight"] == 0 for term in (*method.terms, *method.optional_terms)):
            weights = ", ".join(f"{term}_weight" for term in method.terms)
            faults.append(f"methods.{name}: {weights}: all are 0, so it teaches nothing; leave it out")
        resolved[name] = options
    return resolved, faults + _same_names(resolved)


def _unweighted(name: str, family: str, weights: Mapping[str, float | None]) -> list[str]:
    """Ask for the weights of terms that have none."""
    missing = [term for term, weight in weights.items() if weight is None]
    if not missing:
        return []
    terms = ", ".join(repr(term) for term in missing)
    keys = ", ".join(f"methods.{name}.{term}_weight" for term in missing)
    which = "the term is" if len(missing) == 1 else "each term is"
    return [
        f"no weight of {terms} is known for {STUDENTS.get(family, f'a {family}')} student; give {keys}, such that "
        f"{which} 10 to 30 % of the detection loss (losses.csv shows raw terms)"
    ]


def _same_names(entries: Iterable[str]) -> list[str]:
    """Entries that are methods of the same name: the terms of one would take the place of the other's."""
    by_name: dict[str, list[str]] = {}
    for entry in entries:
        by_name.setdefault(method_class(entry).name, []).append(entry)
    return [
        f"{' and '.join(both)} are both called {name!r}, and so would their terms be: leave one out, or give the "
        "method of your own another `name`"
        for name, both in by_name.items()
        if len(both) > 1
    ]


def _misfits(name: str, wanted: Collection[str], obstacles: Mapping[str, str]) -> list[str]:
    """Why terms that are wanted of a method cannot be computed, those of one reason together, and how others can."""
    blocked: dict[str, list[str]] = {}
    for term in wanted:
        if term in obstacles:
            blocked.setdefault(obstacles[term], []).append(term)
    lines = [f"{', '.join(f'{name}_{term}' for term in terms)}: {reason}" for reason, terms in blocked.items()]
    without = [f"methods.{name}.{term}_weight=0" for terms in blocked.values() for term in terms]
    if 0 < len(without) < len(wanted):
        lines.append(f"{name} can serve with {' '.join(without)}")
    return lines


def _serving(student: Spec, teacher: Spec) -> str:
    """All methods that can compute something for a pair, with their default options."""
    found = []
    for name, method in METHODS.items():
        obstacles = method.obstacles(student, teacher)
        free = [term for term in method.terms if term not in obstacles]
        only = [f"{', '.join(free)} only"] if obstacles.keys() & set(method.terms) else []
        lacking = set(free) - method.weights.get(student.family, {}).keys()
        notes = "; ".join([*only, *(["give its weights"] if lacking else [])])
        found += [f"{name} ({notes})" if notes else name] if free else []
    return ", ".join(found) or "no method"
