"""GFL (Li et al., NeurIPS 2020) in torchvision's style; this file needs torch and torchvision alone.

::

    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}  # P3 to P7
    model = GFL(resnet_fpn_backbone(backbone_name="resnet50", weights="DEFAULT", **levels), num_classes=20)
    losses = model.train()(images, targets)
    detections = model.eval()(images)

Letters of the shapes: N images, R anchors of all levels together, K classes without background, M objects of an image,
P anchors that have an object, n ``reg_max``: a side is a distribution over the distances 0, 1, ..., n.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, box_area, box_iou, clip_boxes_to_image, generalized_box_iou_loss
from torchvision.ops.misc import Conv2dNormActivation

if TYPE_CHECKING:
    from . import Design

PADDING = 32
"""Batches are padded to a multiple of so many pixels."""


class StrideAnchors(nn.Module):
    """Anchors that lie at multiples of each level's stride, whatever the size of the image.

    torchvision's generator rounds the anchors' sides and divides the image's size by the number of cells; this one
    does neither. It is called as torchvision's is.

    Args:
        strides: pixels per cell of each level, fine to coarse.
        scales: sides of the square anchors of a cell, in strides.
        ratios: height by width of the anchors.
        offset: where a cell's anchors are centred, in strides from its upper left corner.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float], offset: float = 0.0):
        super().__init__()
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)
        self.offset = offset

    def num_anchors_per_location(self) -> list[int]:
        """Anchors per cell of each level."""
        return [len(self.scales) * len(self.ratios)] * len(self.strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Lay the anchors over the levels: for each image (R, 4), xyxy in pixels, by level, row, column, anchor."""
        device = feature_maps[0].device
        levels = [
            self.level(stride, feature.shape[-2], feature.shape[-1], device)
            for stride, feature in zip(self.strides, feature_maps, strict=True)
        ]
        return [torch.cat(levels)] * len(image_list.image_sizes)

    def level(self, stride: int, height: int, width: int, device: torch.device) -> Tensor:
        """Lay the anchors of one level: (height * width * anchors per cell, 4), float32."""
        scales = torch.tensor(self.scales, device=device)
        roots = torch.tensor(self.ratios, device=device).sqrt()
        widths = (stride * scales / roots[:, None]).flatten() / 2  # by ratio, then by scale
        heights = (stride * scales * roots[:, None]).flatten() / 2
        rows = (torch.arange(height, device=device) + self.offset) * stride
        columns = (torch.arange(width, device=device) + self.offset) * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
        return (centres + torch.stack([-widths, -heights, widths, heights], dim=-1)).view(-1, 4)


def in_own_padding(anchors: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Find the anchors that an image would have without the larger images of its batch.

    As in mmdet, an image's own padding rounds its size up to a multiple of 32; anchors centred beyond are not matched.

    Args:
        anchors: (R, 4) xyxy, centred on whole pixels.
        image_size: height and width of the image, in pixels, without padding.

    Returns:
        (R,) bool.
    """
    height, width = (math.ceil(side / PADDING) * PADDING for side in image_size)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    # Half a pixel: the mean of two sides in float32 may miss a whole number by a little.
    return (centres < centres.new_tensor([width, height]) - 0.5).all(dim=-1)


def choose_detections(
    levels: Sequence[tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]],
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    nms_threshold: float,
    candidates: int,
    detections: int,
) -> dict[str, Tensor]:
    """Choose the detections of an image as mmdet does: score threshold, best of each level, NMS, best overall.

    Args:
        levels: scores (R_l, K); qualities (R_l,) by which scores are multiplied once the best are chosen, or None; and
            a function that gives the boxes (P, 4) of the anchors at places (P,).
        image_size: height and width in pixels, to which boxes are clipped; what is empty then is dropped.
        score_threshold: a candidate's score is above it.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level.
        detections: most boxes of the image.

    Returns:
        ``boxes`` (M, 4), ``scores`` (M,), best first, and ``labels`` (M,).
    """
    found = []
    for scores, quality, decode_at in levels:
        place, labels = torch.where(scores > score_threshold)
        # Not a stable sort, as mmdet's is none: of equal scores, e.g. saturated ones, the same are chosen.
        chosen, order = scores[place, labels].sort(descending=True)
        chosen, order = chosen[:candidates], order[:candidates]
        place, labels = place[order], labels[order]
        found.append((decode_at(place), chosen if quality is None else chosen * quality[place], labels))
    boxes, scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
    boxes = clip_boxes_to_image(boxes, image_size)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, labels = boxes[visible], scores[visible], labels[visible]
    kept = batched_nms(boxes, scores, labels, nms_threshold)[:detections]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def boxes_at(decode: Callable[[Tensor, Tensor], Tensor], raw: Tensor, anchors: Tensor, places: Tensor) -> Tensor:
    """Decode what the head emits (R, D) for the anchors (R, 4) at some places (P,): boxes (P, 4)."""
    return decode(raw[places].float(), anchors[places])


