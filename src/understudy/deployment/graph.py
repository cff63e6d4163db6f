"""A detector as one graph without branches, from pixels to detections, which ``torch.onnx.export`` takes.

Letters of the shapes: N images, R anchors of all levels together, R_l of one level, A of a cell, K classes, P
candidates, D detections of an image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from understudy.deployment.suppression import kept
from understudy.detectors import Detector
from understudy.detectors.dense import DenseDetector
from understudy.detectors.faster_rcnn import FasterRCNNDetector
from understudy.errors import UserError
from understudy.networks.faster_rcnn import MMDetRoIPool
from understudy.networks.geometry import PADDING


class Found(NamedTuple):
    """The detections of N images, padded to D rows.

    Attributes:
        boxes: (N, D, 4), xyxy in pixels of the image, clipped to it; zeros beyond the count.
        scores: (N, D), from the best on; 0 beyond the count.
        labels: (N, D) int64, 0..K-1; -1 beyond the count.
        count: (N,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor


class Raw(NamedTuple):
    """The predictions at every anchor of N images, decoded but not chosen from.

    Attributes:
        boxes: (N, R, 4), xyxy in pixels of the image, clipped to it.
        scores: (N, R, K), 0 to 1.
    """

    boxes: Tensor
    scores: Tensor


class Graph(nn.Module):
    """From images (N, 3, H, W), RGB, float in 0..1 or uint8, neither normalised nor padded, to detections.

    Args:
        detector: in ``eval()``.

    Raises:
        UserError: the detector has no graph.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        if not isinstance(detector, DenseDetector):
            raise UserError(
                f"A {detector.spec.name} cannot be exported as a graph: its class {type(detector).__name__} is not a "
                "DenseDetector. Export torch weights: --format torch."
            )
        self.detector = detector
        self.network: Any = detector.network

    def forward(self, image: Tensor) -> Found | Raw:
        """Compute the detections."""
        raise NotImplementedError

    def predicted(self, image: Tensor) -> tuple[list[Tensor], dict[str, list[Tensor]], list[Tensor], tuple[Any, Any]]:
        """Compute features, the head's outputs per level, the anchors (R_l, 4) per level, and the image's size."""
        detector, size = self.detector, (image.shape[-2], image.shape[-1])
        images = image / 255 if image.dtype == torch.uint8 else image
        images = self.network.transform.normalize(images)
        height, width = ((side + PADDING - 1) // PADDING * PADDING for side in size)
        images = F.pad(images, (0, PADDING - 1, 0, PADDING - 1))[:, :, :height, :width]
        features = detector.neck(detector.body(images))
        anchors = []
        for first, stride, level in zip(detector.spec.first_anchors, detector.spec.strides, features, strict=True):
            steps = detector.anchor_steps(stride, (level.shape[-2], level.shape[-1]), (height, width))
            anchors.append(_laid(torch.tensor(first), level, steps))
        raw = detector.head_outputs(features)
        counts = [level.shape[0] for level in anchors]
        outputs = {name: list(torch.split(values.float(), counts, dim=1)) for name, values in raw.items()}
        return features, outputs, anchors, size

    def decoded(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Decode box outputs (N, P, D) at anchors (N, P, 4) or (P, 4)."""
        anchors = anchors.expand(*raw.shape[:-1], 4)
        return self.detector.boxes_at(raw.flatten(0, 1), anchors.flatten(0, 1)).unflatten(0, raw.shape[:2])


class DenseGraph(Graph):
    """The graph of a detector of one stage: threshold, best candidates of each level, NMS, best overall."""

    def forward(self, image: Tensor) -> Found:
        """Compute the detections of images; see :class:`Graph`."""
        _, raw, anchors, size = self.predicted(image)
        network, parts = self.network, []
        scores, quality = self.detector.scored(raw)
        classes = scores[0].shape[-1]
        for level, (level_scores, own) in enumerate(zip(scores, anchors, strict=True)):
            best, places = _best(level_scores.flatten(1), network.score_thresh, network.topk_candidates)
            cells = (places // classes).clamp(max=own.shape[0] - 1)
            boxes = self.decoded(_rows(raw["bbox_regression"][level], cells), own[cells])
            if quality is not None:
                best = best * quality[level].gather(1, cells)
            parts.append((_clipped(boxes, size), best, places % classes))
        boxes, scores, labels = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        if self.detector.least_side is not None:
            scores = scores * _visible(boxes, self.detector.least_side)
        of_class = scores[:, None] * (labels[:, None] == torch.arange(classes)[:, None])
        found = kept(boxes, of_class, network.nms_thresh, network.detections_per_img)
        return _padded(boxes, scores * found, labels, network.detections_per_img)


class RawGraph(Graph):
    """The graph of a detector of one stage that ends before the choice of detections."""

    def __init__(self, detector: Detector):
        super().__init__(detector)
        if detector.spec.two_stage:
            raise UserError(
                f"A {detector.spec.name} has no raw predictions to export: its second stage needs proposals, which "
                "NMS chooses. Leave out --raw."
            )

    def forward(self, image: Tensor) -> Raw:
        """Compute boxes and scores at every anchor; see :class:`Graph`."""
        _, raw, anchors, size = self.predicted(image)
        scores, quality = self.detector.scored(raw)
        boxes = self.decoded(torch.cat(raw["bbox_regression"], dim=1), torch.cat(anchors))
        joined = torch.cat(scores, dim=1)
        if quality is not None:
            joined = joined * torch.cat(quality, dim=1)[:, :, None]
        return Raw(_clipped(boxes, size), joined)


class TwoStageGraph(Graph):
    """The graph of a Faster R-CNN."""

    def forward(self, image: Tensor) -> Found:
        """Compute the detections of images; see :class:`Graph`."""
        features, raw, anchors, size = self.predicted(image)
        heads = self.network.roi_heads
        proposals, valid = self._proposals(raw, anchors, size)  # (N, P, 4), (N, P)
        images, places = torch.where(valid)
        chosen = proposals[images, places]  # (M, 4): those of all images
        pooled = self._pooled(features, torch.cat([images[:, None].to(chosen.dtype), chosen], dim=1))
        class_logits, deltas = heads.box_predictor(heads.box_head(pooled))
        decoded = heads.box_coder.decode_single(deltas.float(), chosen).unflatten(-1, (-1, 4))  # (M, K + 1, 4)
        shares = class_logits.float().softmax(-1)[:, 1:]  # (M, K)
        classes = shares.shape[-1]
        # Laid out as the proposals again, so that every image has as many rows.
        boxes = proposals.new_zeros(*proposals.shape[:2], classes, 4).index_put((images, places), decoded[:, 1:])
        scores = proposals.new_zeros(*proposals.shape[:2], classes).index_put((images, places), shares)
        boxes, scores = _clipped(boxes, size), scores * (scores > heads.score_thresh)
        if self.detector.least_side is not None:
            scores = scores * _visible(boxes, self.detector.least_side)
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)  # (N, K, P, 4), (N, K, P)
        found = kept(boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], heads.nms_thresh, heads.detections_per_img)
        labels = torch.arange(classes)[None, :, None].expand(scores.shape)
        scores = scores * found.view(scores.shape)
        return _padded(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1), heads.detections_per_img)

    def _proposals(self, raw: dict[str, list[Tensor]], anchors: Sequence[Tensor], size: Any) -> tuple[Tensor, Tensor]:
        rpn, parts = self.network.rpn, []
        for level, own in enumerate(anchors):
            objectness = raw["cls_logits"][level].flatten(1).sigmoid()
            best, cells = _best(objectness, -1.0, rpn.pre_nms_top_n())
            cells = cells.clamp(max=own.shape[0] - 1)
            boxes = self.decoded(_rows(raw["bbox_regression"][level], cells), own[cells])
            parts.append((_clipped(boxes, size), best, torch.full_like(cells, level)))
        boxes, scores, levels = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        scores = scores * _visible(boxes, rpn.min_size) * (scores >= rpn.score_thresh)
        of_level = scores[:, None] * (levels[:, None] == torch.arange(len(anchors))[:, None])
        found = kept(boxes, of_level, rpn.nms_thresh, rpn.post_nms_top_n())
        scores, order = torch.topk(scores * found, min(rpn.post_nms_top_n(), _length(scores)), dim=1)
        return _rows(boxes, order), scores > 0

    def _pooled(self, features: list[Tensor], regions: Tensor) -> Tensor:
        """Pool the features under regions (M, 5), image and box, each from the level that suits its size."""
        pool, strides = self.network.roi_heads.box_roi_pool, self.detector.spec.strides
        sides = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
        if isinstance(pool, MMDetRoIPool):
            count, cells, sampling, aligned = len(pool.strides), (pool.cells, pool.cells), 0, True
            levels = (sides / pool.finest_size + 1e-6).log2().floor()
        else:
            count, cells, sampling, aligned = (
                len(pool.featmap_names),
                tuple(pool.output_size),
                pool.sampling_ratio,
                False,
            )
            finest = torch.tensor(float(strides[0])).log2().item()
            levels = (pool.canonical_level + (sides / pool.canonical_scale).log2() + 1e-6).floor() - finest
        levels = levels.clamp(0, count - 1)
        pooled = features[0].new_zeros(regions.shape[0], features[0].shape[1], *cells)
        for level in range(count):
            index = torch.where(levels == level)[0]
            part = roi_align(features[level], regions[index], cells, 1 / strides[level], sampling, aligned)
            pooled = pooled.index_put((index,), part)
        return pooled


