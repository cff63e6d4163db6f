"""The arithmetic of the methods: pure functions on tensors, no state.

Every function computes in float32 at least (half-precision inputs are promoted), states its reduction in words, and
names the paper and equation it implements. Letters are those of :mod:`understudy.outputs`.
"""

from understudy.functional.richness import (
    SMALLEST_MASS,
    Normaliser,
    feature_richness,
    highest_of_cell,
    weighted_class_loss,
    weighted_feature_loss,
)

__all__ = [
    "SMALLEST_MASS",
    "Normaliser",
    "feature_richness",
    "highest_of_cell",
    "weighted_class_loss",
    "weighted_feature_loss",
]
