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

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: as :func:`resolve_options`, or a method cannot serve this pair.
    """
    methods: list[Method] = []
    weights: dict[str, TermWeight] = {}
    for name, options in resolve_options(entries, student.family).items():
        method, ramp = method_class(name), options.pop("ramp_steps")
        for term in method.terms:
            weights[f"{method.name}_{term}"] = TermWeight(options.pop(f"{term}_weight"), ramp)
        methods.append(method(student, teacher, **options))
    return methods, weights


def _option_fault(name: str, options: type[BaseModel], fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, options.model_fields, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(options.model_fields)}"
        return f'[methods.{name}] has no option "{key}"; {hint}'
    return f'[methods.{name}] "{key}": {fault["msg"].lower()}, got {fault["input"]!r}'