@torch.no_grad()
def atss(anchors: Sequence[Tensor], boxes: Tensor, candidates: int = 9) -> Tensor:
    """Match anchors to objects by adaptive training sample selection.

    Zhang et al., CVPR 2020, Algorithm 1. The candidates of an object are the anchors of each level whose centres are
    nearest to its own. It takes those of them that are centred inside it and overlap it by the mean plus the standard
    deviation of its candidates' IoU, or more. An anchor that several objects take goes to the one of highest IoU.

    Args:
        anchors: (R_l, 4) xyxy of each level.
        boxes: (M, 4) xyxy of the objects.
        candidates: of each object, per level; the paper's k.

    Returns:
        (R,) int64, number of the object, or -1 for background.
    """
    flat = torch.cat(list(anchors))
    if not len(boxes):
        return flat.new_full((len(flat),), -1, dtype=torch.int64)
    centres = (flat[:, :2] + flat[:, 2:]) / 2
    distances = (centres[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).square().sum(-1).sqrt()  # (R, M)
    nearest, start = [], 0
    for level in distances.split([len(level) for level in anchors]):
        nearest.append(start + level.topk(min(candidates, len(level)), dim=0, largest=False).indices)
        start += len(level)
    chosen = torch.cat(nearest)  # (candidates of all levels, M)

    overlaps = box_iou(flat, boxes).gather(0, chosen)
    sides = torch.cat([centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]], dim=-1)
    inside = sides.amin(-1).gather(0, chosen) > 0.01
    taken = inside & (overlaps >= overlaps.mean(0) + overlaps.std(0))

    claims = overlaps.new_full(distances.shape, -1.0).scatter(0, chosen, overlaps.where(taken, -1.0))
    highest, index = claims.max(dim=1)
    return index.masked_fill(highest < 0, -1)


def integral(raw: Tensor) -> Tensor:
    """Turn the distributions of the sides into distances: their expectations.

    Eq. 5 of the paper.

    Args:
        raw: (..., 4 * (n + 1)) logits of the distances 0 to n, side by side: left, top, right, bottom.

    Returns:
        (..., 4) distances in strides, 0 to n.
    """
    distributions = raw.unflatten(-1, (4, -1)).softmax(-1)
    return (distributions * torch.arange(distributions.shape[-1], device=raw.device)).sum(-1)


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Binary cross entropy towards a quality between 0 and 1, weighted by how far the score is from it.

    Eq. 2 of the paper: the score of the object's class is to be the IoU of the predicted box, all others 0.

    Args:
        logits: of any shape; a score is a logit's sigmoid.
        quality: of the same shape, 0..1.
        beta: power of the distance between score and quality that weights an element.

    Returns:
        The loss of each element, not reduced.
    """
    distance = (quality - logits.sigmoid()).abs()
    return distance.pow(beta) * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross entropy with the two whole distances beside the true one, each weighted by how near it is.

    Eq. 6 of the paper.

    Args:
        logits: (..., n + 1) of the distances 0 to n.
        distance: (...) the true distance, at least 0 and below n.

    Returns:
        The loss of each distribution (...), not reduced.
    """
    below = distance.floor()
    above_share = distance - below
    index = below.long().unsqueeze(-1)
    log_shares = logits.log_softmax(-1).gather(-1, torch.cat([index, index + 1], dim=-1))
    return -((1 - above_share) * log_shares[..., 0] + above_share * log_shares[..., 1])


