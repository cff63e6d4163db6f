"""torchvision's own detectors, for its published weights."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models import get_model
from torchvision.ops import FrozenBatchNorm2d

PUBLISHED = (
    "torchvision/retinanet_resnet50_fpn",
    "torchvision/retinanet_resnet50_fpn_v2",
    "torchvision/fcos_resnet50_fpn",
    "torchvision/fasterrcnn_resnet50_fpn",
    "torchvision/fasterrcnn_resnet50_fpn_v2",
    "torchvision/fasterrcnn_mobilenet_v3_large_fpn",
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
)
"""Detectors for which torchvision publishes weights: its own builders, named ``torchvision/<builder>``."""

ZERO_EPS = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")
"""Builders whose frozen batch normalisation has an epsilon of 0."""


def build_published(
    name: str,
    num_classes: int,
    *,
    norm_eps: float | None = None,
    shorter_side: int | None = None,
    longer_side: int | None = None,
    image_mean: Sequence[float] = (0.485, 0.456, 0.406),
    image_std: Sequence[float] = (0.229, 0.224, 0.225),
) -> nn.Module:
    """Build a detector with torchvision's own builder, so that its published weights fit.

    Args:
        name: one of ``PUBLISHED``.
        num_classes: classes K, without background. A RetinaNet and an FCOS have K logits, a Faster R-CNN K + 1.
        norm_eps: of the frozen batch normalisation; None: torchvision's value with its published weights, 0 in the
            first RetinaNet and Faster R-CNN on ResNet-50, 1e-5 in the others. Ignored by the ``_v2`` detectors, whose
            batch normalisation was trained.
        shorter_side: in pixels; None: the builder's own, 320 for the Faster R-CNN named 320 and 800 for the others.
        longer_side: in pixels; None: the builder's own, 640 and 1333.
        image_mean: per channel, of images in 0..1.
        image_std: likewise.
    """
    builder = name.removeprefix("torchvision/")
    if norm_eps is None:
        norm_eps = 0.0 if builder in ZERO_EPS else 1e-5
    options: dict[str, Any] = {"image_mean": list(image_mean), "image_std": list(image_std)}
    if shorter_side is not None:
        options["min_size"] = shorter_side
    if longer_side is not None:
        options["max_size"] = longer_side
    two_stage = builder.startswith("fasterrcnn")
    options["box_score_thresh" if two_stage else "score_thresh"] = 0.05
    outputs = num_classes + 1 if two_stage else num_classes
    network: Any = get_model(builder, weights=None, weights_backbone=None, num_classes=outputs, **options)
    if not builder.endswith("_v2"):  # whose batch normalisation was trained
        _freeze_norms(network.backbone.body, norm_eps)
    return network


def _freeze_norms(module: nn.Module, eps: float) -> None:
    """Replace all batch normalisation by frozen batch normalisation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_norms(child, eps)
