"""The methods of a run whose config names none: what proved best without tuning, as far as a pair permits it."""

from typing import Any

from understudy.config.methods import DEFAULT_METHODS
from understudy.methods.frs import FRS
from understudy.outputs import Spec


def default_methods(student: Spec, teacher: Spec, balance: float | None) -> dict[str, dict[str, Any]]:
    """Return the default methods for a pair, with their options.

    If the anchors differ, cells are compared. Terms that cannot be computed are left out. The others have equal shares.

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
    methods = {name: dict(options) for name, options in DEFAULT_METHODS.items()} if balance else {"frs": {}}
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


def _without_weights(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if not name.endswith("_weight")}
