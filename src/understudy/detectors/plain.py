"""Builds plain torchvision detectors from their options; needs torch and torchvision alone.

understudy copies this file beside every student it exports, so that the student runs without understudy::

    from detector import load
    model, classes = load("exported")
    detections = model([image])  # image: (3, H, W) float in 0..1; boxes come back in pixels of that image

or, on the command line, ``python detector.py exported photo.jpg``.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

FAMILIES = ("retinanet", "fcos")
RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
BACKBONES = (*RESNETS, "mobilenet_v2")
STRIDES = (8, 16, 32, 64, 128)


def build_network(
    name: str,
    num_classes: int,
    *,
    neck_channels: int = 256,
    width_mult: float = 1.0,
    norm: str = "batch",
    head_norm: str | None = None,
    anchor_scale: float = 4.0,
    image_mean: Sequence[float] = (0.485, 0.456, 0.406),
    image_std: Sequence[float] = (0.229, 0.224, 0.225),
    shorter_side: int = 800,
    longer_side: int = 1333,
) -> nn.Module:
    """Build a torchvision detector with five levels, P3 to P7, and random weights.

    Args:
        name: ``<family>_<backbone>``, e.g. ``"retinanet_resnet50"`` (see ``FAMILIES`` and ``BACKBONES``).
        num_classes: classes K, without background.
        neck_channels: channels of the feature pyramid and of the head.
        width_mult: width of a MobileNetV2; every other backbone has 1.
        norm: the backbone's normalisation, ``"batch"`` (trained) or ``"frozen"``.
        head_norm: ``"group"`` puts GroupNorm into RetinaNet's head, which has none by default; FCOS' always has it.
        anchor_scale: side of RetinaNet's smallest square anchor, in cells.
        image_mean: per channel, of images in 0..1.
        image_std: per channel, of images in 0..1.
        shorter_side: pixels to which an image is resized before detection,
        longer_side: unless its longer side would exceed this.

    Returns:
        A torchvision ``RetinaNet`` or ``FCOS``; labels are 0..K-1.
    """
    family, _, backbone_name = name.partition("_")
    backbone = _backbone_with_neck(
        backbone_name, neck_channels, width_mult, nn.BatchNorm2d if norm == "batch" else FrozenBatchNorm2d
    )
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "min_size": shorter_side,
        "max_size": longer_side,
        "image_mean": list(image_mean),
        "image_std": list(image_std),
        "score_thresh": 0.05,
    }
    group_norm = partial(nn.GroupNorm, _groups(neck_channels))
    if family == "retinanet":
        anchors = _retinanet_anchors(anchor_scale)
        head = RetinaNetHead(
            neck_channels,
            anchors.num_anchors_per_location()[0],
            num_classes,
            norm_layer=group_norm if head_norm == "group" else None,
        )
        return RetinaNet(backbone, anchor_generator=anchors, head=head, **common)
    return FCOS(backbone, head=_fcos_head(neck_channels, num_classes, group_norm), **common)


def load(folder: str | Path) -> tuple[nn.Module, list[str]]:
    """Read an exported student: the torchvision detector in ``eval()``, and the names of its classes."""
    description = json.loads((Path(folder) / "detector.json").read_text())
    model = build_network(**description["build"])
    model.load_state_dict(torch.load(Path(folder) / "weights.pt", map_location="cpu", weights_only=True))
    return model.eval(), description["classes"]


def backbone_stages(backbone_name: str) -> list[tuple[str, ...]]:
    """Names of the backbone's layers, grouped by the stage they belong to, in the order they can be frozen."""
    if backbone_name == "mobilenet_v2":
        return [tuple(map(str, range(*bounds))) for bounds in ((0, 4), (4, 7), (7, 14), (14, 18))]
    return [("conv1", "bn1", "layer1"), ("layer2",), ("layer3",), ("layer4",)]


def _backbone_with_neck(name: str, neck_channels: int, width_mult: float, norm: Callable) -> BackboneWithFPN:
    if name == "mobilenet_v2":
        # The last block of each resolution, as in the FCOS authors' MobileNetV2, without the convolution to 1280.
        body = models.mobilenet_v2(width_mult=width_mult, norm_layer=norm).features
        layers = {"6": "0", "13": "1", "17": "2"}
        channels = [body[int(layer)].out_channels for layer in layers]
    else:
        body = getattr(models, name)(norm_layer=norm)
        layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
        channels = [body.inplanes // 4, body.inplanes // 2, body.inplanes]
    return BackboneWithFPN(body, layers, channels, neck_channels, LastLevelP6P7(neck_channels, neck_channels))


def _retinanet_anchors(anchor_scale: float) -> AnchorGenerator:
    sizes = tuple(tuple(int(stride * anchor_scale * 2 ** (octave / 3)) for octave in range(3)) for stride in STRIDES)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


def _groups(channels: int) -> int:
    # 32 groups as everybody has them from 128 channels on. Below, fewer: a group of one channel would normalise the one
    # cell of a small image's coarsest level to zero.
    return max(groups for groups in range(1, 33) if channels % groups == 0 and channels // groups >= min(4, channels))


def _fcos_head(channels: int, num_classes: int, norm: Callable) -> FCOSHead:
    # torchvision's FCOSHead takes multiples of 32 channels only; its two halves take a norm for any width.
    head = FCOSHead(32, 1, num_classes)
    head.classification_head = FCOSClassificationHead(channels, 1, num_classes, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(channels, 1, norm_layer=norm)
    return head


def _main(folder: str, *images: str) -> None:
    from torchvision.io import ImageReadMode, decode_image

    model, classes = load(folder)
    for image in images:
        with torch.no_grad():
            found = model([decode_image(image, ImageReadMode.RGB) / 255])[0]
        print(image)
        for box, label, score in zip(found["boxes"].tolist(), found["labels"], found["scores"], strict=True):
            print(f"  {classes[label]:20} {score:.2f}  " + " ".join(f"{side:.1f}" for side in box))


if __name__ == "__main__":
    _main(*sys.argv[1:])
