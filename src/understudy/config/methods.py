"""The methods of a distillation run whose config names none."""

from typing import Any

DEFAULT_METHODS: dict[str, dict[str, Any]] = {
    "pkd": {"adapt": True},
    "frs": {
        "normaliser": "pyramid",
        "standardise": "level",
        "class_balance": True,
        "boxes": "decoded",
        "box_weight": None,
    },
}
"""PKD's features, and FRS' features, classes and decoded boxes, all in equal shares; docs/balance.md says why."""
