"""Small real detectors and a batch, for tests of a student beside its teacher."""

from typing import Any

import torch

from understudy.detectors import Detector, build_detector

BACKBONES = {
    "retinanet": "retinanet_resnet18",
    "fcos": "fcos_mobilenet_v2",
    "gfl": "gfl_resnet18",
    "faster_rcnn": "faster_rcnn_resnet18",
}
NAMES = ("a", "b", "c")
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
SIZES = [(64, 96), (50, 80)]
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 40, 50], [30, 20, 90, 60]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.tensor([[8.0, 8, 50, 50]]), "labels": torch.tensor([1])},
]


def small(name: str, classes: int = 3, **options: Any) -> Detector:
    """Build a detector, by its name or by its family alone."""
    torch.manual_seed(0)
    smallest: dict[str, Any] = {"neck_channels": 32, "width_mult": 0.25, "norm": "frozen"}
    return build_detector(BACKBONES.get(name, name), classes, **smallest | options)
