"""RetinaNet and FCOS with mmdet's conventions; needs torch and torchvision alone.

Letters of the shapes: N images, R anchors of all levels together, K classes without background, M objects of an image,
P anchors that have an object.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_area, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from .backbones import ConvLevels, with_pyramid
from .gfl import StrideAnchors, boxes_at, choose_detections, in_own_padding
from .library import STRIDES
from .library import groups as usual_groups

if TYPE_CHECKING:
    from . import Design


# --- what both share -------------------------------------------------------------------------------------------------


def classification_loss(
    logits: Tensor, targets: Sequence[dict[str, Tensor]], matched_idxs: Sequence[Tensor], divisor: Tensor
) -> Tensor:
    """Focal loss of the anchors that are not ignored, summed over the batch and divided by `divisor`.

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


def tower(channels: int, stacked_convs: int, groups: int | None, bias: bool) -> nn.Sequential:
    """Stack 3x3 convolutions, each followed by GroupNorm (unless `groups` is None) and ReLU."""
    layers = []
    for _ in range(stacked_convs):
        conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=bias)
        norm = [] if groups is None else [nn.GroupNorm(groups, channels)]
        layers.append(nn.Sequential(conv, *norm, nn.ReLU()))
    return nn.Sequential(*layers)


def initialise(head: nn.Module, class_logits: nn.Module) -> None:
    """Draw a head's weights; the scores of `class_logits`, one of its convolutions, begin at 0.01."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, -math.log(99) if layer is class_logits else 0.0)


# --- RetinaNet -------------------------------------------------------------------------------------------------------


class ForcedMatcher(Matcher):
    """Matches anchors to objects as mmdet does: each object takes every anchor that overlaps it most.

    Where torchvision's matcher lets such an anchor keep the object that it overlaps most itself, this one gives it to
    the object whose best anchor it is; of several objects the last wins.

    Args:
        high_threshold: overlap from which an anchor is matched.
        low_threshold: overlap below which it is background; between the two it is ignored.
        least_overlap: an object takes its best anchors only where they overlap it by this.
    """

    def __init__(self, high_threshold: float, low_threshold: float, least_overlap: float = 0.0):
        super().__init__(high_threshold, low_threshold, allow_low_quality_matches=False)
        self.least_overlap = least_overlap

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """Match anchors by the overlaps (M, R): (R,) int64, object, -1 background, -2 ignored."""
        index = super().__call__(match_quality_matrix)
        for number, (overlaps, best) in enumerate(
            zip(match_quality_matrix, match_quality_matrix.amax(dim=1), strict=True)
        ):
            if best >= self.least_overlap:
                index[overlaps == best] = number
        return index


@torch.no_grad()
def assign_by_overlap(
    matcher: Matcher,
    anchors: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    image_sizes: Sequence[tuple[int, int]] | None,
) -> list[Tensor]:
    """Match the anchors to the objects of each image by their IoU.

    Args:
        matcher: decides by the overlaps.
        anchors: (R_l, 4) of each level, xyxy in pixels of the padded batch.
        targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.
        image_sizes: height and width of each image without padding; anchors outside an image's own padding are left
            out (:func:`.gfl.in_own_padding`). None: no image is padded.

    Returns:
        Per image (R,) int64: number of the object, -1 background, -2 ignored or left out.
    """
    flat = torch.cat(list(anchors))
    matched = []
    for image, target in enumerate(targets):
        inside = torch.ones_like(flat[:, 0], dtype=torch.bool)
        if image_sizes is not None:
            inside = in_own_padding(flat, image_sizes[image])
        index = torch.full_like(inside, -2, dtype=torch.int64)
        boxes = target["boxes"]
        index[inside] = matcher(box_iou(boxes, flat[inside])) if len(boxes) else -1
        matched.append(index)
    return matched


class ClippedBoxCoder(BoxCoder):
    """Deltas of boxes to anchors, whose sides neither grow nor shrink beyond a factor of 62.5.

    torchvision's coder limits the growth only.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas (R, 4 * k) to boxes (R, 4): (R, 4 * k), xyxy."""
        deltas = rel_codes.unflatten(1, (-1, 4))
        # The coder divides the deltas of the sides by their weights before it limits them.
        least = -self.bbox_xform_clip * deltas.new_tensor(self.weights[2:])
        sides = torch.maximum(deltas[..., 2:], least)
        return super().decode_single(torch.cat([deltas[..., :2], sides], dim=-1).flatten(1), boxes)


