"""Small dense detectors of every family and conventions, a padded batch of two images, and its objects."""

import math

import pytest
import torch
from torch import Tensor, nn

from understudy.detectors import Detector, build_detector

SIZES = [(80, 90), (57, 128)]  # each is padded further than to its own multiple of 32
OBJECTS = {
    "objects": [[8.0, 12, 60, 77], [30, 30, 88, 70], [2, 2, 20, 14], [33, 31, 61, 52]],
    "one pixel": [[40.0, 40, 41, 41]],
    "none": [],
}
LABELS = [0, 2, 1, 2]
ON_REGRESSION = {"norm_on_bbox": True, "centerness_on_reg": True, "conv_bias": True}
VARIANTS = {  # by mmdet's conventions where nothing else is said
    "retinanet, torchvision": ("retinanet", {}),
    "retinanet": ("retinanet", {}),
    "retinanet, other anchors": ("retinanet", {"octaves": 2, "ratios": [0.4, 1.7], "stacked_convs": 1}),
    "fcos, torchvision": ("fcos", {}),
    "fcos": ("fcos", {}),
    "fcos, centred": ("fcos", {"center_sampling": True, "box_loss": "giou", **ON_REGRESSION}),
    "gfl": ("gfl", {}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def untrained(variant: str, **options) -> Detector:
    """A detector with its first weights."""
    torch.manual_seed(0)
    family, settings = VARIANTS[variant]
    conventions = "torchvision" if variant.endswith("torchvision") else "mmdet"
    options = {"neck_channels": 16, "width_mult": 0.25, "shorter_side": 80, "longer_side": 128, **options}
    settings = {**settings, **options.pop("settings", {})}
    return build_detector(f"{family}_resnet18", 3, conventions=conventions, settings=settings, **options)


def small(variant: str, **options) -> Detector:
    """A detector that is confident here and there, so that there is something to detect."""
    detector = untrained(variant, **{"norm": "frozen", **options})
    classes, boxes = detector.network.head.classification_head, detector.network.head.regression_head
    nn.init.normal_(classes.cls_logits.weight, std=0.1)
    nn.init.constant_(classes.cls_logits.bias, -1.5)
    nn.init.normal_(boxes.bbox_reg.weight, std=0.1)
    if variant.startswith("fcos"):
        exponential = not getattr(detector.network.head, "norm_on_bbox", True)
        nn.init.constant_(boxes.bbox_reg.bias, math.log(30) if exponential else 1.5)
    if hasattr(boxes, "scales"):
        nn.init.uniform_(boxes.scales, 0.8, 1.2)
    return detector


def photos() -> tuple[list[Tensor], Tensor]:
    """Two images as a list, as torchvision takes them, and as a padded batch."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES]
    batch = torch.full((2, 3, 96, 128), 0.7)  # the padding must have no effect
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, batch


def targets(boxes: list[list[float]]) -> list[dict[str, Tensor]]:
    """Objects of the first image, and one of the second."""
    labels = torch.tensor(LABELS[: len(boxes)], dtype=torch.int64)
    second = {"boxes": torch.tensor([[5.0, 20, 70, 55]]), "labels": torch.tensor([2])}
    return [{"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels}, second]


def nothing() -> list[dict[str, Tensor]]:
    """No objects in either image."""
    return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in SIZES]


def losses_of(detector: Detector, batch: Tensor, truth: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    outputs = detector(batch, SIZES)
    return detector.loss(outputs, truth, detector.assign(outputs, truth))
