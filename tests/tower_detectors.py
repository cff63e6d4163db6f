"""Tiny detectors with every kind of head that has two towers."""

import functools

import torch
from torch import nn

from understudy.detectors import Detector, build_detector

KINDS = {
    "retinanet": ("retinanet", {}),
    "retinanet, GroupNorm": ("retinanet", {"head_norm": "group"}),
    "retinanet, mmdet": ("retinanet", {"conventions": "mmdet"}),
    "retinanet, mmdet, GroupNorm": ("retinanet", {"conventions": "mmdet", "head_norm": "group"}),
    "fcos": ("fcos", {}),
    "fcos, mmdet": ("fcos", {"conventions": "mmdet"}),
    "fcos, mmdet, centre-ness beside boxes": (
        "fcos",
        {"conventions": "mmdet", "settings": {"centerness_on_reg": True, "norm_on_bbox": True}},
    ),
    "gfl": ("gfl", {}),
}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def tiny(kind: str, seed: int, num_classes: int = 2, neck_channels: int = 16, **options) -> Detector:
    """A detector with high scores everywhere: its head's weights are far larger than at the start of training."""
    family, own = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = build_detector(
            f"{family}_mobilenet_v2", num_classes, neck_channels=neck_channels, width_mult=0.35, **own, **options
        )
        for layer in detector.network.head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.12)
    return detector


@functools.cache
def tiny_teacher(kind: str, **options) -> Detector:
    return tiny(kind, 7, **options).requires_grad_(False).eval()
