"""Two tiny detectors with queries, in the style of DETR and of RT-DETR, written against the public interface alone."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from understudy.boxes import BOX_CODES, BoxCode
from understudy.detectors import Detector
from understudy.outputs import Outputs, QueryOutputs, Target

CODE = "logits of the relative centre and size"
"""A box code that the package does not have."""


def _decode(raw: Tensor, anchors: Tensor, stride: float) -> Tensor:
    """Boxes around anchors: (..., 4) logits of an offset of up to a cell and of a side of up to 32 cells."""
    centre, (shift, size) = (anchors[..., :2] + anchors[..., 2:]) / 2, raw.sigmoid().chunk(2, dim=-1)
    middle, half = centre + (2 * shift - 1) * stride, 16 * size * stride
    return torch.cat([middle - half, middle + half], dim=-1)


BOX_CODES.setdefault(CODE, BoxCode(_decode))


def xyxy(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) as relative centre and size to xyxy in pixels."""
    height, width = image_size
    centre, size = (boxes * boxes.new_tensor([width, height, width, height])).chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


class Decoder(nn.Module):
    """Queries, decoder layers, and their predictions after each layer."""

    def __init__(self, channels: int, queries: int, layers: int, classes: int):
        super().__init__()
        self.queries = nn.Embedding(queries, channels)
        options: dict[str, Any] = {"dim_feedforward": 2 * channels, "dropout": 0.0, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(channels, 2, **options) for _ in range(layers))
        self.classes, self.boxes = nn.Linear(channels, classes), nn.Linear(channels, 4)

    def forward(self, memory: Tensor, image_size: tuple[int, int], start: Tensor | None = None) -> QueryOutputs:
        hidden = self.queries.weight.expand(len(memory), -1, -1)
        hidden = hidden if start is None else hidden + start
        logits, boxes = [], []
        for layer in self.layers:
            hidden = layer(hidden, memory)
            logits.append(self.classes(hidden))
            boxes.append(xyxy(self.boxes(hidden).sigmoid(), image_size))
        return QueryOutputs(logits, boxes)


class QueryNetwork(nn.Module):
    """Backbone stages, a neck of 1x1 convolutions on some of them, and a decoder."""

    def __init__(self, strides: Sequence[int], channels: int, queries: int, layers: int, classes: int):
        super().__init__()
        widths = {4: 8, 8: 8, 16: 12, 32: 16}
        sizes = list(widths.items())
        first = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        others = [
            nn.Sequential(nn.Conv2d(before, after, 2, stride=2), nn.ReLU())
            for (_, before), (_, after) in itertools.pairwise(sizes)
        ]
        self.stages, self.strides = nn.ModuleList([first, *others]), tuple(strides)
        self.neck = nn.ModuleDict({str(stride): nn.Conv2d(widths[stride], channels, 1) for stride in strides})
        self.decoder = Decoder(channels, queries, layers, classes)


