"""Check the options of a method, and the class of a method itself, and describe the faults."""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, ValidationError, create_model

from understudy.methods.compatibility import READS
from understudy.text import closest, expected, mismatch

EVERY_FAMILY = "*"
"""Key of ``weights`` and ``largest_share`` for what holds for every family without an entry of its own."""

Share = Annotated[float, Field(gt=0, lt=1)]
OPTIONAL = "0: off, unless it has a share; None: as `balance` says."


class _Facts(BaseModel):
    """The class attributes that a method needs."""

    name: str = Field(min_length=1, examples=['"mine"'])
    terms: tuple[str, ...] = Field(min_length=1, examples=['("feature",)'])
    optional_terms: tuple[str, ...] = Field((), examples=['("box",)'])
    weights: dict[str, dict[str, Annotated[NonNegativeFloat, Field(strict=True, allow_inf_nan=False)]]] = Field(
        examples=['{"*": {"feature": 1.0}}']
    )
    ramp_steps: NonNegativeInt = Field(0, strict=True, examples=["500"])
    largest_share: dict[str, Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]] = Field(
        {}, examples=['{"*": 0.1}']
    )
    source: str = Field(examples=['"a paper, and the origin of the weights"'])
    checked: str = Field("", examples=['"authors\' code, owner/name @commit"'])
    reads: dict[str, tuple[str, ...]] = Field(examples=['{"feature": ("features",)}'])


@cache
def options_model(method: type[Any]) -> type[BaseModel]:
    """Return the typed options of a method in a config: its own, a weight and a share for each term, and the ramp."""
    fields: dict[str, Any] = {}
    for term in method.terms:
        meaning = "None: as `balance` says, or with `balance=off` the default weight of the student's family."
        fields[f"{term}_weight"] = NonNegativeFloat | None, Field(None, description=meaning)
    for term in method.optional_terms:
        fields[f"{term}_weight"] = NonNegativeFloat | None, Field(0.0, description=OPTIONAL)
    for term in (*method.terms, *method.optional_terms):
        meaning = "Share of the gradient (`balance`); None: an equal part of the method's."
        fields[f"{term}_share"] = Share | None, Field(None, description=meaning)
    meaning = "Share of the gradient of all terms (`balance`); None: an equal part of what other methods leave"
    limits = [
        f"{most:g}" if family == EVERY_FAMILY else f"{most:g} ({family})"
        for family, most in method.largest_share.items()
    ]
    meaning += f", at most {', '.join(limits)}." if limits else "."
    fields["share"] = Share | None, Field(None, description=meaning)
    meaning = f"Steps over which the weights increase linearly from zero; None: {method.ramp_steps}"
    meaning += ", and 0 with `balance`." if method.ramp_steps else "."
    fields["ramp_steps"] = NonNegativeInt | None, Field(None, description=meaning)
    return create_model(f"{method.__name__}Options", __base__=method.Options, **fields)


def read_options(model: type[BaseModel], given: Mapping[Any, Any], name: str) -> tuple[BaseModel | None, list[str]]:
    """Check options, and describe the invalid ones.

    Args:
        model: the options with their types.
        given: the options to check.
        name: the prefix of the keys: ``methods.frs``.

    Returns:
        All options, with defaults in place of wrong ones; None if an option without default is wrong or missing. And
        the faults.
    """
    try:
        return model.model_validate(dict(given)), []
    except ValidationError as error:
        wrong = {detail["loc"][0] if detail["loc"] else "": detail for detail in error.errors()}  # the last of a union
    right = {option: value for option, value in given.items() if option not in wrong}
    lacking = [option for option, field in model.model_fields.items() if field.is_required() and option not in right]
    faults = [_fault(model, name, str(option), given.get(option), detail) for option, detail in wrong.items()]
    return None if lacking or "" in wrong else model.model_validate(right), faults


def faults_of_class(method: type[Any]) -> Iterator[str]:
    """Return the faults of a class that is used as a method; any attribute may be missing or of another type."""
    facts = {fact: getattr(method, fact) for fact in _Facts.model_fields if hasattr(method, fact)}
    try:
        checked = _Facts.model_validate(facts)
    except ValidationError as error:
        for fact in dict.fromkeys(str(detail["loc"][0]) for detail in error.errors()):
            what = f"{fact} is {facts[fact]!r}, expected" if fact in facts else f"it has no {fact},"
            yield f"{what} e.g. {fact} = {(_Facts.model_fields[fact].examples or [''])[0]}"
    else:
        yield from _faults_of_terms(checked)
    if inspect.isabstract(method):
        yield f"it has no {', '.join(sorted(method.__abstractmethods__))}"
    terms = (*getattr(method, "terms", ()), *getattr(method, "optional_terms", ()))
    taken = {"terms", "ramp_steps", "share", *(f"{term}_{what}" for term in terms for what in ("weight", "share"))}
    for option in taken & method.Options.model_fields.keys():
        yield f"its option {option} has a reserved name: rename it"


def _faults_of_terms(facts: _Facts) -> Iterator[str]:
    terms = {*facts.terms, *facts.optional_terms}
    weighted = {term for weights in facts.weights.values() for term in weights}
    if unknown := sorted(weighted - terms):
        yield f"it has weights for {', '.join(unknown)}, but its terms are {', '.join(facts.terms)}"
    if unread := sorted(terms - facts.reads.keys()):
        yield f"reads has no entry for {', '.join(unread)}, e.g. reads = {{{unread[0]!r}: ('features',)}}"
    if unknown := sorted({name for names in facts.reads.values() for name in names} - READS.keys()):
        yield f"reads has the unknown inputs {', '.join(unknown)}; expected some of {', '.join(READS)}"


def _fault(model: type[BaseModel], name: str, option: str, value: Any, detail: Any) -> str:
    """Describe the fault of one option, from pydantic's detail."""
    reason = f"; {detail['ctx']['error']}" if detail["type"] in ("value_error", "assertion_error") else ""
    if not option:  # a fault of the options together
        return f"{name}{reason.replace(';', ':', 1) or ': ' + detail['msg']}"
    field = model.model_fields.get(option)
    if field is None:
        close = closest(option, model.model_fields)
        hint = f'did you mean "{close}"?' if close else f"it has {', '.join(model.model_fields) or 'none'}"
        return f'{name} has no option "{option}"; {hint}'
    wanted = expected(field.annotation, field.metadata)
    if detail["type"] == "missing" and len(detail["loc"]) == 1:  # not a part of its value
        return f"{name}.{option}: missing; expected {wanted}"
    return mismatch(f"{name}.{option}", wanted, value, field.annotation) + reason
