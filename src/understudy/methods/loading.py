"""Methods by name, and built with the weights of their terms."""

import importlib
import re
import traceback
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.base import Method
from understudy.methods.options import faults_of_class, options_model, read_options
from understudy.methods.shares import share_faults, share_of_method, shares_of, sum_if_known, terms_on
from understudy.methods.weighting import TermWeight
from understudy.outputs import Spec
from understudy.text import closest, shown

Entries = Mapping[str, Mapping[str, Any] | None]

SUMMARY = "Invalid method configuration:"


def method_class(name: str) -> type[Method]:
    """Return a method by its name in ``METHODS``, or your own by ``package.module:Class``.

    Raises:
        UserError: there is no such method, or the class is not one.

    Examples:
        >>> method_class("frs").terms
        ('feature', 'class')
    """
    method = METHODS[name] if name in METHODS else _imported(name)
    if not _is_method(method):
        kind = f"the class {method.__name__}" if isinstance(method, type) else f"a {type(method).__name__}"
        raise UserError(f"{name!r} is {kind}; expected a subclass of understudy.Method")
    if faults := list(faults_of_class(method)):
        raise UserError(f"the method {name} cannot be used: {'; '.join(faults)}")
    return method


def method_options(name: str) -> type[BaseModel]:
    """Return the typed options of a method in a config: its own, a weight for each term, and the ramp."""
    return options_model(method_class(name))


def is_own(name: str) -> bool:
    """Return whether a name stands for a class to import, ``package.module:Class``, and not for a known method."""
    return name not in METHODS and ":" in name


