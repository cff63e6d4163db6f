"""The options of a method: read from its constructor, checked, and what is wrong with them in words."""

import functools
import inspect
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError, create_model
from torch import nn

from understudy.errors import UserError
from understudy.outputs import Spec
from understudy.wording import closest, expected, mismatch, shown

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Checked(ABCMeta):
    """The type of the classes of methods: ``__init__`` gets options as it declares them, wherever they come from."""

    def __call__(cls, student, teacher, **options):  # without types: type checkers then go by those of `__init__`
        """Build a method."""
        for role, spec in (("student", student), ("teacher", teacher)):
            if not isinstance(spec, Spec):
                kind = type(spec).__name__
                raise UserError(f"A method is built from two Specs, got a {kind} as the {role}: give {role}.spec.")
        name = getattr(cls, "name", cls.__name__)
        fields, faults = _constructor_options(_owner(cls))
        if faults:
            raise UserError(f"the method {name} cannot be used: {'; '.join(faults)}")
        checked, wrong = read_options(_model(cls, fields), options, f"methods.{name}")
        if wrong:
            raise UserError.listing(f"The options of {name} are not right:", wrong)
        return super().__call__(student, teacher, **{option: getattr(checked, option) for option in options})


class _Facts(BaseModel):
    """What a class must say of itself to be a method."""

    name: str = Field(min_length=1, examples=['"mine"'])
    terms: tuple[str, ...] = Field(min_length=1, examples=['("feature",)'])
    optional_terms: tuple[str, ...] = Field((), examples=['("box",)'])
    weights: dict[str, dict[str, Annotated[NonNegativeFloat, Field(strict=True, allow_inf_nan=False)]]] = Field(
        examples=['{"fcos": {"feature": 1.0}}']
    )
    ramp_steps: NonNegativeInt = Field(0, strict=True, examples=["500"])
    source: str = Field(examples=['"a paper, and whose weights"'])


def options_model(method: type[Any]) -> type[BaseModel]:
    """The typed options of a method: a weight for each term, the ramp, and the keyword arguments of its constructor."""
    fields: dict[str, Any] = {}
    for term in method.terms:
        meaning = "None: the default weight of the student's family."
        fields[f"{term}_weight"] = NonNegativeFloat | None, Field(None, description=meaning)
    for term in method.optional_terms:
        fields[f"{term}_weight"] = NonNegativeFloat, Field(0.0, description="0: this term is off.")
    meaning = "Steps over which the weights grow from zero."
    fields["ramp_steps"] = NonNegativeInt, Field(method.ramp_steps, description=meaning)
    return _model(method, fields | _constructor_options(_owner(method))[0])


def read_options(model: type[BaseModel], given: Mapping[Any, Any], name: str) -> tuple[BaseModel | None, list[str]]:
    """Check options, and say in words what is wrong with them.

    Args:
        model: the options with their types.
        given: the options to check.
        name: what keys call the method: ``methods.frs``.

    Returns:
        All options, in place of wrong ones the defaults; None where one has no default. And the faults.
    """
    try:
        return model.model_validate(dict(given)), []
    except ValidationError as error:
        wrong = {detail["loc"][0]: detail for detail in error.errors()}  # of a choice of types the last is enough
    right = {option: value for option, value in given.items() if option not in wrong}
    lacking = [option for option, field in model.model_fields.items() if field.is_required() and option not in right]
    faults = [_fault(model, name, str(option), given.get(option), detail) for option, detail in wrong.items()]
    return None if lacking else model.model_validate(right), faults


