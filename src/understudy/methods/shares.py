"""Which terms of a config's methods are on, and the share of the gradient that each is to have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from understudy.methods.base import Method
from understudy.outputs import Spec

Options = Mapping[str, Any]

ROUNDING = 0.01
"""Difference of a share and the sum of its parts that is no contradiction: 0.27 for each third of 0.8."""


def terms_on(method: type[Method], options: Options) -> dict[str, float | None]:
    """Return the terms that are computed with their fixed weights; None: no weight is given."""
    weights = {term: options[f"{term}_weight"] for term in method.all_terms()}
    shared = {term for term in weights if options[f"{term}_share"] is not None}
    return {
        term: None if term in shared else weight for term, weight in weights.items() if weight != 0 or term in shared
    }


def share_faults(name: str, method: type[Method], options: Options, balance: float | None) -> Iterator[str]:
    """Describe shares of a method's terms that contradict its weights, or have no effect."""
    given = [f"{term}_share" for term in method.all_terms() if options[f"{term}_share"] is not None]
    given += ["share"] if options["share"] is not None else []
    if given and balance is None:
        yield f"methods.{name}.{given[0]} has no effect with balance=off: set balance, or a weight instead"
        return
    for term in method.all_terms():
        if options[f"{term}_share"] is not None and options[f"{term}_weight"]:
            yield f"methods.{name}.{term}_weight and {term}_share contradict each other: leave one of them out"
    whole, of_terms = options["share"], shares_of_terms(method, options)
    if whole is not None and not of_terms:
        yield f"methods.{name}.share has no effect, since all terms have a weight: leave out the share or a weight"
    elif whole is not None and (total := sum_if_known(of_terms.values())) is not None and differs(total, whole):
        parts = " + ".join(f"{term}_share={share:g}" for term, share in of_terms.items())
        together = f" = {total:g}" if len(of_terms) > 1 else ""
        yield (
            f"methods.{name}.share={whole:g} contradicts {parts}{together}: leave out share, or let the shares of the "
            "terms add up to it"
        )


def shares_of_terms(method: type[Method], options: Options) -> dict[str, float | None]:
    """Return the shares of a method's terms without a weight; None: it is a part of the method's share."""
    return {term: options[f"{term}_share"] for term, weight in terms_on(method, options).items() if weight is None}


def share_of_method(method: type[Method], options: Options) -> float | None:
    """Return the share of a method, if its options decide it; None: it is a part of the balance."""
    return options["share"] or sum_if_known(shares_of_terms(method, options).values())


def sum_if_known(shares: Iterable[float | None]) -> float | None:
    """Return the sum of shares; None if one is not known.

    >>> sum_if_known([0.25, 0.5]), sum_if_known([0.25, None])
    (0.75, None)
    """
    total = 0.0
    for share in shares:
        if share is None:
            return None
        total += share
    return total


def differs(total: float, whole: float) -> bool:
    """Return whether parts do not add up to a share, apart from their rounding."""
    return abs(total - whole) > ROUNDING + 1e-9


def shares_of(
    chosen: Mapping[str, tuple[type[Method], Options]], student: Spec, balance: float
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Divide the distillation's share of the gradient among methods and terms.

    Methods have equal parts of what those with a share of their own leave, and so do the terms of a method. A method
    takes no more than its ``largest_share`` unless its options say so; if none takes the rest, the whole is smaller.

    Args:
        chosen: class and options of each method by its name in the config.
        student: the student's Spec.
        balance: share of all of them together.

    Returns:
        The shares of each method's balanced terms, and the faults.

    Examples:
        >>> from understudy.methods.loading import method_class, resolve_options
        >>> from understudy.outputs import Spec
        >>> spec = Spec(channels=(64,) * 5, strides=(8, 16, 32, 64, 128), num_anchors=1, num_classes=3)
        >>> options = resolve_options({"frs": {}, "hint": {"share": 0.1}}, spec, balance=0.5)
        >>> shares_of({name: (method_class(name), options[name]) for name in options}, spec, 0.5)[0]
        {'frs': {'feature': 0.2, 'class': 0.2}, 'hint': {'feature': 0.1}}
    """
    wholes: dict[str, float | None] = {}
    terms: dict[str, dict[str, float | None]] = {}
    for name, (method, options) in chosen.items():
        if balanced := shares_of_terms(method, options):
            terms[name], wholes[name] = balanced, share_of_method(method, options)
    _limit(wholes, {name: method.largest_share_of(student) for name, (method, _) in chosen.items()}, balance)
    faults: list[str] = []
    whole = _divided(wholes, balance, f"balance={balance:g}", "methods", faults)
    return {
        name: _divided(parts, whole[name], f"the share {whole[name]:g} of {name}", "terms", faults)
        for name, parts in terms.items()
        if name in whole
    }, faults


def _limit(parts: dict[str, float | None], largest: Mapping[str, float], whole: float) -> None:
    """Give those whose equal part of the rest would be larger than their limit the limit, and so on with the others."""
    while open_ones := [name for name, part in parts.items() if part is None]:
        equal = (whole - sum(part for part in parts.values() if part is not None)) / len(open_ones)
        over = [name for name in open_ones if largest[name] < equal]
        if not over:
            return
        parts |= {name: largest[name] for name in over}


def _divided(
    parts: Mapping[str, float | None], whole: float, what: str, kind: str, faults: list[str]
) -> dict[str, float]:
    """Return all parts; those without a value get equal parts of the rest."""
    known = {name: part for name, part in parts.items() if part is not None}
    open_ones = [name for name in parts if name not in known]
    rest = whole - sum(known.values())
    if (open_ones and rest <= 1e-9) or sum(known.values()) >= 1:
        given = ", ".join(f"{name} {part:g}" for name, part in known.items())
        remedy = "lower them" if not open_ones else f"lower them, or give {', '.join(open_ones)} a share, too"
        faults.append(f"the shares of the {kind} {given} leave nothing of {what}: {remedy}")
        return {}
    return known | {name: round(rest / len(open_ones), 12) for name in open_ones}