class SizedTransform(GeneralizedRCNNTransform):
    """torchvision's resizing and padding, which also leaves each image's size in its target, as ``image_size``."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Normalise, resize and pad images; ``image_size`` is height and width before padding."""
        batch, targets = super().forward(images, targets)
        if targets is not None:
            sized = zip(targets, batch.image_sizes, strict=True)
            targets = [{**target, "image_size": torch.tensor(size)} for target, size in sized]
        return batch, targets


class MMDetRetinaNetHead(RetinaNetHead):
    """torchvision's RetinaNet head, with mmdet's divisors of the losses.

    Args:
        in_channels: of every level.
        num_anchors: anchors per cell.
        num_classes: classes K, without background.
        stacked_convs: convolutions of each of the two towers.
        groups: of the towers' GroupNorm; None: they have none.
    """

    def __init__(self, in_channels: int, num_anchors: int, num_classes: int, stacked_convs: int, groups: int | None):
        super().__init__(in_channels, num_anchors, num_classes)
        self.classification_head.conv = tower(in_channels, stacked_convs, groups, bias=groups is None)
        self.regression_head.conv = tower(in_channels, stacked_convs, groups, bias=groups is None)
        self.regression_head.box_coder = ClippedBoxCoder((1.0, 1.0, 1.0, 1.0))
        initialise(self, self.classification_head.cls_logits)

    def compute_loss(
        self,
        targets: Sequence[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Compute focal loss and L1 loss of the deltas, each summed over the batch.

        Both are divided by the positives of the batch, where an image without any counts as one.

        Args:
            targets: per image ``boxes`` (M, 4) and ``labels`` (M,).
            head_outputs: ``cls_logits`` (N, R, K) and ``bbox_regression`` (N, R, 4).
            anchors: per image (R, 4).
            matched_idxs: per image (R,), number of the object, -1 background, -2 ignored.
        """
        logits, raw = head_outputs["cls_logits"].float(), head_outputs["bbox_regression"].float()
        divisor = torch.stack([(index >= 0).sum().clamp(min=1) for index in matched_idxs]).sum()
        distance = raw.new_zeros(())
        for image, (target, index) in enumerate(zip(targets, matched_idxs, strict=True)):
            positive = torch.where(index >= 0)[0]
            boxes = target["boxes"][index[positive]]
            wanted = self.regression_head.box_coder.encode_single(boxes, anchors[image][positive])
            distance = distance + (raw[image, positive] - wanted).abs().sum()
        return {
            "classification": classification_loss(logits, targets, matched_idxs, divisor),
            "bbox_regression": distance / divisor,
        }


class MMDetRetinaNet(RetinaNet):
    """torchvision's ``RetinaNet`` with mmdet's anchors, matching, losses and choice of detections.

    It is called as torchvision's: ``model(images, targets)`` gives losses in training, ``model(images)`` detections in
    evaluation.

    Args:
        backbone: a backbone with its pyramid.
        num_classes: classes K, without background.
        anchors: lays the anchors.
        head: the head.
        transform: normalises, resizes and pads.
        **thresholds: torchvision's ``score_thresh``, ``nms_thresh``, ``detections_per_img`` and ``topk_candidates``.
    """

    head: Any

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        anchors: StrideAnchors,
        head: MMDetRetinaNetHead,
        transform: SizedTransform,
        **thresholds: Any,
    ):
        super().__init__(backbone, num_classes, head=head, proposal_matcher=ForcedMatcher(0.5, 0.4), **thresholds)
        self.anchor_generator = anchors  # torchvision's constructor takes none but its own class
        self.transform = transform

    def assign(
        self,
        anchors: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Match the anchors to the objects of each image.

        An anchor whose IoU with an object is 0.5 belongs to it, below 0.4 it is background, between the two it is
        ignored; but an object takes the anchors that overlap it most in any case.

        Arguments and result are those of :func:`assign_by_overlap`.
        """
        return assign_by_overlap(self.proposal_matcher, anchors, targets, image_sizes)

    def compute_loss(
        self, targets: Sequence[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Match the anchors and compute the losses by name; see :meth:`MMDetRetinaNetHead.compute_loss`."""
        sizes: list[Any] = [target["image_size"].tolist() for target in targets]
        matched = self.assign(anchors[:1], targets, sizes)
        return self.head.compute_loss(targets, head_outputs, anchors, matched)

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: Sequence[Sequence[Tensor]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Choose the detections of each image from the outputs of each level; see :func:`.gfl.choose_detections`."""
        decode = self.head.regression_head.box_coder.decode_single
        found = []
        outputs = [head_outputs[name] for name in ("cls_logits", "bbox_regression")]
        for image, shape in enumerate(image_shapes):
            levels = [
                (logits[image].float().sigmoid(), None, partial(boxes_at, decode, raw[image], own))
                for logits, raw, own in zip(*outputs, anchors[image], strict=True)
            ]
            found.append(_chosen(self, levels, shape))
        return found


def _chosen(
    network: RetinaNet | FCOS,
    levels: Sequence[tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]],
    image_size: tuple[int, int],
) -> dict[str, Tensor]:
    return choose_detections(
        levels,
        image_size,
        score_threshold=network.score_thresh,
        nms_threshold=network.nms_thresh,
        candidates=network.topk_candidates,
        detections=network.detections_per_img,
    )


def retinanet(
    design: "Design",
    *,
    style: str = "pytorch",
    extra_levels: str = "on_input",
    extra_relu: bool = False,
    octaves: int = 3,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    stacked_convs: int = 4,
    groups: int | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    candidates: int = 1000,
    detections: int = 100,
) -> MMDetRetinaNet:
    """Build a RetinaNet with five levels, P3 to P7; the defaults are those of mmdet's configs.

    Args:
        design: what every builder is given.
        style: where a bottleneck of a ResNet strides, ``"pytorch"`` or ``"caffe"``.
        extra_levels: P6 is computed from C5 (``"on_input"``) or from P5 (``"on_output"``).
        extra_relu: a ReLU before P7's convolution.
        octaves: sizes of anchor per cell, spread evenly up to the double of the smallest.
        ratios: height by width of the anchors.
        stacked_convs: convolutions of each tower of the head.
        groups: of the head's GroupNorm, which it has for ``head_norm="group"`` only; None is 32, or fewer where the
            channels are few. mmdet has 32 always.
        score_threshold: a detection's score is above it.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level before that.
        detections: most boxes of an image.
    """
    neck = design.neck_channels
    scale = design.anchor_scale or 4.0
    anchors = StrideAnchors(STRIDES, [scale * 2 ** (octave / octaves) for octave in range(octaves)], ratios)
    normed = (groups or usual_groups(neck)) if design.head_norm == "group" else None
    per_cell = anchors.num_anchors_per_location()[0]
    return MMDetRetinaNet(
        _pyramid(design, style, extra_levels, extra_relu),
        design.num_classes,
        anchors,
        MMDetRetinaNetHead(neck, per_cell, design.num_classes, stacked_convs, normed),
        SizedTransform(**design.transform),
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=candidates,
        detections_per_img=detections,
    )


def _pyramid(design: "Design", style: str, extra_levels: str, extra_relu: bool) -> nn.Module:
    body, neck = design.body(style), design.neck_channels
    source = body.channels[-1] if extra_levels == "on_input" else neck
    return with_pyramid(body, neck, 3, ConvLevels(source, neck, extra_levels, extra_relu))


# --- FCOS ------------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """One half of a head: a tower of convolutions, and what is predicted from its end.

    Args:
        channels: of the features.
        stacked_convs: convolutions of the tower.
        groups: of its GroupNorm.
        conv_bias: its convolutions have a bias beside GroupNorm's.
        **predictions: name and number of channels of each prediction, a 3x3 convolution.
    """

    def __init__(self, channels: int, stacked_convs: int, groups: int, conv_bias: bool, **predictions: int):
        super().__init__()
        self.conv = tower(channels, stacked_convs, groups, conv_bias)
        for name, count in predictions.items():
            self.add_module(name, nn.Conv2d(channels, count, kernel_size=3, padding=1))
        self.names = tuple(predictions)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """Compute the predictions (N, H * W, channels) by name from one level (N, C, H, W)."""
        feature = self.conv(feature)
        return {name: self.get_submodule(name)(feature).flatten(2).transpose(1, 2) for name in self.names}


class MMDetFCOSHead(nn.Module):
    """A head that emits distances in pixels, as mmdet's FCOS.

    Args:
        in_channels: of every level.
        num_classes: classes K, without background.
        strides: of the levels, each of which has a learnt scale.
        stacked_convs: convolutions of each of the two towers.
        groups: of the towers' GroupNorm.
        conv_bias: the towers' convolutions have a bias beside GroupNorm's.
        norm_on_bbox: a distance is the positive part of what is predicted, in strides; if not, its exponential, in
            pixels.
        centerness_on_reg: centre-ness is predicted beside the boxes; if not, beside the classes.
        box_loss: ``"iou"``, the negative logarithm of the IoU, or ``"giou"``, one minus the GIoU.

    Raises:
        ValueError: there is no such box loss.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[int] = STRIDES,
        *,
        stacked_convs: int = 4,
        groups: int = 32,
        conv_bias: bool = False,
        norm_on_bbox: bool = False,
        centerness_on_reg: bool = False,
        box_loss: str = "iou",
    ):
        super().__init__()
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss is one of {', '.join(BOX_LOSSES)}, got {box_loss!r}")
        branch = partial(Branch, in_channels, stacked_convs, groups, conv_bias)
        centerness = {"bbox_ctrness": 1}
        self.classification_head = branch(cls_logits=num_classes, **({} if centerness_on_reg else centerness))
        self.regression_head = branch(bbox_reg=4, **(centerness if centerness_on_reg else {}))
        self.regression_head.scales = nn.Parameter(torch.ones(len(strides)))
        self.strides, self.norm_on_bbox, self.box_loss = tuple(strides), norm_on_bbox, box_loss
        self.box_coder = BoxLinearCoder(normalize_by_size=False)
        initialise(self, self.classification_head.cls_logits)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Compute ``cls_logits`` (N, R, K), ``bbox_regression`` (N, R, 4), ``bbox_ctrness`` (N, R, 1) from the levels.

        Raises:
            ValueError: there are more or fewer levels than scales.
        """
        if len(features) != len(self.strides):
            raise ValueError(f"This FCOS head has a scale for each of {len(self.strides)} levels, got {len(features)}.")
        levels = []
        for feature, scale, stride in zip(features, self.regression_head.scales, self.strides, strict=True):
            level = self.classification_head(feature) | self.regression_head(feature)
            # float32 always: an exponential of 8 bits is off by pixels.
            distances = level.pop("bbox_reg").float() * scale
            level["bbox_regression"] = distances.clamp(min=0) * stride if self.norm_on_bbox else distances.exp()
            levels.append(level)
        return {name: torch.cat([level[name] for level in levels], dim=1) for name in levels[0]}

    def compute_loss(
        self,
        targets: Sequence[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Compute focal loss, box loss and centre-ness loss, each summed over the batch.

        Focal and centre-ness loss are divided by the positives of the batch; the box loss of a point is weighted by
        its true centre-ness and divided by the sum of these weights.

        Args:
            targets: per image ``boxes`` (M, 4) and ``labels`` (M,).
            head_outputs: as :meth:`forward` returns them.
            anchors: per image (R, 4), squares round the points.
            matched_idxs: per image (R,), number of the object, -1 background.
        """
        index = torch.stack(list(matched_idxs))
        positive = index >= 0
        divisor = positive.sum().clamp(min=1)
        raw = head_outputs["bbox_regression"].float()[positive]  # (P, 4)
        centerness = head_outputs["bbox_ctrness"].float().squeeze(-1)[positive]  # (P,)
        squares = torch.stack(list(anchors))[positive]
        boxes = torch.cat([target["boxes"][own[own >= 0]] for target, own in zip(targets, matched_idxs, strict=True)])
        wanted = true_centerness(self.box_coder.encode(squares, boxes))
        box_loss = BOX_LOSSES[self.box_loss](self.box_coder.decode(raw, squares), boxes)
        centre_loss = F.binary_cross_entropy_with_logits(centerness, wanted, reduction="sum")
        logits = head_outputs["cls_logits"].float()
        return {
            "classification": classification_loss(logits, targets, matched_idxs, divisor),
            "bbox_regression": (box_loss * wanted).sum() / wanted.sum().clamp(min=1e-6),
            "bbox_ctrness": centre_loss / divisor,
        }


def true_centerness(distances: Tensor) -> Tensor:
    """How central a point lies in its object: 1 in the middle, 0 at the border.

    Tian et al., ICCV 2019, Eq. 3.

    Args:
        distances: (P, 4) to the left, top, right and bottom side.

    Returns:
        (P,).
    """
    across, down = distances[:, 0::2], distances[:, 1::2]
    return (across.amin(-1) / across.amax(-1) * (down.amin(-1) / down.amax(-1))).sqrt()


def iou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """Negative logarithm of the IoU of boxes (P, 4), one by one: (P,); an IoU counts as 1e-6 at least."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    common = sides.clamp(min=0).prod(dim=-1)
    union = box_area(boxes) + box_area(others) - common
    return -(common / union.clamp(min=1e-6)).clamp(min=1e-6).log()


BOX_LOSSES = {"iou": iou_loss, "giou": generalized_box_iou_loss}
"""Losses of boxes (P, 4), one by one, by name."""


class MMDetFCOS(FCOS):
    """torchvision's ``FCOS`` with mmdet's matching, losses and choice of detections.

    It is called as torchvision's: ``model(images, targets)`` gives losses in training, ``model(images)`` detections in
    evaluation.

    Args:
        backbone: a backbone with its pyramid.
        num_classes: classes K, without background.
        anchors: lays a square of one stride round the point of each cell.
        head: the head.
        center_sampling: a point is an object's only near the middle of its box; if not, anywhere inside.
        center_radius: how near, in strides, in each direction.
        **options: torchvision's, for normalisation, size and thresholds.
    """

    head: Any

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        anchors: StrideAnchors,
        head: MMDetFCOSHead,
        *,
        center_sampling: bool = False,
        center_radius: float = 1.5,
        **options: Any,
    ):
        radius = center_radius if center_sampling else math.inf
        super().__init__(backbone, num_classes, head=head, center_sampling_radius=radius, **options)
        self.anchor_generator = anchors  # torchvision's constructor takes none but its own class
        self.box_coder = head.box_coder

    @torch.no_grad()
    def assign(self, anchors: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Match the points to the objects of each image.

        A point belongs to an object if it lies inside its box (with centre sampling: near its middle), and the
        farthest side is within the range of the point's level: 4 to 8 strides, both included, without bound at the
        finest and at the coarsest level. Of several objects the smallest wins.

        Args:
            anchors: (R_l, 4) of each level, squares of one stride round the points.
            targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.

        Returns:
            Per image (R,) int64: number of the object, -1 background.
        """
        flat = torch.cat(list(anchors))
        points = ((flat[:, :2] + flat[:, 2:]) / 2)[:, None]
        strides = (flat[:, 2] - flat[:, 0])[:, None]
        nearest = (strides * 4).masked_fill(strides == strides.amin(), 0)
        farthest = (strides * 8).masked_fill(strides == strides.amax(), math.inf)
        matched = []
        for target in targets:
            if not len(target["boxes"]):
                matched.append(torch.full_like(flat[:, 0], -1, dtype=torch.int64))
                continue
            low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
            sides = torch.cat([points - low, high - points], dim=-1)  # (R, M, 4)
            reach = sides.amax(-1)
            off_centre = (points - (low + high) / 2).abs().amax(-1)
            matches = (
                (sides.amin(-1) > 0)
                & (off_centre < self.center_sampling_radius * strides)
                & (reach >= nearest)
                & (reach <= farthest)
            )
            areas, index = box_area(target["boxes"]).where(matches, math.inf).min(dim=1)
            matched.append(index.masked_fill(areas == math.inf, -1))
        return matched

    def compute_loss(
        self,
        targets: Sequence[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        num_anchors_per_level: Sequence[int],
    ) -> dict[str, Tensor]:
        """Match the points and compute the losses by name; see :meth:`MMDetFCOSHead.compute_loss`."""
        matched = self.assign(anchors[:1], targets)
        return self.head.compute_loss(targets, head_outputs, anchors, matched)

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: Sequence[Sequence[Tensor]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Choose the detections of each image from the outputs of each level; see :func:`.gfl.choose_detections`.

        A score is multiplied by the centre-ness after the candidates are chosen.
        """
        found = []
        outputs = [head_outputs[name] for name in ("cls_logits", "bbox_regression", "bbox_ctrness")]
        for image, shape in enumerate(image_shapes):
            levels = [
                (
                    logits[image].float().sigmoid(),
                    centerness[image].float().sigmoid().squeeze(-1),
                    partial(boxes_at, self.box_coder.decode, raw[image], own),
                )
                for logits, raw, centerness, own in zip(*outputs, anchors[image], strict=True)
            ]
            found.append(_chosen(self, levels, shape))
        return found


def fcos(
    design: "Design",
    *,
    style: str = "pytorch",
    extra_levels: str = "on_output",
    extra_relu: bool = True,
    norm_on_bbox: bool = False,
    centerness_on_reg: bool = False,
    center_sampling: bool = False,
    center_radius: float = 1.5,
    box_loss: str = "iou",
    conv_bias: bool = False,
    stacked_convs: int = 4,
    groups: int | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    candidates: int = 1000,
    detections: int = 100,
) -> MMDetFCOS:
    """Build an FCOS with five levels, P3 to P7; the defaults are those of mmdet's ``gn-head`` configs.

    Args:
        design: what every builder is given.
        style: where a bottleneck of a ResNet strides, ``"pytorch"`` or ``"caffe"``, which those configs have.
        extra_levels: P6 is computed from C5 (``"on_input"``) or from P5 (``"on_output"``).
        extra_relu: a ReLU before P7's convolution.
        norm_on_bbox: distances are predicted in strides and held positive; if not, as logarithms of pixels.
        centerness_on_reg: centre-ness is predicted beside the boxes; if not, beside the classes.
        center_sampling: a point is an object's only near the middle of its box.
        center_radius: how near, in strides.
        box_loss: ``"iou"`` or ``"giou"``.
        conv_bias: the towers' convolutions have a bias beside GroupNorm's.
        stacked_convs: convolutions of each tower of the head.
        groups: of the head's GroupNorm; None is 32, or fewer where the channels are few. mmdet has 32 always.
        score_threshold: a detection's score, before it is multiplied by the centre-ness, is above it.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level before that.
        detections: most boxes of an image.
    """
    head = MMDetFCOSHead(
        design.neck_channels,
        design.num_classes,
        stacked_convs=stacked_convs,
        groups=groups or usual_groups(design.neck_channels),
        conv_bias=conv_bias,
        norm_on_bbox=norm_on_bbox,
        centerness_on_reg=centerness_on_reg,
        box_loss=box_loss,
    )
    return MMDetFCOS(
        _pyramid(design, style, extra_levels, extra_relu),
        design.num_classes,
        StrideAnchors(STRIDES, (1.0,), (1.0,), offset=0.5),
        head,
        center_sampling=center_sampling,
        center_radius=center_radius,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=candidates,
        detections_per_img=detections,
        **design.transform,
    )