def faults_of_class(method: type[Any]) -> Iterator[str]:
    """What keeps a class from being a method: of one's own, anything may be missing or of another type."""
    facts = {fact: getattr(method, fact) for fact in _Facts.model_fields if hasattr(method, fact)}
    try:
        checked = _Facts.model_validate(facts)
    except ValidationError as error:
        for fact in dict.fromkeys(str(detail["loc"][0]) for detail in error.errors()):
            what = f"{fact} is {facts[fact]!r}, expected" if fact in facts else f"it has no {fact},"
            yield f"{what} e.g. {fact} = {(_Facts.model_fields[fact].examples or [''])[0]}"
    else:
        weighted = {term for weights in checked.weights.values() for term in weights}
        if unknown := sorted(weighted - {*checked.terms}):
            yield f"it has weights for {', '.join(unknown)}, and the terms {', '.join(checked.terms)}"
    if inspect.isabstract(method):
        yield f"it has no {', '.join(sorted(method.__abstractmethods__))}"
    yield from _constructor_options(_owner(method))[1]


def _fault(model: type[BaseModel], name: str, option: str, value: Any, detail: Any) -> str:
    """What is wrong with one option, by pydantic's detail, in words."""
    field = model.model_fields.get(option)
    if field is None:
        close = closest(option, model.model_fields)
        hint = f'did you mean "{close}"?' if close else f"it has {', '.join(model.model_fields) or 'none'}"
        return f'{name} has no option "{option}"; {hint}'
    wanted = expected(field.annotation, field.metadata)
    if detail["type"] == "missing" and len(detail["loc"]) == 1:  # not a part of its value
        return f"{name}.{option}: missing; expected {wanted}"
    reason = f"; {detail['ctx']['error']}" if detail["type"] in ("value_error", "assertion_error") else ""
    return mismatch(f"{name}.{option}", wanted, value, field.annotation) + reason


def _model(method: type[Any], fields: dict[str, Any]) -> type[BaseModel]:
    return create_model(f"{method.__name__}Options", __config__=CONFIG, **fields)


def _owner(method: type[Any]) -> type[Any]:
    """The class whose constructor builds a method."""
    return next(owner for owner in method.__mro__ if "__init__" in vars(owner))


@functools.cache
def _constructor_options(owner: type[Any]) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Type and default of the keyword-only arguments of a constructor, by name, and what is wrong with its arguments.

    Those of a base class are among them where ``**options`` are passed on to it.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in owner.__mro__[: owner.__mro__.index(nn.Module)]:
        if "__init__" not in vars(base):
            continue
        try:
            parameters = inspect.signature(base.__init__, eval_str=True).parameters.values()
        except Exception as error:
            return {}, [f"the types of its options cannot be read: {error}"]
        named = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][3:]  # self and two Specs
        named += [each for each in parameters if each.kind is each.KEYWORD_ONLY]
        found = {each.name: each for each in named} | found
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    faults = [fault for parameter in found.values() if (fault := _fault_of_argument(parameter, owner))]
    return {name: _typed(parameter) for name, parameter in found.items()}, faults


def _typed(parameter: inspect.Parameter) -> tuple[Any, Any]:
    return parameter.annotation, ... if parameter.default is parameter.empty else parameter.default


def _fault_of_argument(parameter: inspect.Parameter, method: type[Any]) -> str:
    """What keeps an argument of a constructor from being an option."""
    name, (annotation, default) = parameter.name, _typed(parameter)
    if parameter.kind is not parameter.KEYWORD_ONLY:
        return f"its option {name} must come after a *: __init__(self, student, teacher, *, {name}...)"
    if annotation is parameter.empty:
        return f"its option {name} has no type, e.g. {name}: float"
    terms = [f"{term}_weight" for term in (*getattr(method, "terms", ()), *getattr(method, "optional_terms", ()))]
    if name.startswith("_") or hasattr(BaseModel, name) or name in ("ramp_steps", *terms):
        return f"its option {name} needs another name: this one is taken"
    try:
        model = _model(method, {name: (annotation, default)})
    except Exception:  # whatever pydantic makes of it
        return f"its option {name} is of a type that no config can hold, {inspect.formatannotation(annotation)}"
    if default is not ... and read_options(model, {name: default}, "")[1]:
        return f"its option {name} is {shown(default)} by default; expected {expected(annotation)}"
    return ""
