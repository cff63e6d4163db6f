"""torchvision's RetinaNet, FCOS and Faster R-CNN on any backbone; needs torch and torchvision alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from .backbones import with_pyramid

if TYPE_CHECKING:
    from . import Design

STRIDES = (8, 16, 32, 64, 128)

PUBLISHED = (
    "torchvision/retinanet_resnet50_fpn",
    "torchvision/retinanet_resnet50_fpn_v2",
    "torchvision/fcos_resnet50_fpn",
    "torchvision/fasterrcnn_resnet50_fpn",
    "torchvision/fasterrcnn_resnet50_fpn_v2",
    "torchvision/fasterrcnn_mobilenet_v3_large_fpn",
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
)
"""Detectors for which torchvision publishes weights: ``torchvision/<builder>``."""


def retinanet(design: "Design") -> RetinaNet:
    """Build torchvision's ``RetinaNet`` with five levels, P3 to P7."""
    neck = design.neck_channels
    anchors = _retinanet_anchors(design.anchor_scale or 4.0)
    norm = partial(nn.GroupNorm, groups(neck)) if design.head_norm == "group" else None
    head = RetinaNetHead(neck, anchors.num_anchors_per_location()[0], design.num_classes, norm_layer=norm)
    backbone = with_pyramid(design.body(), neck, 3, LastLevelP6P7(neck, neck))
    return RetinaNet(
        backbone, design.num_classes, anchor_generator=anchors, head=head, score_thresh=0.05, **design.transform
    )


def fcos(design: "Design") -> FCOS:
    """Build torchvision's ``FCOS`` with five levels, P3 to P7."""
    neck = design.neck_channels
    backbone = with_pyramid(design.body(), neck, 3, LastLevelP6P7(neck, neck))
    head = fcos_head(neck, design.num_classes, partial(nn.GroupNorm, groups(neck)))
    return FCOS(backbone, design.num_classes, head=head, score_thresh=0.05, **design.transform)


def faster_rcnn(design: "Design", *, fc_channels: int = 1024) -> FasterRCNN:
    """Build torchvision's ``FasterRCNN`` with five levels, P2 to P6.

    Args:
        design: what every family has.
        fc_channels: of the two layers of the box head.
    """
    neck = design.neck_channels
    sizes = tuple((stride * (design.anchor_scale or 8.0),) for stride in (4, 8, 16, 32, 64))
    return FasterRCNN(
        with_pyramid(design.body(), neck, 2, LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=TwoMLPHead(neck * 7**2, fc_channels),  # torchvision pools 7 x 7 cells
        box_predictor=FastRCNNPredictor(fc_channels, design.num_classes + 1),
        **design.transform,
    )


def published(
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
        num_classes: classes K, without background: a RetinaNet and an FCOS have K logits, a Faster R-CNN K + 1.
        norm_eps: of the frozen batch normalisation; None is what torchvision gives its published weights: 0 in its
            first RetinaNet and Faster R-CNN on ResNet-50, 1e-5 in the others.
        shorter_side: pixels; None is the builder's own (320 for the Faster R-CNN called 320, 800 for the others).
        longer_side: likewise (640, 1333).
        image_mean: per channel, of images in 0..1.
        image_std: likewise.
    """
    builder = name.removeprefix("torchvision/")
    if norm_eps is None:
        norm_eps = 0.0 if builder in ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn") else 1e-5
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
    """Put frozen batch normalisation in the place of the other."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_norms(child, eps)


def groups(channels: int) -> int:
    """How many groups a GroupNorm of so many channels has."""
    # 32 groups as everybody has them from 128 channels on. Below, fewer: a group of one channel would normalise the one
    # cell of a small image's coarsest level to zero.
    return max(count for count in range(1, 33) if channels % count == 0 and channels // count >= min(4, channels))


def fcos_head(channels: int, num_classes: int, norm: Callable) -> FCOSHead:
    """FCOS' head as torchvision has it, for any number of channels."""
    # torchvision's FCOSHead takes multiples of 32 channels only; its two halves take a norm for any width.
    head = FCOSHead(32, 1, num_classes)
    head.classification_head = FCOSClassificationHead(channels, 1, num_classes, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(channels, 1, norm_layer=norm)
    return head


def _retinanet_anchors(anchor_scale: float) -> AnchorGenerator:
    sizes = tuple(tuple(int(stride * anchor_scale * 2 ** (octave / 3)) for octave in range(3)) for stride in STRIDES)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
