"""Backbones by name, at any width, and their feature pyramid."""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Residual blocks of each stage, by depth."""

BACKBONES = (
    *(f"resnet{depth}" for depth in BLOCKS),
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    *(f"regnet_{kind}_{size}" for kind in "xy" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
)
"""Every listed backbone. Other ResNeXts, such as ``resnext152_32x8d``, are available, too."""

MOBILENET_STAGES = {
    "mobilenet_v2": (4, 7, 14, 18),
    "mobilenet_v3_small": (2, 4, 9, 12),
    "mobilenet_v3_large": (4, 7, 13, 16),
}
"""Layers up to the end of each stage of a MobileNet: up to the last block of a resolution, as in the FCOS authors' V2.

The convolution that follows widens the map for the classifier. A detector does without it.
"""


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with trained weights and fixed statistics (mmdet's ``norm_eval``)."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.eval()

    def train(self, mode: bool = True) -> "EvalBatchNorm2d":
        """Stay in evaluation mode, regardless of the mode of the rest of the network."""
        return super().train(False)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "sync": nn.BatchNorm2d,  # training synchronises it if there are several processes
    "eval": EvalBatchNorm2d,
    "frozen": FrozenBatchNorm2d,
}
"""Batch normalisation of a backbone, by name."""


@dataclass(frozen=True)
class Body:
    """A backbone without its classifier.

    Attributes:
        module: its named layers, which run in order.
        stages: names of the layers of each of its four stages; the last layers compute C2 to C5.
        channels: of C2 to C5.
    """

    module: nn.Module
    stages: tuple[tuple[str, ...], ...]
    channels: tuple[int, ...]


def build_body(name: str, *, width_mult: float = 1.0, norm: str = "batch", style: str = "pytorch") -> Body:
    """Build a backbone with random weights.

    Args:
        name: one of ``BACKBONES``, or another ``resnext<depth>_<groups>x<width>d``.
        width_mult: factor of its channels. They are rounded to multiples of 8 in a MobileNet, and to multiples of a
            group's width in a RegNet.
        norm: one of ``NORMS``.
        style: convolution of a ResNet's bottleneck that has its stride: the 3x3 (``"pytorch"``) or the first 1x1
            (``"caffe"``).

    Raises:
        ValueError: the backbone or the style is unknown.

    Examples:
        >>> build_body("resnet18", width_mult=0.25).channels
        (16, 32, 64, 128)
    """
    if style not in ("pytorch", "caffe"):
        raise ValueError(f"style: expected pytorch or caffe, got {style!r}")
    if residual := re.fullmatch(r"res(?:net|next)(\d+)(?:_(\d+)x(\d+)d)?", name):
        depth, groups, width = (int(part or 0) for part in residual.groups())
        return _resnet_body(depth, groups or 1, width or 64, width_mult, NORMS[norm], style)
    if name in MOBILENET_STAGES:
        return _mobilenet_body(name, width_mult, norm)
    if name in BACKBONES:
        return _regnet_body(name, width_mult, NORMS[norm])
    raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")


class ResNet(models.ResNet):
    """torchvision's residual network at any width, without its classifier. Its layers have torchvision's names.

    Args:
        depth: a key of ``BLOCKS``.
        groups: of the 3x3 convolutions.
        width_per_group: torchvision's ``width_per_group``: channels of a group in the first stage, at the usual width.
        base_channels: of the first stage; 64 at the usual width.
        norm_layer: builds the normalisation of a number of channels.
        style: as in :func:`build_body`.
    """

    def __init__(
        self,
        depth: int,
        groups: int,
        width_per_group: int,
        base_channels: int,
        norm_layer: Callable[..., nn.Module],
        style: str,
    ):
        nn.Module.__init__(self)
        # The fields that torchvision's _make_layer reads.
        self._norm_layer, self.dilation, self.groups, self.base_width = norm_layer, 1, groups, width_per_group
        self.inplanes = base_channels
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, base_channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for stage, blocks in enumerate(BLOCKS[depth]):
            layer: Any = self._make_layer(block, base_channels * 2**stage, blocks, stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", layer)
            if style == "caffe" and block is Bottleneck:
                layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Compute C5 from images (N, 3, H, W)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(features))))


def _resnet_body(
    depth: int, groups: int, width: int, width_mult: float, norm_layer: Callable[..., nn.Module], style: str
) -> Body:
    if depth not in BLOCKS or (groups > 1 and depth < 50):
        raise ValueError(
            f"there is no residual network of depth {depth} with {groups} groups; expected a depth of "
            f"{', '.join(map(str, BLOCKS))}, and several groups from depth 50 on"
        )
    base_channels = max(1, round(64 * width_mult))
    width = max(width, -(-64 // base_channels))  # at least one channel in each group of the first stage
    module = ResNet(depth, groups, width, base_channels, norm_layer, style)
    stages = (("conv1", "bn1", "relu", "maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",))
    return Body(module, stages, tuple(module.inplanes // 2**step for step in (3, 2, 1, 0)))


def _mobilenet_body(name: str, width_mult: float, norm: str) -> Body:
    norm_layer = NORMS[norm]
    if name != "mobilenet_v2":  # torchvision's V3 and its weights have these instead of 1e-5 and 0.1
        norm_layer = partial(norm_layer, eps=1e-3, **({} if norm == "frozen" else {"momentum": 0.01}))
    module: Any = models.get_model(name, width_mult=width_mult, norm_layer=norm_layer).features
    ends = MOBILENET_STAGES[name]
    stages = tuple(tuple(map(str, range(start, end))) for start, end in zip((0, *ends), ends, strict=False))
    return Body(module, stages, tuple(module[end - 1].out_channels for end in ends))


class _BlockSize(nn.Module):
    """Stand-in for a block of torchvision's RegNet, which keeps the block's sizes."""

    def __init__(self, *arguments: Any):
        super().__init__()
        _, self.width, _, _, _, self.group_width, self.bottleneck, self.squeeze = arguments


def _regnet_body(name: str, width_mult: float, norm_layer: Callable[..., nn.Module]) -> Body:
    """Build torchvision's RegNet with other widths; groups keep theirs if the stage is wide enough."""
    with torch.device("cpu"):  # torchvision computes the sizes with tensors
        published: Any = models.get_model(name, block_type=_BlockSize, num_classes=1)
    stages = list(published.trunk_output)
    sizes = [stage[0] for stage in stages]
    widths = [_multiple(size.width * width_mult, 8) for size in sizes]
    group_widths = [min(size.group_width, width) for size, width in zip(sizes, widths, strict=True)]
    widths = [_multiple(width, group_width) for width, group_width in zip(widths, group_widths, strict=True)]
    network = RegNet(
        BlockParams(
            depths=[len(stage) for stage in stages],
            widths=widths,
            group_widths=group_widths,
            bottleneck_multipliers=[size.bottleneck for size in sizes],
            strides=[2] * len(stages),
            se_ratio=sizes[0].squeeze,
        ),
        num_classes=1,
        stem_width=_multiple(published.stem[0].out_channels * width_mult, 8),
        norm_layer=norm_layer,
    )
    layers = OrderedDict([("stem", network.stem), *network.trunk_output.named_children()])
    return Body(nn.Sequential(layers), (("stem", "block1"), ("block2",), ("block3",), ("block4",)), tuple(widths))


