"""Small Faster R-CNNs of several kinds, a padded batch of two images, and its objects."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN, fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from understudy.detectors import Detector, open_detector
from understudy.networks import build_network

SIZES = [(96, 128), (96, 112)]  # the second image is padded
OBJECTS = {
    "objects": [[8.0, 12, 60, 80], [30, 30, 96, 90], [2, 2, 20, 14]],
    "one pixel": [[40.0, 40, 41, 41]],
    "none": [],
}


def built(conventions: str = "torchvision", **options) -> nn.Module:
    options = {"width_mult": 0.35, "neck_channels": 16, "shorter_side": 96, "longer_side": 128, **options}
    return build_network(
        "faster_rcnn_mobilenet_v2", 5, conventions=conventions, settings={"fc_channels": 32}, **options
    )


def by_mmdets_conventions() -> nn.Module:
    return built("mmdet")


def one_map() -> nn.Module:
    """A user's own: no pyramid, 15 anchors per cell, a two-layer RPN head, a box head with batch normalisation."""
    body = mobilenet_v2(width_mult=0.35).features[:7]
    body.out_channels = 16
    anchors = AnchorGenerator(((8, 16, 32, 64, 128),), ((0.5, 1.0, 2.0),))
    return FasterRCNN(
        body,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(16, 15, conv_depth=2),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=5, sampling_ratio=1),
        box_head=FastRCNNConvFCHead((16, 5, 5), [8], [24], norm_layer=nn.BatchNorm2d),
        box_predictor=FastRCNNPredictor(24, 6),
        min_size=96,
        max_size=128,
    )


def mobilenet_v3() -> nn.Module:
    """One of torchvision's builders, of three levels with fifteen anchors; most proposals are below its threshold."""
    network = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=6,
        min_size=96,
        max_size=128,
        rpn_score_thresh=0.45,
    )
    network.roi_heads.box_head = TwoMLPHead(256 * 49, 32)
    network.roi_heads.box_predictor = FastRCNNPredictor(32, 6)
    return network.apply(_random_statistics)


def _random_statistics(module: nn.Module) -> None:
    if hasattr(module, "running_mean"):
        module.running_mean.normal_(std=0.1)


NETWORKS = {"built": built, "one map": one_map, "mobilenet_v3": mobilenet_v3, "mmdet": by_mmdets_conventions}
EVERY_KIND = pytest.mark.parametrize("kind", NETWORKS)


def detector_of(kind: str) -> Detector:
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    for part in (network.rpn.head.cls_logits, network.rpn.head.bbox_pred):
        nn.init.normal_(part.weight, std=0.3)  # proposals that differ
    nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.05)  # detections of several classes
    return open_detector(network)


def photos() -> tuple[list[Tensor], Tensor]:
    """Two images as a list, as torchvision takes them, and as our padded batch."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES]
    batch = torch.full((2, 3, 96, 128), 0.7)  # the padding must have no effect
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, batch


def targets(boxes: list[list[float]], *, second: bool = True) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(len(boxes))},
        {
            "boxes": torch.tensor([[5.0, 40, 70, 88]])[: int(second)],
            "labels": torch.tensor([4])[: int(second)],
        },
    ]