class DistributionCoder:
    """Boxes as distances from the centre of a square anchor to the four sides, in strides.

    Args:
        anchor_scale: side of an anchor in strides, by which its stride is known.
        reg_max: the farthest distance n.
    """

    def __init__(self, anchor_scale: float, reg_max: int):
        self.anchor_scale, self.reg_max = anchor_scale, reg_max

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Measure boxes (..., 4) from their anchors (..., 4): distances (..., 4), held within 0 and n - 0.1."""
        centres, strides = self._cells(anchors)
        distances = torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], dim=-1) / strides
        return distances.clamp(0, self.reg_max - 0.1)  # below n, as there is to be a whole distance above it

    def decode(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Lay the expected distances of the logits (..., 4 * (n + 1)) round the anchors: boxes (..., 4) in pixels."""
        centres, strides = self._cells(anchors)
        distances = integral(raw) * strides
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)

    def _cells(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        centres = (anchors[..., :2] + anchors[..., 2:]) / 2
        return centres, (anchors[..., 2:3] - anchors[..., 0:1]) / self.anchor_scale


def _tower(channels: int, stacked_convs: int, groups: int) -> nn.Sequential:
    norm = partial(nn.GroupNorm, groups)
    return nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(stacked_convs)))


def _initialise(head: nn.Module) -> None:
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _flat(level: Tensor) -> Tensor:
    """Lay out the output of a convolution (N, X, H, W) as (N, H * W, X)."""
    return level.flatten(2).transpose(1, 2)


class GFLClassificationHead(nn.Module):
    """Scores of the classes, which are at once estimates of the box's quality; see :class:`GFLHead`."""

    def __init__(self, in_channels: int, num_classes: int, stacked_convs: int, groups: int):
        super().__init__()
        self.conv = _tower(in_channels, stacked_convs, groups)
        self.cls_logits = nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=1)
        _initialise(self)
        self.cls_logits.bias = nn.Parameter(torch.full((num_classes,), -math.log(99)))  # scores begin at 0.01

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute logits (N, R, K) from the levels, each (N, C, H, W)."""
        return torch.cat([_flat(self.cls_logits(self.conv(level))) for level in features], dim=1)


class GFLRegressionHead(nn.Module):
    """Distributions of the four sides; see :class:`GFLHead`."""

    def __init__(self, in_channels: int, num_levels: int, reg_max: int, stacked_convs: int, groups: int):
        super().__init__()
        self.conv = _tower(in_channels, stacked_convs, groups)
        self.bbox_reg = nn.Conv2d(in_channels, 4 * (reg_max + 1), kernel_size=3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        _initialise(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute logits (N, R, 4 * (n + 1)) from the levels, each (N, C, H, W)."""
        if len(features) != len(self.scales):
            raise ValueError(f"This GFL head has a scale for each of {len(self.scales)} levels, got {len(features)}.")
        levels = zip(features, self.scales, strict=True)
        return torch.cat([_flat(self.bbox_reg(self.conv(level)) * scale) for level, scale in levels], dim=1)


