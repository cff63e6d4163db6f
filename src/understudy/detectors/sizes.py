"""Sizes of detectors: parameters and multiply-adds, computed without allocating any weight."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from understudy.detectors.build import plain_network
from understudy.detectors.shapes import shapes_only

IMAGE = (800, 1344)
"""Height and width in pixels of the image that sizes are computed for: 800 x 1333, padded to multiples of 32."""

CLASSES = 80
"""Classes of the listed detectors, as many as COCO has."""


class Size(NamedTuple):
    """The size of a detector.

    Attributes:
        parameters: all weights that training can change.
        multiply_adds: of one image's forward pass; papers call them "FLOPs".
    """

    parameters: int
    multiply_adds: int


def detector_size(name: str, num_classes: int = CLASSES, **options: Any) -> Size:
    """Compute the size of a detector by name; see :func:`measure`.

    Examples:
        >>> detector_size("fcos_mobilenet_v2", 20, neck_channels=64, width_mult=0.35).parameters
        756153
    """
    with shapes_only():
        return measure(plain_network(name, num_classes, **options))


def measure(network: Any) -> Size:
    """Count parameters, and multiply-adds of one image.

    Convolutions and matrix products are counted, as is usual. Normalisation, activations, pooling and the choice of
    boxes are not. The second stage of a two-stage detector is counted for as many proposals as it evaluates.

    Args:
        network: a plain detector on the meta device.
    """

    def run() -> None:
        features = list(network.backbone(torch.empty(1, 3, *IMAGE, device="meta")).values())
        if hasattr(network, "rpn"):
            network.rpn.head(features)
            cells = 7, 7  # of a pooled proposal, in every two-stage detector of the package
            proposals = torch.empty(network.rpn.post_nms_top_n(), features[0].shape[1], *cells, device="meta")
            network.roi_heads.box_predictor(network.roi_heads.box_head(proposals))
        else:
            network.head(features)

    network.eval()
    return Size(sum(parameter.numel() for parameter in network.parameters()), multiply_adds(run))


def multiply_adds(run: Callable[[], object]) -> int:
    """Count the multiply-adds of the convolutions and matrix products that a function computes in PyTorch."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2  # a multiplication and an addition are two operations