class DETR(Detector):
    """One feature level, and a set of predictions from each decoder layer; no dense predictions."""

    family = "detr"

    def __init__(self, classes: int = 3, queries: int = 100, layers: int = 2, channels: int = 16, strides=(32,)):
        super().__init__(QueryNetwork(strides, channels, queries, layers, classes), "detr_tiny")

    def backbone(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        maps = []
        for stage in self.network.stages:
            images = stage(images)
            maps.append(images)
        return maps[1:]

    def neck(self, stages: Sequence[Tensor]) -> list[Tensor]:
        of_stride = dict(zip((8, 16, 32), stages, strict=True))
        return [self.network.neck[str(stride)](of_stride[stride]) for stride in self.network.strides]

    def head(
        self, features: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target] | None = None
    ) -> Outputs:
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
        queries = self.network.decoder(memory, image_size, self._denoised(targets, len(memory), memory))
        return Outputs(stages=[], features=list(features), queries=queries)

    def _denoised(self, targets: Sequence[Target] | None, images: int, like: Tensor) -> Tensor | None:
        """In training the first queries start from the objects, as denoising queries do."""
        if targets is None or not self.training:
            return None
        start = like.new_zeros(images, self.network.decoder.queries.num_embeddings, like.shape[-1])
        for image, target in enumerate(targets):
            count = min(len(target["labels"]), start.shape[1])
            start[image, :count, 0] = target["labels"][:count].to(start) + 1
        return start

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Give each object the free query of lowest cost, one object after another."""
        logits, boxes = outputs.queries.class_logits[-1], outputs.queries.boxes[-1]
        gt_index = torch.full(logits.shape[:2], -1)
        for image, target in enumerate(targets):
            for number, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
                gain = logits[image, :, label].sigmoid() + box_iou(boxes[image], box[None])[:, 0]
                gt_index[image, gain.masked_fill(gt_index[image] >= 0, -1).argmax()] = number
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        image, query = torch.where(gt_index >= 0)
        objects = gt_index[image, query].tolist()
        pairs = list(zip(image.tolist(), objects, strict=True))
        none = torch.zeros(0, 4)
        wanted = torch.stack([targets[i]["boxes"][number] for i, number in pairs]) if pairs else none
        classes, box = [], []
        for logits, boxes in zip(outputs.queries.class_logits, outputs.queries.boxes, strict=True):
            goal = torch.zeros_like(logits)
            for (i, number), q in zip(pairs, query.tolist(), strict=True):
                goal[i, q, targets[i]["labels"][number]] = 1
            classes.append(F.binary_cross_entropy_with_logits(logits, goal))
            box.append(generalized_box_iou_loss(boxes[image, query], wanted, reduction="sum") / max(1, len(pairs)))
        return {"loss_class": torch.stack(classes).sum(), "loss_box": torch.stack(box).sum()}

    def detect(self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        scores, labels = outputs.queries.class_logits[-1].sigmoid().max(-1)
        return [
            {"boxes": boxes, "scores": score, "labels": label}
            for boxes, score, label in zip(outputs.queries.boxes[-1], scores, labels, strict=True)
        ]


class RTDETR(DETR):
    """Three feature levels; an encoder scores every cell, and the decoder starts from its best cells."""

    family = "rtdetr"
    box_code = CODE

    def __init__(self, classes: int = 3, queries: int = 20, layers: int = 2, channels: int = 16):
        self.strides = (8, 16, 32)
        network = QueryNetwork(self.strides, channels, queries, layers, classes)
        network.encoder_classes, network.encoder_boxes = nn.Linear(channels, classes), nn.Linear(channels, 4)
        Detector.__init__(self, network, "rtdetr_tiny")

    def head(
        self, features: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target] | None = None
    ) -> Outputs:
        cells = [level.permute(0, 2, 3, 1)[:, :, :, None] for level in features]  # (N, H, W, 1, C)
        class_logits = [self.network.encoder_classes(level) for level in cells]
        memory = torch.cat([level.flatten(1, 3) for level in cells], dim=1)
        scores = torch.cat([level.flatten(1, 3) for level in class_logits], dim=1).amax(-1)
        best = scores.topk(min(self.network.decoder.queries.num_embeddings, scores.shape[1])).indices
        start = memory.take_along_dim(best[..., None], 1)
        missing = self.network.decoder.queries.num_embeddings - start.shape[1]
        return Outputs(
            stages=[],
            features=list(features),
            class_logits=class_logits,
            box_raw=[self.network.encoder_boxes(level) for level in cells],
            anchors=[self._anchors(level, stride) for level, stride in zip(features, (8, 16, 32), strict=True)],
            queries=self.network.decoder(memory, image_size, F.pad(start, (0, 0, 0, missing))),
        )

    @staticmethod
    def _anchors(level: Tensor, stride: int) -> Tensor:
        """A cell is its own anchor, (H, W, 1, 4)."""
        y, x = torch.meshgrid(*(torch.arange(side) * float(stride) for side in level.shape[-2:]), indexing="ij")
        return torch.stack([x, y, x + stride, y + stride], dim=-1)[:, :, None]

    def decode(self, outputs: Outputs) -> list[Tensor]:
        levels = zip(outputs.box_raw, outputs.anchors, (8, 16, 32), strict=True)
        return [_decode(raw, anchors, stride) for raw, anchors, stride in levels]

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Give an object the cell at its centre, on the middle level."""
        anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        gt_index = torch.full((len(targets), len(anchors)), -1)
        of_level = (anchors[:, 2] - anchors[:, 0]) == 16
        for row, target in zip(gt_index, targets, strict=True):
            for number, box in enumerate(target["boxes"]):
                distances = (centres - (box[:2] + box[2:]) / 2).abs().sum(-1).masked_fill(~of_level, 1e6)
                row[distances.argmin()] = number
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        matched = DETR.assign(self, outputs, targets)
        encoder = torch.cat([level.flatten(1, 3) for level in outputs.class_logits], dim=1)
        wanted = (gt_index >= 0).to(encoder)
        dense = F.binary_cross_entropy_with_logits(encoder.amax(-1), wanted)
        return {**DETR.loss(self, outputs, targets, matched), "loss_encoder": dense}