def graph_of(detector: Detector, *, raw: bool = False) -> Graph:
    """Choose the graph of a detector.

    Args:
        detector: in ``eval()``.
        raw: end before the choice of detections.

    Raises:
        UserError: there is no such graph of it.
    """
    if raw:
        return RawGraph(detector)
    return TwoStageGraph(detector) if isinstance(detector, FasterRCNNDetector) else DenseGraph(detector)


def _length(scores: Tensor) -> int:
    length = scores.shape[1]
    return length if isinstance(length, int) else 1 << 30


def _laid(first: Tensor, feature: Tensor, steps: tuple[Any, Any]) -> Tensor:
    """Lay the anchors (A, 4) of the first cell over a level (N, C, H, W): (H * W * A, 4)."""
    ones = torch.ones_like(feature[0, 0], dtype=torch.float32)
    # Sums instead of `arange`, whose length does not follow the image's size in an exported graph.
    y, x = (ones.cumsum(0) - 1) * steps[0], (ones.cumsum(1) - 1) * steps[1]
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + first).flatten(0, 2)


def _best(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Return the best of scores (N, R) and their places, (N, P) both; a score that is not above the threshold is 0."""
    scores = scores * (scores > threshold)
    if isinstance(scores.shape[1], int):
        most = min(most, scores.shape[1])
    else:  # a level of an unknown size may have fewer than these
        scores = F.pad(scores, (0, most))
    return torch.topk(scores, most, dim=1)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Take rows (N, P, X) of values (N, R, X) at places (N, P)."""
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[-1]))


def _clipped(boxes: Tensor, size: tuple[Any, Any]) -> Tensor:
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def _visible(boxes: Tensor, least: float) -> Tensor:
    """Find boxes whose sides are at least so long, and longer than 0."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return ((sides >= least) & (sides > 0)).all(dim=-1)


def _padded(boxes: Tensor, scores: Tensor, labels: Tensor, most: int) -> Found:
    """Take the best of boxes (N, P, 4) with scores (N, P), of which 0 is none."""
    if isinstance(scores.shape[1], int) and scores.shape[1] < most:
        missing = most - scores.shape[1]
        boxes, scores, labels = (
            F.pad(boxes, (0, 0, 0, missing)),
            F.pad(scores, (0, missing)),
            F.pad(labels, (0, missing)),
        )
    scores, order = torch.topk(scores, most, dim=1)
    there = scores > 0
    boxes = _rows(boxes, order) * there[:, :, None]
    labels = torch.where(there, labels.gather(1, order), -1)
    return Found(boxes, scores, labels, there.sum(dim=1))
