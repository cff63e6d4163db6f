"""Read the sizes of an mmdet detector from the shapes of its tensors."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from understudy.checkpoints.mmdet_layout import MOBILENET_KEYS, REGNET_KEYS, Keys
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.networks.backbones import BACKBONES, BLOCKS, build_body
from understudy.text import listed


class BackboneSizes:
    """Sizes of backbone, neck and towers.

    Attributes:
        state: the tensors, from which a family's layout reads further sizes.
        backbone: name of the backbone.
        width_mult: width of the backbone.
        bottleneck: the backbone has bottlenecks, whose style is not in the tensors.
        sizes: sizes of the backbone, by their names in a config.
        keys: names of the backbone's parameters, if they are not those of a ResNet.
        stem: name of the weight of the plain network's first convolution.
        neck_channels: channels of the neck.
        group_norm: the towers of the head have GroupNorm.
        conv_bias: the convolutions of the towers have biases.
        stacked_convs: convolutions of each tower.

    Raises:
        UserError: a tensor is missing, or the backbone is not supported.
    """

    keys: Keys = ()
    stem = "backbone.body.conv1.weight"

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state
        if "backbone.features.0.0.weight" in state:
            self.backbone, self.width_mult, self.bottleneck, self.sizes = "mobilenet_v2", 1.0, False, {}
            self.keys, self.stem = MOBILENET_KEYS, "backbone.body.0.0.weight"
        elif self.shape("backbone.conv1.weight", 4)[-1] == 3:
            self.backbone, self.width_mult, self.bottleneck, self.sizes = self._regnet(), 1.0, False, {}
            self.keys, self.stem = REGNET_KEYS, "backbone.body.stem.0.weight"
        else:
            self.backbone, self.width_mult, self.bottleneck, self.sizes = self._residual_network()
        self.neck_channels = self.shape("neck.lateral_convs.0.conv.weight", 4)[0]
        self.group_norm = "bbox_head.cls_convs.0.gn.weight" in state
        self.conv_bias = "bbox_head.cls_convs.0.conv.bias" in state
        self.stacked_convs = self._count(r"bbox_head\.cls_convs\.(\d+)\.conv\.weight")

    def shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            UserError: it is missing, or has another number of dimensions.
        """
        if key not in self.state:
            raise UserError(f"The file does not contain {key}, from which the detector's sizes are read.")
        shape = tuple(self.state[key].shape)
        if len(shape) != dimensions:
            raise UserError(f"{key} has the shape {shape}; expected {dimensions} dimensions.")
        return shape

    def dense_head(self, layer: str, title: str, anchors: int | None = 1) -> dict[str, int]:
        """Read the sizes of a one-stage head from its last layers.

        Args:
            layer: prefix of their names.
            title: the family's title in messages.
            anchors: anchors per cell; None: a quarter of the box maps.

        Raises:
            UserError: the numbers of maps do not fit each other.
        """
        classes = self.shape(f"bbox_head.{layer}_cls.weight", 4)[0]
        boxes = self.shape(f"bbox_head.{layer}_reg.weight", 4)[0]
        anchors = boxes // 4 if anchors is None else anchors
        count = classes // max(1, anchors)
        if boxes % 4 or classes % max(1, anchors) or not count:
            raise UserError(f"{title} cannot have a head with {classes} class maps and {boxes} box maps.")
        return {"num_classes": count, "anchors": anchors, "box_maps": boxes}

    def _residual_network(self) -> tuple[str, float, bool, dict[str, int]]:
        """Return name, width, whether it has bottlenecks, and the sizes by their names in a config."""
        base = self.shape("backbone.conv1.weight", 4)[0]
        blocks = tuple(self._count(rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight") for stage in range(1, 5))
        bottleneck = "backbone.layer1.0.conv3.weight" in self.state
        depths = [depth for depth, counts in BLOCKS.items() if counts == blocks and (depth >= 50) == bottleneck]
        if not depths or not base:
            raise UserError(
                f"The backbone is not supported: it has {blocks} {'bottlenecks' if bottleneck else 'basic blocks'} in "
                f"its four stages. Expected a ResNet or ResNeXt of depth {', '.join(map(str, BLOCKS))}."
            )
        width_mult, sizes = base / 64, {"depth": depths[0], "base_channels": base}
        if not bottleneck:
            return f"resnet{depths[0]}", width_mult, False, sizes
        channels, per_group = self.shape("backbone.layer1.0.conv2.weight", 4)[:2]
        groups = channels // max(1, per_group)
        width = math.ceil(per_group * 64 / base)  # so that int(base * width / 64) is per_group
        if groups == 1 and width == 64:
            return f"resnet{depths[0]}", width_mult, True, sizes | {"groups": 1}
        return f"resnext{depths[0]}_{groups}x{width}d", width_mult, True, sizes | {"groups": groups}

    def _regnet(self) -> str:
        """Return the name of a RegNet, whose stem is a 3x3 convolution."""
        stages = range(1, 5)
        blocks = [self._count(rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight") for stage in stages]
        widths = [self.shape(f"backbone.layer{stage}.0.conv3.weight", 4)[0] for stage in stages]
        known = [name for name in BACKBONES if name.startswith("regnet_x")]
        for name in known:
            with shapes_only():
                body = build_body(name)
            depths = [len(list(stage.children())) for stage in list(body.module.children())[1:]]
            if (depths, list(body.channels)) == (blocks, widths):
                return name
        raise UserError(
            f"The RegNet of {listed(blocks)} blocks and {listed(widths)} channels in its four stages is not supported; "
            f"expected one of {', '.join(known)}, with torchvision's channels."
        )

    def _count(self, pattern: str) -> int:
        found = [re.fullmatch(pattern, key) for key in self.state]
        return 1 + max((int(match[1]) for match in found if match), default=-1)
