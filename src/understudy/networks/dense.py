"""Parts of the heads that predict at every cell: towers, their random initialisation, and the focal loss."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss
from torchvision.ops.misc import Conv2dNormActivation

STRIDES = (8, 16, 32, 64, 128)
"""Pixels per cell of the levels P3 to P7."""


def usual_groups(channels: int) -> int:
    """Return the usual number of groups of a GroupNorm for this many channels."""
    # 32 groups, as in torchvision and mmdet, from 128 channels on. Below, fewer: a group of one channel would normalise
    # the one cell of a small image's coarsest level to zero.
    return max(count for count in range(1, 33) if channels % count == 0 and channels // count >= min(4, channels))


def tower(channels: int, stacked_convs: int, groups: int | None, bias: bool = False) -> nn.Sequential:
    """Build a stack of 3x3 convolutions, each followed by GroupNorm and ReLU.

    Args:
        channels: of the features; every convolution keeps their number.
        stacked_convs: number of convolutions.
        groups: of the GroupNorm; None: there is none.
        bias: the convolutions have a bias.
    """
    norm = None if groups is None else partial(nn.GroupNorm, groups)
    layers = (Conv2dNormActivation(channels, channels, norm_layer=norm, bias=bias) for _ in range(stacked_convs))
    return nn.Sequential(*layers)


def initialise(head: nn.Module, class_logits: nn.Module | None = None) -> None:
    """Draw the weights of a head's convolutions from a normal distribution with a deviation of 0.01.

    Args:
        head: the head or a part of it.
        class_logits: its convolution that predicts the class scores. These begin at 0.01. All other biases are 0.
    """
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, -math.log(99) if layer is class_logits else 0.0)


def flat(level: Tensor) -> Tensor:
    """Lay out the output of a convolution (N, X, H, W) as (N, H * W, X)."""
    return level.flatten(2).transpose(1, 2)


def classification_loss(
    logits: Tensor, targets: Sequence[dict[str, Tensor]], matched_idxs: Sequence[Tensor], divisor: Tensor
) -> Tensor:
    """Compute the focal loss of the anchors that are not ignored, summed over the batch and divided by `divisor`.

    Args:
        logits: (N, R, K).
        targets: per image ``labels`` (M,).
        matched_idxs: per image (R,), number of the object, -1 background, -2 ignored.
        divisor: a scalar.
    """
    wanted = torch.zeros_like(logits)
    for image, (target, index) in enumerate(zip(targets, matched_idxs, strict=True)):
        positive = torch.where(index >= 0)[0]
        wanted[image, positive, target["labels"][index[positive]]] = 1
    counted = torch.stack(list(matched_idxs)) > -2
    return sigmoid_focal_loss(logits[counted], wanted[counted], reduction="sum") / divisor