def _multiple(channels: float, divisor: int) -> int:
    """Round a number of channels to the nearest multiple of a divisor, at least the divisor itself."""
    return max(divisor, round(channels / divisor) * divisor)


def with_pyramid(body: Body, neck_channels: int, first_stage: int, extra: ExtraFPNBlock) -> BackboneWithFPN:
    """Add a feature pyramid to a backbone.

    Args:
        body: the backbone.
        neck_channels: channels of every level.
        first_stage: the finest stage that the pyramid reads, 2 or 3.
        extra: computes the levels that are coarser than C5.

    Returns:
        torchvision's class; its ``stages`` are the names of the layers of each stage.
    """
    stages = body.stages[first_stage - 2 :]
    layers = {stage[-1]: str(number) for number, stage in enumerate(stages)}
    backbone: Any = BackboneWithFPN(body.module, layers, list(body.channels[first_stage - 2 :]), neck_channels, extra)
    backbone.stages = body.stages
    return backbone


class ConvLevels(ExtraFPNBlock):
    """P6 and P7 by convolutions of stride 2, as in mmdet; torchvision's ``LastLevelP6P7`` is one case of it.

    Args:
        stage_channels: of C5.
        neck_channels: of P5, P6 and P7.
        source: map that P6 is computed from: C5 (``"on_input"``) or P5 (``"on_output"``).
        relu: a ReLU before P7's convolution.

    Raises:
        ValueError: the source is neither of the two.
    """

    def __init__(self, stage_channels: int, neck_channels: int, source: str, relu: bool):
        super().__init__()
        sources = {"on_input": stage_channels, "on_output": neck_channels}
        if source not in sources:
            raise ValueError(f"extra_levels: expected one of {', '.join(sources)}, got {source!r}")
        self.p6 = nn.Conv2d(sources[source], neck_channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(neck_channels, neck_channels, kernel_size=3, stride=2, padding=1)
        for layer in (self.p6, self.p7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)  # ty: ignore[invalid-argument-type]
        self.source, self.relu = source, relu

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to P3..P5 (`results`), which were computed from C3..C5 (`x`)."""
        p6 = self.p6(x[-1] if self.source == "on_input" else results[-1])
        p7 = self.p7(p6.relu() if self.relu else p6)
        return [*results, p6, p7], [*names, "p6", "p7"]