@contextmanager
def own_code(name: str, done: str) -> Generator[None]:
    """Turn an exception in the code of a user's method into a message; errors in this package keep their traceback."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may call sys.exit
        if name in METHODS:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({Path(place.filename).name}, line {place.lineno})"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
        raise UserError(f"the method {name} cannot be {done}: {reason}") from error


def resolve_options(entries: Entries, student: Spec, balance: float | None = None) -> dict[str, dict[str, Any]]:
    """Check the options of every method and fill in all defaults; default weights only without a balance.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        student: the student's Spec, on which default weights depend; a weight without a default stays None.
        balance: share of the gradient of all terms whose weights are not given; None: they have default weights.

    Raises:
        UserError: listing every unknown method and every unknown or wrong option at once.
    """
    resolved, faults = _checked(entries, student, balance)
    if faults:
        raise UserError.listing(SUMMARY, faults)
    return resolved


def given_share(entries: Entries) -> float | None:
    """Return the share of the gradient of all methods together, if their options decide it.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.

    Returns:
        The sum of the shares, 0 if all terms have weights; None if one follows from the balance, or an option is wrong.

    Examples:
        >>> given_share({"frs": {"share": 0.25}, "hint": {"feature_share": 0.5}}), given_share({"frs": {}})
        (0.75, None)
    """
    try:
        classes = {name: method_class(name) for name in entries}
    except UserError:
        return None
    read = {name: read_options(options_model(classes[name]), entries[name] or {}, name)[0] for name in entries}
    return sum_if_known(
        None if options is None else share_of_method(classes[name], options.model_dump())
        for name, options in read.items()
    )


def build_methods(
    entries: Entries, student: Spec, teacher: Spec, balance: float | None = None
) -> tuple[list[Method], dict[str, TermWeight]]:
    """Build the methods of a config, and the weight of every term by its name (``frs_feature``).

    A term whose weight is 0 is not computed, and imposes no requirement on the pair.

    Args:
        entries: method name to its options, as in the ``methods`` section of a config.
        student: the student's Spec; for detectors with other levels or classes, the reduced one of their pairing.
        teacher: the teacher's Spec, likewise.
        balance: share of the student's gradient (0..1) of all terms whose weights are not given; the weights of these
            have a share instead of a value, for :class:`.Balance`. None: default weights.

    Raises:
        UserError: listing at once every unknown method, every unknown or wrong option, every term that cannot be
            computed for this pair and the methods that can, every missing weight, and shares that leave nothing.

    Examples:
        >>> spec = Spec(channels=(64,) * 5, strides=(8, 16, 32, 64, 128), num_anchors=1, num_classes=3)
        >>> methods, weights = build_methods({"hint": {"feature_weight": 0.5}}, spec, spec)
        >>> weights
        {'hint_feature': TermWeight(weight=0.5, ramp_steps=0, share=None)}
    """
    methods: list[Method] = []
    weights: dict[str, TermWeight] = {}
    misfits: list[str] = []
    resolved, faults = _checked(entries, student, balance)
    chosen = {name: (method_class(name), options) for name, options in resolved.items()}
    shares, unshared = shares_of(chosen, student, balance) if balance is not None else ({}, [])
    faults += unshared
    for name, (method, given) in chosen.items():
        wanted, own = terms_on(method, given), shares.get(name, {})
        options = {option: given[option] for option in method.Options.model_fields}
        try:
            with own_code(name, "built"):
                obstacles = method.obstacles(student, teacher, **options)
                served = {term: wanted[term] for term in wanted if term not in obstacles and balance is None}
                misfit, lacking = _misfits(name, wanted, obstacles), _unweighted(name, student, served, options)
                if not (misfit or lacking):
                    methods.append(method(student, teacher, terms=tuple(wanted), **options))
                    for term, weight in wanted.items():
                        found = TermWeight(weight or 0.0, given["ramp_steps"], own.get(term))
                        weights[f"{method.name}_{term}"] = found
        except UserError as error:
            faults.append(str(error))
            continue
        faults += misfit + lacking
        misfits += misfit
    if misfits:
        faults.append(
            f"available for the student {student.name} and the teacher {teacher.name}: "
            + serving(student, teacher, balanced=balance is not None)
        )
    if faults:
        raise UserError.listing(SUMMARY, faults)
    return methods, weights


def _imported(name: Any) -> Any:
    if not isinstance(name, str) or not is_own(name):
        raise UserError(_unknown(name))
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise UserError(f"{name!r}: not an import path; expected package.module:Class, e.g. own_method:ScoredFeatures")
    module, _, attribute = name.partition(":")
    try:
        with own_code(name, "imported"):
            found = importlib.import_module(module)
    except UserError as error:
        cause = error.__cause__
        if not (isinstance(cause, ModuleNotFoundError) and cause.name and f"{module}.".startswith(f"{cause.name}.")):
            raise
        remedy = "run in the folder of the file, or put that folder on PYTHONPATH"
        raise UserError(f"the method {name} cannot be imported: there is no module {cause.name}; {remedy}") from cause
    if not hasattr(found, attribute):
        known = [each for each, value in vars(found).items() if _is_method(value)]
        hint = f"; its methods are {', '.join(known)}" if known else ""
        raise UserError(f"the method {name} cannot be imported: {module} has no {attribute}{hint}")
    return getattr(found, attribute)


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _unknown(name: Any) -> str:
    if not isinstance(name, str):
        known = [each for each, method in METHODS.items() if method is name]
        return f"a method's name is text, e.g. {shown(known[0] if known else 'frs')!r}; got {name!r}"
    parts = name.replace(",", " ").split()
    if len(parts) > 1:
        options = " ".join(f"--method {part}" for part in parts)
        return f"there is no method {name!r}; several methods: {options}, or methods=[{', '.join(parts)}]"
    aliases = {alias: known for known, method in METHODS.items() for alias in method.aliases}
    close = closest(name, [*METHODS, *aliases])
    meant = ":".join(name.rsplit(".", 1)) if "." in name else aliases.get(close or "", close)
    hint = f"did you mean {meant!r}?" if meant else f"available: {', '.join(METHODS)}."
    return f"there is no method {name!r}; {hint} For your own method use package.module:Class"


def _checked(entries: Entries, student: Spec, balance: float | None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the options of every method with all defaults, and their faults; a weight without default stays None."""
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
        if options["ramp_steps"] is None:
            options["ramp_steps"] = method.ramp_steps if balance is None else 0
        faults += share_faults(name, method, options, balance)
        defaults = method.default_weights(student, checked)
        for term in method.all_terms() if balance is None else ():
            if options[f"{term}_weight"] is None:  # a wrong one that was given is already a fault
                unknown = None if given.get(f"{term}_weight") is None else 1.0
                options[f"{term}_weight"] = defaults.get(term, unknown)
        if not terms_on(method, options):
            weights = ", ".join(f"{term}_weight" for term in method.terms)
            faults.append(f"methods.{name} has no effect: {weights} are all 0; raise one or leave out {name}")
        resolved[name] = options
    return resolved, faults + _same_names(resolved)


