"""Distillation methods, one file each; ``METHODS`` is all there is."""

import difflib
import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

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
from understudy.methods.overhaul import Overhaul
from understudy.methods.pairwise import Pairwise
from understudy.methods.pfi import PFI
from understudy.methods.pkd import PKD
from understudy.methods.rank_mimicking import RankMimicking
from understudy.methods.score_l2 import ScoreL2
from understudy.methods.soft_labels import SoftLabels
from understudy.outputs import Spec
from understudy.weighting import TermWeight

METHODS: dict[str, type[Method]] = {
    "frs": FRS,
    "dist2": Dist2,
    "rank_mimicking": RankMimicking,
    "pfi": PFI,
    "soft_labels": SoftLabels,
    "ld": LD,
    "bckd": BCKD,
    "hint": Hint,
    "pairwise": Pairwise,
    "nonlocal": NonLocal,
    "fkd": FKD,
    "overhaul": Overhaul,
    "cwd": CWD,
    "pkd": PKD,
    "mgd": MGD,
    "crosskd": CrossKD,
    "score_l2": ScoreL2,
    "fine_grained": FineGrained,
    "defeat": DeFeat,
    "gid": GID,
    "fgd": FGD,
}

__all__ = ["FRS", "METHODS", "Method", "build_methods", "method_class", "method_options", "resolve_options"]


def method_class(name: str) -> type[Method]:
    """Find a method by its name in ``METHODS``, or a method of one's own by ``package.module:Class``.

    Raises:
        UserError: there is no such method.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(METHODS)}"
        raise UserError(f"there is no method {name!r}; {hint}. A method of your own is named package.module:Class.")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the method {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{name!r} is {found!r}; expected a subclass of understudy.Method.")
    return found


def method_options(name: str) -> type[BaseModel]:
    """The typed options of a method: a weight for each term, the ramp, and the keyword arguments of its constructor."""
    method = method_class(name)
    fields: dict[str, Any] = {
        f"{term}_weight": (
            float | None,
            Field(None, ge=0, allow_inf_nan=False, description="None: the published weight of the student's family"),
        )
        for term in method.terms
    }
    fields |= {
        f"{term}_weight": (float, Field(0.0, ge=0, allow_inf_nan=False, description="0: this term is off"))
        for term in method.optional_terms
    }
    fields["ramp_steps"] = (
        int,
        Field(method.ramp_steps, ge=0, description="steps over which the weights grow from zero"),
    )
    fields |= {
        parameter.name: (parameter.annotation, parameter.default)
        for parameter in inspect.signature(method.__init__, eval_str=True).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return create_model(f"{method.__name__}Options", __config__=ConfigDict(extra="forbid"), **fields)


def resolve_options(entries: Mapping[str, Mapping[str, Any] | None], family: str) -> dict[str, dict[str, Any]]:
    """Check the options of every method and fill in all defaults, published weights included.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        family: of the student, to which published weights belong.

    Raises:
        UserError: listing every unknown method, unknown or wrong option and missing weight at once.
    """
    resolved, faults = _checked(entries, family)
    for name, options in resolved.items():
        faults += _unweighted(name, family, {term: options[f"{term}_weight"] for term in method_class(name).terms})
    if faults:
        raise UserError.listing("The methods of this run are not right:", faults)
    return resolved


def _checked(
    entries: Mapping[str, Mapping[str, Any] | None], family: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The options of every method with all defaults, and their faults; a weight that nobody published stays None."""
    faults: list[str] = []
    resolved: dict[str, dict[str, Any]] = {}
    for name, given in entries.items():
        try:
            method, options = method_class(name), method_options(name)(**(given or {})).model_dump()
        except UserError as error:
            faults.append(str(error))
            continue
        except ValidationError as error:
            faults += [_option_fault(name, method_options(name), fault) for fault in error.errors()]
            continue
        published = method.weights.get(family, {})
        for term in method.terms:
            if options[f"{term}_weight"] is None:
                options[f"{term}_weight"] = published.get(term)
        if all(options[f"{term}_weight"] == 0 for term in (*method.terms, *method.optional_terms)):
            weights = ", ".join(f"{term}_weight" for term in method.terms)
            faults.append(f"[methods.{name}] {weights}: all are 0, so it teaches nothing; leave it out")
        resolved[name] = options
    return resolved, faults + _same_names(resolved)


def _unweighted(name: str, family: str, weights: Mapping[str, float | None]) -> list[str]:
    """Ask for the weights of terms that have none."""
    return [
        f"[methods.{name}] no weight of {term!r} is published for a {family} student; give {term}_weight"
        for term, weight in weights.items()
        if weight is None
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


def build_methods(
    entries: Mapping[str, Mapping[str, Any] | None], student: Spec, teacher: Spec
) -> tuple[list[Method], dict[str, TermWeight]]:
    """Build the methods of a config, and by term name (``frs_feature``) the weight of every term.

    A term whose weight is 0 is not computed, and needs nothing of the pair.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        student: what is known of the student; of a pair that differs, that of its pairing.
        teacher: what is known of the teacher, likewise.

    Raises:
        UserError: as :func:`resolve_options`, or listing every term that cannot be computed for this pair, and what
            can be.
    """
    methods: list[Method] = []
    weights: dict[str, TermWeight] = {}
    unfit = False
    resolved, faults = _checked(entries, student.family)
    for name, options in resolved.items():
        method, ramp = method_class(name), options.pop("ramp_steps")
        possible = (*method.terms, *method.optional_terms)
        wanted = {term: weight for term in possible if (weight := options.pop(f"{term}_weight")) != 0}
        obstacles = method.obstacles(student, teacher, **options)
        misfits = _misfits(name, wanted, obstacles)
        served = {term: weight for term, weight in wanted.items() if term not in obstacles}
        if misfits or None in served.values():
            faults += misfits + _unweighted(name, student.family, served)
            unfit = unfit or bool(misfits)
            continue
        weights |= {f"{method.name}_{term}": TermWeight(weight, ramp) for term, weight in wanted.items()}
        try:
            methods.append(method.narrowed(tuple(wanted))(student, teacher, **options))
        except UserError as error:
            faults.append(str(error))
    if unfit:
        faults.append(
            f"what serves the student {student.name} and the teacher {teacher.name}: {_serving(student, teacher)}"
        )
    if faults:
        raise UserError.listing("The methods of this run are not right:", faults)
    return methods, weights


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
        found += [name if not obstacles else f"{name} ({', '.join(free)} only)"] if free else []
    return ", ".join(found) or "no method"


def _option_fault(name: str, options: type[BaseModel], fault: Any) -> str:
    key = str(fault["loc"][0])  # what follows names the branches of a choice of types
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, options.model_fields, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(options.model_fields)}"
        return f'[methods.{name}] has no option "{key}"; {hint}'
    expected = fault["msg"][:1].lower() + fault["msg"][1:]
    return f'[methods.{name}] "{key}": {expected}, got {fault["input"]!r}'
