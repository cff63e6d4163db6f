"""Balanced classes in a detector's own losses, whatever these are: rare classes get more of their gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.functional import class_factors
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Spec, Target

DOMINANT = 2 / 3
"""Part of all objects from which one class has so much of a loss that the others are learnt late."""


def check_class_balance(spec: Spec) -> None:
    """Check that a detector's own losses are sums over dense predictions of classes.

    Raises:
        UserError: they are not.
    """
    if not can_balance_classes({"dense": spec.dense, "objectness": spec.objectness}):
        kind = "the classes of proposals, in its second stage" if spec.objectness else spec.predictions
        raise UserError(
            f"class_balance=true balances the classes of dense predictions, and {spec.name} has {kind}. Leave it out, "
            "or use a one-stage detector."
        )


def can_balance_classes(facts: Mapping[str, Any]) -> bool:
    """Return whether the classes of a family can be balanced, given its facts (:attr:`.Family.facts`)."""
    return bool(facts.get("dense", True) and not facts.get("objectness", False))


def uneven_classes(labels: Tensor, classes: Sequence[str]) -> str:
    """Say which class has most of the objects; empty: none has, or there is no other.

    Args:
        labels: (M,), those of all objects.
        classes: their names.
    """
    counts = labels.bincount(minlength=len(classes))
    most, total = int(counts.max()), len(labels)
    if len(classes) < 2 or most < DOMINANT * max(1, total):
        return ""
    return f"{most / total:.0%} of the objects are of one of {len(classes)} classes, {classes[int(counts.argmax())]}"


def with_balanced_classes(outputs: Outputs, targets: Sequence[Target], gt_index: Tensor, num_classes: int) -> Outputs:
    """Return the same record, in which predictions at objects of rare classes get more gradient than others.

    The gradient at each anchor with an object is multiplied by the square root of the factor of the object's class
    (:func:`.class_factors` of the anchors of each class in the batch), divided by the mean of these roots, so that
    objects keep their weight against the background. A loss that is a sum over anchors has the gradient of the sum with
    these weights then; its value is that without them.

    Args:
        outputs: the record of the batch, with dense predictions.
        targets: ground truth per image.
        gt_index: (N, R), the anchors' objects; see :meth:`.Detector.assign`.
        num_classes: classes K.
    """
    weights = _weights(targets, gt_index, num_classes)
    parts = weights.split([anchors[..., 0].numel() for anchors in outputs.anchors], dim=1)
    levels = [part.reshape(-1, *own.shape[:-1], 1) for part, own in zip(parts, outputs.anchors, strict=True)]
    return replace(
        outputs,
        class_logits=[_weighted(*each) for each in zip(outputs.class_logits, levels, strict=True)],
        box_raw=[_weighted(*each) for each in zip(outputs.box_raw, levels, strict=True)],
        extra={name: _weighted(value, weights) for name, value in outputs.extra.items()},
    )


def _weights(targets: Sequence[Target], gt_index: Tensor, num_classes: int) -> Tensor:
    """Return the weight of each anchor, (N, R): 1 without an object, and 1 in the mean over those with one."""
    labels = [target["labels"][index[index >= 0]] for target, index in zip(targets, gt_index, strict=True)]
    classes = torch.cat(labels)
    counts = averaged_over_processes(classes.bincount(minlength=num_classes).float(), least=0)
    factors = class_factors(counts).sqrt()
    weights = torch.ones_like(gt_index, dtype=factors.dtype)
    weights[gt_index >= 0] = (factors / ((factors * counts).sum() / counts.sum()))[classes]
    return weights


def _weighted(value: Tensor, weights: Tensor) -> Tensor:
    """Return a view of a value, whose gradient is multiplied by weights on its way back."""
    view = value.view_as(value)
    if view.requires_grad:
        view.register_hook(lambda gradient: gradient * weights.to(gradient.dtype))
    return view