class GFLHead(nn.Module):
    """The head of a GFL: two towers of convolutions, shared by all levels, and their losses.

    Args:
        in_channels: of every level.
        num_classes: classes K, without background.
        num_levels: levels of the pyramid; the boxes of each have a learnt scale.
        reg_max: the farthest distance n from an anchor's centre to a side, in strides.
        anchor_scale: side of the square anchors, in strides.
        stacked_convs: convolutions of each tower.
        groups: of the towers' GroupNorm.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_levels: int = 5,
        *,
        reg_max: int = 16,
        anchor_scale: float = 8.0,
        stacked_convs: int = 4,
        groups: int = 32,
    ):
        super().__init__()
        if reg_max < 1:
            raise ValueError(f"reg_max, the farthest distance of a side in strides, is at least 1, got {reg_max}")
        self.classification_head = GFLClassificationHead(in_channels, num_classes, stacked_convs, groups)
        self.regression_head = GFLRegressionHead(in_channels, num_levels, reg_max, stacked_convs, groups)
        self.box_coder = DistributionCoder(anchor_scale, reg_max)
        self.beta, self.giou_weight, self.distribution_weight = 2.0, 2.0, 0.25

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Compute ``cls_logits`` (N, R, K) and ``bbox_regression`` (N, R, 4 * (n + 1)) from the levels."""
        return {
            "cls_logits": self.classification_head(features),
            "bbox_regression": self.regression_head(features),
        }

    def compute_loss(
        self,
        targets: Sequence[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Compute the three losses of a batch, as mmdet does.

        ``classification`` is the quality focal loss, summed over the batch and divided by the number of matched
        anchors (of which an image counts one at least). ``bbox_regression`` is the GIoU loss of the matched anchors,
        ``distribution`` the mean over the four sides of the distribution focal loss; in both an anchor weighs as much
        as its best score, and their sums over the batch are divided by the sum of these weights (1 at least).
        The paper (Eq. 8) divides all three by the number of matched anchors, and weights the same two by the scores.

        Args:
            targets: per image ``boxes`` (M, 4) xyxy in pixels and ``labels`` (M,) in 0..K-1.
            head_outputs: of :meth:`forward`.
            anchors: per image (R, 4).
            matched_idxs: per image (R,): number of the object, -1 background, -2 left out.
        """
        logits, raw = head_outputs["cls_logits"].float(), head_outputs["bbox_regression"].float()
        matched = torch.stack(list(matched_idxs))
        positive = matched >= 0
        images, cells = torch.where(positive)
        objects = [index[index >= 0] for index in matched]
        boxes = torch.cat([target["boxes"][index] for target, index in zip(targets, objects, strict=True)]).to(raw)
        labels = torch.cat([target["labels"][index] for target, index in zip(targets, objects, strict=True)])
        own_anchors, own_raw = torch.stack(list(anchors))[positive], raw[positive]
        predicted = self.box_coder.decode(own_raw, own_anchors)

        quality = torch.zeros_like(logits)
        quality[images, cells, labels] = _paired_iou(predicted.detach(), boxes)
        classification = quality_focal_loss(logits, quality, self.beta).sum(-1)[matched > -2].sum()

        # Without objects these are sums over nothing: zeros to which every parameter stays connected.
        weights = logits.detach()[positive].sigmoid().amax(-1)
        giou = generalized_box_iou_loss(predicted, boxes)
        distances = self.box_coder.encode(boxes, own_anchors)
        distribution = distribution_focal_loss(own_raw.unflatten(-1, (4, -1)), distances).mean(-1)
        total_weight = weights.sum().clamp(min=1)
        return {
            "classification": classification / positive.sum(dim=1).clamp(min=1).sum(),
            "bbox_regression": self.giou_weight * (weights * giou).sum() / total_weight,
            "distribution": self.distribution_weight * (weights * distribution).sum() / total_weight,
        }


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    return overlap / (box_area(boxes) + box_area(others) - overlap).clamp(min=1e-6)


class GFL(nn.Module):
    """Generalized Focal Loss detector (Li et al., NeurIPS 2020), called as torchvision's detectors are.

    Args:
        backbone: returns an ``OrderedDict`` of levels (N, C, H, W), fine to coarse, and has C as ``out_channels``.
        num_classes: classes K; there is no background among them.
        min_size: an image is resized so that its shorter side has so many pixels,
        max_size: unless its longer side would exceed this.
        image_mean: per channel, of images in 0..1; ImageNet's by default.
        image_std: likewise.
        anchor_generator: one square anchor per cell; by default of 8 strides, at five levels from stride 8 on.
        head: by default a :class:`GFLHead` of four convolutions per tower.
        score_thresh: least score of a detection.
        nms_thresh: IoU above which the weaker of two boxes of a class is dropped.
        detections_per_img: best detections that are kept.
        topk_candidates: best scores of a level that are decoded.
        reg_max: the farthest distance of a side from its anchor's centre, in strides; for the default head.
        atss_candidates: anchors per level that are considered for an object.

    Raises:
        ValueError: the backbone does not tell its channels, or the anchors are not square or several in a cell.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        min_size: int = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        anchor_generator: StrideAnchors | None = None,
        head: GFLHead | None = None,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.6,
        detections_per_img: int = 100,
        topk_candidates: int = 1000,
        reg_max: int = 16,
        atss_candidates: int = 9,
    ):
        super().__init__()
        channels = getattr(backbone, "out_channels", None)
        if not isinstance(channels, int):
            raise ValueError(f"the backbone has out_channels, the number of channels of every level, got {channels}")
        anchor_generator = anchor_generator or StrideAnchors((8, 16, 32, 64, 128), (8.0,), (1.0,))
        if len(anchor_generator.scales) != 1 or tuple(anchor_generator.ratios) != (1.0,):
            raise ValueError(
                "a GFL has one square anchor per cell, got anchors of "
                f"scales {anchor_generator.scales} and ratios {anchor_generator.ratios}"
            )
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.head = head or GFLHead(
            channels,
            num_classes,
            len(anchor_generator.strides),
            reg_max=reg_max,
            anchor_scale=anchor_generator.scales[0],
        )
        mean = list(image_mean or (0.485, 0.456, 0.406))
        std = list(image_std or (0.229, 0.224, 0.225))
        self.transform = GeneralizedRCNNTransform(min_size, max_size, mean, std, size_divisible=PADDING)
        self.num_classes = num_classes
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img, self.topk_candidates = detections_per_img, topk_candidates
        self.atss_candidates = atss_candidates

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training mode, the detections in evaluation mode.

        Args:
            images: each (3, H, W) RGB, float in 0..1; sizes may differ.
            targets: per image ``boxes`` (M, 4) xyxy in its pixels and ``labels`` (M,) in 0..K-1; for training.

        Returns:
            The losses by name (:meth:`GFLHead.compute_loss`), or per image ``boxes`` (M, 4) xyxy in its pixels,
            ``scores`` (M,) and ``labels`` (M,) in 0..K-1, best first.

        Raises:
            ValueError: in training mode, targets are missing or wrong; the message lists every fault.
        """
        if self.training and (faults := self._faults(images, targets)):
            raise ValueError("\n".join(["These targets cannot be trained on:", *(f"  - {fault}" for fault in faults)]))
        original_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        features = list(self.backbone(batch.tensors).values())
        head_outputs = self.head(features)
        anchors = self.anchor_generator(batch, features)

        counts = [feature.shape[-2] * feature.shape[-1] for feature in features]
        anchors_per_level = [list(of_image.split(counts)) for of_image in anchors]
        if self.training:
            matched = self.assign(anchors_per_level[0], targets, batch.image_sizes)
            return self.head.compute_loss(targets, head_outputs, anchors, matched)
        outputs_per_level = {name: list(output.split(counts, dim=1)) for name, output in head_outputs.items()}
        detections = self.postprocess_detections(outputs_per_level, anchors_per_level, batch.image_sizes)
        return self.transform.postprocess(detections, batch.image_sizes, original_sizes)

    @torch.no_grad()
    def assign(
        self,
        anchors: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Match the anchors to the objects of each image, by :func:`atss`.

        Args:
            anchors: (R_l, 4) of each level, xyxy in pixels of the padded batch.
            targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.
            image_sizes: height and width of each image without padding; anchors outside an image's own padding are
                left out (:func:`in_own_padding`). None: no image is padded.

        Returns:
            Per image (R,) int64: number of the object, -1 background, -2 left out.
        """
        matched = []
        for number, target in enumerate(targets):
            inside = [torch.ones_like(level[:, 0], dtype=torch.bool) for level in anchors]
            if image_sizes is not None:
                inside = [in_own_padding(level, image_sizes[number]) for level in anchors]
            own = [level[mask] for level, mask in zip(anchors, inside, strict=True)]
            everywhere = torch.cat(inside)
            index = torch.full_like(everywhere, -2, dtype=torch.int64)
            index[everywhere] = atss(own, target["boxes"], self.atss_candidates)
            matched.append(index)
        return matched

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: Sequence[Sequence[Tensor]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Choose the detections of each image: score threshold, best candidates per level, NMS, best overall.

        Args:
            head_outputs: per level, ``cls_logits`` (N, R_l, K) and ``bbox_regression`` (N, R_l, 4 * (n + 1)).
            anchors: per image and level (R_l, 4).
            image_shapes: height and width of each image without padding, to which boxes are clipped.
        """
        decode = self.head.box_coder.decode
        found = []
        for number, (of_image, shape) in enumerate(zip(anchors, image_shapes, strict=True)):
            outputs = zip(head_outputs["cls_logits"], head_outputs["bbox_regression"], of_image, strict=True)
            levels = [
                (logits[number].float().sigmoid(), None, partial(boxes_at, decode, raw[number], level))
                for logits, raw, level in outputs
            ]
            found.append(
                choose_detections(
                    levels,
                    shape,
                    score_threshold=self.score_thresh,
                    nms_threshold=self.nms_thresh,
                    candidates=self.topk_candidates,
                    detections=self.detections_per_img,
                )
            )
        return found

    def _faults(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> list[str]:
        if targets is None or len(targets) != len(images):
            got = "none" if targets is None else len(targets)
            return [f"training takes one target for each of the {len(images)} images, got {got}"]
        faults = []
        for number, target in enumerate(targets):
            boxes, labels = target["boxes"], target["labels"]
            if boxes.shape != (len(labels), 4) or labels.shape != (len(labels),) or labels.dtype != torch.int64:
                got = f"{tuple(boxes.shape)} and {tuple(labels.shape)} {labels.dtype}"
                faults.append(f"image {number}: boxes are (M, 4) and labels (M,) int64, got {got}")
                continue
            if (empty := ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)).any():
                faults.append(f"image {number}: boxes have a width and a height, got {boxes[empty][0].tolist()}")
            if (unknown := (labels < 0) | (labels >= self.num_classes)).any():
                label = int(labels[unknown][0])
                faults.append(f"image {number}: labels are 0 to {self.num_classes - 1}, got {label}")
        return faults


def build(
    design: "Design",
    *,
    style: str = "pytorch",
    extra_levels: str = "on_output",
    extra_relu: bool = False,
    stacked_convs: int = 4,
    reg_max: int = 16,
    groups: int | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    candidates: int = 1000,
    detections: int = 100,
) -> GFL:
    """Build a :class:`GFL` on any backbone, with five levels, P3 to P7; the defaults are mmdet's.

    Args:
        design: what every builder is given.
        style: where a bottleneck of a ResNet strides, ``"pytorch"`` or ``"caffe"``.
        extra_levels: P6 is computed from C5 (``"on_input"``) or from P5 (``"on_output"``).
        extra_relu: a ReLU before P7's convolution.
        stacked_convs: convolutions of each tower of the head.
        reg_max: the farthest distance of a side from its anchor's centre, in strides.
        groups: of the head's GroupNorm; None is 32, or fewer where the channels are few. mmdet has 32 always.
        score_threshold: least score of a detection.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: best scores of a level that are decoded.
        detections: best detections of an image that are kept.
    """
    from .backbones import ConvLevels, with_pyramid
    from .library import STRIDES
    from .library import groups as usual_groups

    body, neck = design.body(style), design.neck_channels
    coarse = ConvLevels(body.channels[-1] if extra_levels == "on_input" else neck, neck, extra_levels, extra_relu)
    anchors = StrideAnchors(STRIDES, (design.anchor_scale or 8.0,), (1.0,))
    head = GFLHead(
        neck,
        design.num_classes,
        len(anchors.strides),
        reg_max=reg_max,
        anchor_scale=anchors.scales[0],
        stacked_convs=stacked_convs,
        groups=groups or usual_groups(neck),
    )
    return GFL(
        with_pyramid(body, neck, 3, coarse),
        design.num_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=detections,
        topk_candidates=candidates,
        **design.transform,
    )
