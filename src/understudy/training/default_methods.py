"""The methods of a run whose config names none: what proved best without tuning, as far as a pair permits it."""

from collections.abc import Mapping
from typing import Any, Literal

from understudy.config.methods import DEFAULT_METHODS
from understudy.methods.frs import FRS
from understudy.methods.loading import method_options
from understudy.methods.pkd import PKD
from understudy.methods.second_stage import SecondStage
from understudy.outputs import Spec


def default_methods(student: Spec, teacher: Spec, balance: float | None) -> dict[str, dict[str, Any]]:
    """Return the default methods for a pair, with their options.

    If the anchors differ, cells are compared. Terms that cannot be computed are left out. The others have equal shares.
    The second stage of a two-stage teacher replaces its dense scores and boxes, which are those of its first stage. A
    one-stage student learns from it alone, since the features of such a teacher slow it down.

    Args:
        student: the student's Spec; for detectors with other levels or classes, the reduced one of their pairing.
        teacher: the teacher's Spec, likewise.
        balance: share of the gradient of all terms; None: FRS is used as published.

    Examples:
        >>> spec = Spec(channels=(64,) * 5, strides=(8, 16, 32, 64, 128), num_anchors=1, num_classes=3)
        >>> default_methods(spec, spec, balance=None)
        {'frs': {}}
        >>> default_methods(spec, spec, balance=0.8)["pkd"]
        {'adapt': True, 'share': 0.2}
    """
    methods = _unreduced(balance)
    if balance and not SecondStage.obstacles(student, teacher):
        return _with_second_stage(methods, student, teacher, balance)
    frs, terms = methods["frs"], ["feature", "class", *(["box"] if balance else [])]
    if "class" in FRS.obstacles(student, teacher, **_without_weights(frs)):
        frs["scores"] = "cell"
    obstacles = FRS.obstacles(student, teacher, **_without_weights(frs))
    if "feature" not in obstacles:
        frs |= {f"{term}_weight": 0.0 for term in terms if term in obstacles}
    elif balance:
        return {"pkd": methods["pkd"]}  # if this cannot be computed either, building it states the reason
    if balance:
        methods["pkd"]["share"] = balance / (1 + len(set(terms) - set(obstacles)))
    return methods


def _with_second_stage(
    methods: dict[str, dict[str, Any]], student: Spec, teacher: Spec, balance: float
) -> dict[str, dict[str, Any]]:
    """Give features and second stage half of the balance each; a one-stage student has the second stage alone."""
    without_features = "feature" in FRS.obstacles(student, teacher) or PKD.obstacles(student, teacher, **methods["pkd"])
    if without_features or not student.two_stage:
        return {"second_stage": {}}
    quarter = {"share": balance / 4}
    frs = methods["frs"] | quarter | {"class_weight": 0.0, "box_weight": 0.0}
    return {"pkd": methods["pkd"] | quarter, "frs": frs, "second_stage": {}}


def in_common(begun: Mapping[str, Any], balance: float | None) -> dict[str, dict[str, Any]]:
    """Return the default methods of a run that began with some, with all options that are the same for every pair.

    Args:
        begun: the methods of the run, which may lack those that its pair does not permit.
        balance: as of :func:`default_methods`.

    Examples:
        >>> in_common({"pkd": {"adapt": True, "share": 0.8}}, balance=0.8)["pkd"]["adapt"]
        True
    """
    alone = set(begun) == {"second_stage"}
    kept = {*begun} if alone else {"pkd", *begun}  # under a balance, PKD is a default method of every other pair
    every = _unreduced(balance) | {"second_stage": {}}
    found = {name: given for name, given in every.items() if name in kept}
    filled = {name: method_options(name)(**given).model_dump(mode="json") for name, given in found.items()}
    of_pair = {"scores", "share", "ramp_steps"}
    return {
        name: {option: value for option, value in _without_weights(options).items() if option not in of_pair}
        for name, options in filled.items()
    }


def are_default(methods: Mapping[str, Mapping[str, Any]], balance: float | Literal["off"]) -> bool:
    """Return whether the methods of a run, with all their options, are the default ones of some pair.

    Examples:
        >>> are_default({"hint": {}}, balance=0.8)
        False
    """
    common = in_common(methods, None if balance == "off" else balance)
    return common.keys() == methods.keys() and all(common[name].items() <= methods[name].items() for name in common)


def _unreduced(balance: float | None) -> dict[str, dict[str, Any]]:
    return {name: dict(options) for name, options in DEFAULT_METHODS.items()} if balance else {"frs": {}}


def _without_weights(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if not name.endswith("_weight")}
