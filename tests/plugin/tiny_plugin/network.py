"""The plain networks of TinyYOLO; torch, torchvision and understudy.networks alone, so that an export can copy it."""

import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, generalized_box_iou_loss

from understudy.networks.geometry import StrideAnchors, integral

STRIDES = (8, 16, 32)


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.SiLU())


class Body(nn.Module):
    """Stages of strides 8, 16 and 32, as deep and wide as the detector's name says."""

    def __init__(self, depth: float, width: float):
        super().__init__()
        self.channels = [max(8, round(channels * width)) for channels in (64, 128, 256)]
        self.stem = nn.Sequential(
            convolution(3, self.channels[0], stride=2), convolution(*self.channels[:1] * 2, stride=2)
        )
        self.stages = nn.ModuleList()
        before = self.channels[0]
        for after in self.channels:
            blocks = [convolution(after, after) for _ in range(max(1, round(3 * depth)))]
            self.stages.append(nn.Sequential(convolution(before, after, stride=2), *blocks))
            before = after

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        level, levels = self.stem(images), OrderedDict()
        for number, stage in enumerate(self.stages):
            levels[str(number)] = level = stage(level)
        return levels


class Neck(nn.Module):
    """Top-down: every level gets the coarser one."""

    def __init__(self, channels: list[int], out_channels: int):
        super().__init__()
        self.laterals = nn.ModuleList(convolution(each, out_channels, 1) for each in channels)

    def forward(self, levels: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels.values(), strict=True)]
        for place in range(len(maps) - 1, 0, -1):
            maps[place - 1] = maps[place - 1] + F.interpolate(maps[place], size=maps[place - 1].shape[-2:])
        return OrderedDict(zip(levels, maps, strict=True))


class Backbone(nn.Module):
    """Body and neck, by the names that understudy's dense detectors read."""

    def __init__(self, body: Body, fpn: Neck):
        super().__init__()
        self.body, self.fpn = body, fpn

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        return self.fpn(self.body(images))


class Head(nn.Module):
    """Class scores, and a distribution for each side; a task-aligned assignment gives soft scores."""

    def __init__(self, channels: int, num_classes: int, reg_max: int):
        super().__init__()
        self.classes = nn.Sequential(convolution(channels, channels), nn.Conv2d(channels, num_classes, 1))
        self.boxes = nn.Sequential(convolution(channels, channels), nn.Conv2d(channels, 4 * (reg_max + 1), 1))

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        def flat(layer: nn.Module) -> Tensor:
            return torch.cat([layer(level).flatten(2).transpose(1, 2) for level in features], dim=1)

        return {"cls_logits": flat(self.classes), "bbox_regression": flat(self.boxes)}


def decoded(raw: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) of distributions (..., 4 * bins) around cells (..., 4), which are a stride wide."""
    centres, strides = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:3] - anchors[..., :1]
    distances = integral(raw) * strides
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)


class TinyYOLO(nn.Module):
    """Called as torchvision's detectors are, in evaluation."""

    def __init__(self, backbone: Backbone, head: Head, transform: GeneralizedRCNNTransform):
        super().__init__()
        self.backbone, self.head, self.transform = backbone, head, transform
        self.anchor_generator = StrideAnchors(STRIDES, (1.0,), (1.0,), offset=0.5)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        batch, _ = self.transform(images)
        features = list(self.backbone(batch.tensors).values())
        raw = self.head(features)
        anchors = self.anchor_generator(ImageList(batch.tensors, batch.image_sizes), features)
        counts = [level.shape[-2] * level.shape[-1] for level in features]
        per_level = {name: list(value.split(counts, dim=1)) for name, value in raw.items()}
        per_image = [list(each.split(counts)) for each in anchors]
        found = self.postprocess_detections(per_level, per_image, batch.image_sizes)
        return self.transform.postprocess(found, batch.image_sizes, sizes)

    def postprocess_detections(self, outputs: Any, anchors: Any, image_sizes: Any) -> list[dict[str, Tensor]]:
        logits, raw = (torch.cat(outputs[name], dim=1) for name in ("cls_logits", "bbox_regression"))
        found = []
        for own, distances, cells, size in zip(logits, raw, anchors, image_sizes, strict=True):
            scores, labels = own.sigmoid().max(-1)
            boxes = clip_boxes_to_image(decoded(distances, torch.cat(list(cells))), size)
            kept = batched_nms(boxes, scores, labels, 0.6)[:100]
            found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return found

    @torch.no_grad()
    def alignment(self, logits: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
        """How well each prediction of an image fits each object, (R, M): score times IoU to the sixth power."""
        scores = logits.sigmoid()[:, target["labels"]]
        return scores.sqrt() * box_iou(boxes, target["boxes"]).pow(6)


def box_loss(boxes: Tensor, others: Tensor) -> Tensor:
    return generalized_box_iou_loss(boxes, others, reduction="sum")


def build(design: Any, *, reg_max: int = 8) -> TinyYOLO:
    """Build a TinyYOLO.

    Args:
        design: the options of every builder.
        reg_max: the farthest distance of a side, in strides.
    """
    depth, width = (int(percent) / 100 for percent in re.fullmatch(r"d(\d+)_w(\d+)", design.backbone).groups())
    body = Body(depth, width * design.width_mult)
    backbone = Backbone(body, Neck(body.channels, design.neck_channels))
    head = Head(design.neck_channels, design.num_classes, reg_max)
    return TinyYOLO(backbone, head, GeneralizedRCNNTransform(**design.transform))


BUILDERS = {"torchvision": build, "mmdet": build}
