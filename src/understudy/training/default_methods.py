"""The methods of a run whose config names none: what proved best without tuning, as far as a pair permits it."""

from typing import Any

from understudy.config.keys import DEFAULT_METHODS
from understudy.methods.frs import FRS
from understudy.outputs import Spec


def default_methods(student: Spec, teacher: Spec, *, balanced: bool = True) -> dict[str, dict[str, Any]]:
    """Return the default methods for a pair, with their options.

    If the anchors differ, cells are compared; what cannot be computed is left out, as long as features can be compared.

    Args:
        student: the student's Spec; for detectors with other levels or classes, the reduced one of their pairing.
        teacher: the teacher's Spec, likewise.
        balanced: whether weights follow from shares; otherwise FRS is used as published.

    Examples:
        >>> spec = Spec(channels=(64,) * 5, strides=(8, 16, 32, 64, 128), num_anchors=1, num_classes=3)
        >>> default_methods(spec, spec, balanced=False)
        {'frs': {}}
    """
    methods = {name: dict(options) for name, options in DEFAULT_METHODS.items()} if balanced else {"frs": {}}
    frs = methods["frs"]
    if "class" in FRS.obstacles(student, teacher, **_without_weights(frs)):
        frs["scores"] = "cell"
    obstacles = FRS.obstacles(student, teacher, **_without_weights(frs))
    if "feature" in obstacles:
        return methods  # building them states the reason
    terms = ("class", "box") if balanced else ("class",)
    left_out = [term for term in terms if term in obstacles]
    if len(left_out) == 2:
        del methods["frs"]
    else:
        frs |= {f"{term}_weight": 0.0 for term in left_out}
    return methods


def _without_weights(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if not name.endswith("_weight")}
