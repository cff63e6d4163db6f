"""Distillation methods, one file each; ``METHODS`` is all there is."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from understudy.errors import UserError
from understudy.methods.base import Method
from understudy.methods.frs import FRS
from understudy.outputs import Spec
from understudy.weighting import TermWeight

METHODS: dict[str, type[Method]] = {"frs": FRS}

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
        weights = [f"{term}_weight" for term in method.terms]
        if all(options[weight] == 0 for weight in weights):
            faults.append(f"[methods.{name}] {', '.join(weights)}: all are 0, so it teaches nothing; leave it out")
        for term in method.terms:
            if options[f"{term}_weight"] is None:
                options[f"{term}_weight"] = published.get(term)
            if options[f"{term}_weight"] is None:
                faults.append(
                    f"[methods.{name}] no weight of {term!r} is published for a {family} student; give {term}_weight"
                )
        resolved[name] = options
    if faults:
        raise UserError.listing("The methods of this run are not right:", faults)
    return resolved


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
    faults: list[str] = []
    unfit = False
    for name, options in resolve_options(entries, student.family).items():
        method, ramp = method_class(name), options.pop("ramp_steps")
        wanted = {term: weight for term in method.terms if (weight := options.pop(f"{term}_weight"))}
        if misfits := _misfits(name, wanted, method.obstacles(student, teacher, **options)):
            faults += misfits
            unfit = True
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


def _misfits(name: str, wanted: Mapping[str, float], obstacles: Mapping[str, str]) -> list[str]:
    """Why terms that are wanted of a method cannot be computed, and how the others can."""
    blocked = [term for term in wanted if term in obstacles]
    lines = [f"{name}_{term}: {obstacles[term]}" for term in blocked]
    if 0 < len(blocked) < len(wanted):
        lines.append(f"{name} can serve with {' '.join(f'methods.{name}.{term}_weight=0' for term in blocked)}")
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
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, options.model_fields, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(options.model_fields)}"
        return f'[methods.{name}] has no option "{key}"; {hint}'
    return f'[methods.{name}] "{key}": {fault["msg"].lower()}, got {fault["input"]!r}'