def _unweighted(name: str, student: Spec, weights: Mapping[str, float | None], options: Mapping[str, Any]) -> list[str]:
    """Describe the terms that have no weight, with the options that are the reason, and the keys to set."""
    missing = [term for term, weight in weights.items() if weight is None]
    if not missing:
        return []
    terms = ", ".join(repr(term) for term in missing)
    keys = ", ".join(f"methods.{name}.{term}_weight" for term in missing)
    which = "the term is" if len(missing) == 1 else "each term is"
    method = method_class(name)
    changed = [f"{key}={shown(value)}" for key, value in options.items() if value != _default(method, key)]
    by_options = changed and all(term in method.default_weights(student) for term in missing)
    given = f" with {' '.join(changed)}" if by_options else ""
    return [
        f"{name} has no default weight of {terms} for a student of the family {student.family}{given}: set {keys} so "
        f"that {which} 10 to 30 % of the detection loss (losses.csv shows raw terms)"
    ]


def _default(method: type[Method], option: str) -> Any:
    return method.Options.model_fields[option].default


def _same_names(entries: Iterable[str]) -> list[str]:
    """Describe entries that are methods of the same name, since their terms have the same names, too."""
    by_name: dict[str, list[str]] = {}
    for entry in entries:
        by_name.setdefault(method_class(entry).name, []).append(entry)
    return [
        f"{' and '.join(both)} have the same name, {name!r}, and so have their terms: leave one out, or give your own "
        "method another `name`"
        for name, both in by_name.items()
        if len(both) > 1
    ]


def _misfits(name: str, wanted: Collection[str], obstacles: Mapping[str, str]) -> list[str]:
    """Describe the terms that cannot be computed, grouped by reason, and how to use the others."""
    blocked: dict[str, list[str]] = {}
    for term in wanted:
        if term in obstacles:
            blocked.setdefault(obstacles[term], []).append(term)
    lines = [f"{', '.join(f'{name}_{term}' for term in terms)}: {reason}" for reason, terms in blocked.items()]
    without = [f"methods.{name}.{term}_weight=0" for terms in blocked.values() for term in terms]
    if 0 < len(without) < len(wanted):
        lines.append(f"the other terms of {name} can be used: {' '.join(without)}")
    return lines


def serving(student: Spec, teacher: Spec, *, balanced: bool = False) -> str:
    """List the methods that can compute something for a pair, with their default options, and what they lack.

    Args:
        student: the student's Spec.
        teacher: the teacher's Spec.
        balanced: whether weights follow from shares, so that none is lacking.
    """
    found = []
    for name, method in METHODS.items():
        obstacles = method.obstacles(student, teacher)
        free = [term for term in method.terms if term not in obstacles]
        only = [f"{', '.join(free)} only"] if obstacles.keys() & set(method.terms) else []
        lacking = not balanced and set(free) - method.default_weights(student).keys()
        notes = "; ".join([*only, *(["set its weights"] if lacking else [])])
        found += [f"{name} ({notes})" if notes else name] if free else []
    return ", ".join(found) or "no method"
