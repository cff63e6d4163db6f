"""FCOS (Tian et al., ICCV 2019) on any backbone, as in torchvision and as in mmdet.

Letters of the shapes: N images, R points of all levels together, R_l of one level, K classes without background, M
objects of an image, P points that have an object.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.ops import box_area, generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .backbones import ConvLevels, with_pyramid
from .dense import STRIDES, classification_loss, flat, initialise, tower, usual_groups
from .design import Design
from .geometry import StrideAnchors, centres, distances_to_sides, paired_iou, true_centerness
from .postprocessing import postprocess_levels
from .processes import averaged_over_processes


def build_torchvision(design: Design) -> FCOS:
    """Build torchvision's ``FCOS`` with five levels, P3 to P7.

    Args:
        design: the options of every builder.
    """
    neck, num_classes = design.neck_channels, design.num_classes
    backbone = with_pyramid(design.body(), neck, 3, LastLevelP6P7(neck, neck))
    norm = partial(nn.GroupNorm, usual_groups(neck))
    # torchvision's FCOSHead takes multiples of 32 channels only; its two halves take a norm for any width.
    head = FCOSHead(32, 1, num_classes)
    head.classification_head = FCOSClassificationHead(neck, 1, num_classes, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(neck, 1, norm_layer=norm)
    return FCOS(backbone, num_classes, head=head, score_thresh=0.05, **design.transform)


def iou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the negative logarithm of the IoU of boxes (P, 4), one by one: (P,). An IoU is at least 1e-6."""
    # With torchvision's areas the gradient is rounded as mmdet's.
    return -paired_iou(boxes, others, area=box_area).clamp(min=1e-6).log()


BOX_LOSSES = {"iou": iou_loss, "giou": generalized_box_iou_loss}
"""Losses of boxes (P, 4), one by one, by name."""


class Branch(nn.Module):
    """One half of a head: a tower of convolutions, and the predictions from its last map.

    Args:
        channels: of the features.
        stacked_convs: convolutions of the tower.
        groups: of its GroupNorm.
        conv_bias: its convolutions have a bias.
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
        return {name: flat(self.get_submodule(name)(feature)) for name in self.names}


class MMDetFCOSHead(nn.Module):
    """The head of mmdet's FCOS, which predicts distances in pixels.

    Args:
        in_channels: channels of every level.
        num_classes: classes K, without background.
        strides: of the levels; the distances of each level have a learnt scale.
        stacked_convs: convolutions of each of the two towers.
        groups: of the towers' GroupNorm.
        conv_bias: the towers' convolutions have a bias.
        norm_on_bbox: a distance is the positive part of the prediction, in strides; otherwise its exponential, in
            pixels.
        centerness_on_reg: the regression tower predicts the centre-ness; otherwise the classification tower.
        box_loss: ``"iou"``, the negative logarithm of the IoU, or ``"giou"``, one minus the GIoU.

    Raises:
        ValueError: the box loss is unknown.
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
            raise ValueError(f"box_loss: expected one of {', '.join(BOX_LOSSES)}, got {box_loss!r}")
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
            ValueError: the number of levels is not that of the scales.
        """
        if len(features) != len(self.strides):
            raise ValueError(
                f"The FCOS head expects {len(self.strides)} levels, one for each scale, got {len(features)}."
            )
        levels = []
        for feature, scale, stride in zip(features, self.regression_head.scales, self.strides, strict=True):
            level = self.classification_head(feature) | self.regression_head(feature)
            # Always float32: an exponential in bfloat16 is off by pixels.
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

        Focal and centre-ness loss are divided by the number of matched points in the batch. The box loss of a point is
        weighted by its true centre-ness, and their sum is divided by the sum of these weights. Both divisors are
        averaged over processes, as in mmdet.

        Args:
            targets: per image ``boxes`` (M, 4) and ``labels`` (M,).
            head_outputs: as :meth:`forward` returns them.
            anchors: per image (R, 4), squares around the points.
            matched_idxs: per image (R,), number of the object, -1 background.
        """
        index = torch.stack(list(matched_idxs))
        positive = index >= 0
        divisor = averaged_over_processes(positive.sum())
        raw = head_outputs["bbox_regression"].float()[positive]  # (P, 4)
        centerness = head_outputs["bbox_ctrness"].float().squeeze(-1)[positive]  # (P,)
        squares = torch.stack(list(anchors))[positive]
        boxes = torch.cat([target["boxes"][own[own >= 0]] for target, own in zip(targets, matched_idxs, strict=True)])
        wanted = true_centerness(squares, boxes)
        box_loss = BOX_LOSSES[self.box_loss](self.box_coder.decode(raw, squares), boxes)
        centre_loss = F.binary_cross_entropy_with_logits(centerness, wanted, reduction="sum")
        logits = head_outputs["cls_logits"].float()
        return {
            "classification": classification_loss(logits, targets, matched_idxs, divisor),
            "bbox_regression": (box_loss * wanted).sum() / averaged_over_processes(wanted.sum(), least=1e-6),
            "bbox_ctrness": centre_loss / divisor,
        }


class MMDetFCOS(FCOS):
    """torchvision's ``FCOS`` with mmdet's matching, losses and choice of detections.

    It is called as torchvision's: ``model(images, targets)`` returns losses in training, ``model(images)`` detections
    in evaluation.

    Args:
        backbone: a backbone with its pyramid.
        num_classes: classes K, without background.
        anchors: lays a square of one stride around the point of each cell.
        head: the head.
        center_sampling: a point can belong to an object only if it is near the centre of its box; otherwise anywhere
            inside.
        center_radius: the largest distance from the centre in each direction, in strides.
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
        self.anchor_generator = anchors  # torchvision's constructor takes only its own class
        self.box_coder = head.box_coder

    @torch.no_grad()
    def assign(self, anchors: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Match the points to the objects of each image.

        A point belongs to an object if it lies inside its box (with centre sampling: near its centre), and its distance
        to the farthest side is within the range of the point's level. The range is 4 to 8 strides, both included,
        without a lower bound at the finest level and without an upper bound at the coarsest. Of several objects the
        smallest wins.

        Args:
            anchors: (R_l, 4) of each level, squares of one stride around the points.
            targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.

        Returns:
            Per image (R,) int64: number of the object, -1 background.
        """
        squares = torch.cat(list(anchors))
        points = centres(squares)[:, None]
        strides = (squares[:, 2] - squares[:, 0])[:, None]
        nearest = (strides * 4).masked_fill(strides == strides.amin(), 0)
        farthest = (strides * 8).masked_fill(strides == strides.amax(), math.inf)
        matched = []
        for target in targets:
            boxes = target["boxes"]
            if not len(boxes):
                matched.append(torch.full_like(squares[:, 0], -1, dtype=torch.int64))
                continue
            sides = distances_to_sides(points, boxes)  # (R, M, 4)
            reach = sides.amax(-1)
            off_centre = (points - centres(boxes)).abs().amax(-1)
            matches = (
                (sides.amin(-1) > 0)
                & (off_centre < self.center_sampling_radius * strides)
                & (reach >= nearest)
                & (reach <= farthest)
            )
            areas, index = box_area(boxes).where(matches, math.inf).min(dim=1)
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
        """Choose the detections of each image; see :func:`.postprocess_levels`.

        A score is multiplied by the centre-ness after the candidates are chosen.
        """
        return postprocess_levels(self, self.box_coder.decode, head_outputs, anchors, image_shapes)


def build_mmdet(
    design: Design,
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
    """Build mmdet's FCOS with five levels, P3 to P7; the defaults are those of its ``gn-head`` configs.

    Args:
        design: the options of every builder.
        style: convolution of a ResNet's bottleneck that has its stride: the 3x3 (``"pytorch"``) or the first 1x1
            (``"caffe"``, as in those configs).
        extra_levels: map that P6 is computed from: C5 (``"on_input"``) or P5 (``"on_output"``).
        extra_relu: a ReLU before P7's convolution.
        norm_on_bbox: distances are predicted in strides and kept positive; otherwise as logarithms of pixels.
        centerness_on_reg: the regression tower predicts the centre-ness; otherwise the classification tower.
        center_sampling: a point can belong to an object only if it is near the centre of its box.
        center_radius: the largest distance from the centre in each direction, in strides.
        box_loss: ``"iou"`` or ``"giou"``.
        conv_bias: the towers' convolutions have a bias beside GroupNorm's.
        stacked_convs: convolutions of each tower of the head.
        groups: of the head's GroupNorm; None is 32, or fewer if the channels are few. mmdet always has 32.
        score_threshold: the score of a detection, before it is multiplied by the centre-ness, is above this.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level before this suppression.
        detections: most boxes of an image.
    """
    neck = design.neck_channels
    head = MMDetFCOSHead(
        neck,
        design.num_classes,
        stacked_convs=stacked_convs,
        groups=groups or usual_groups(neck),
        conv_bias=conv_bias,
        norm_on_bbox=norm_on_bbox,
        centerness_on_reg=centerness_on_reg,
        box_loss=box_loss,
    )
    body = design.body(style)
    return MMDetFCOS(
        with_pyramid(body, neck, 3, ConvLevels(body.channels[-1], neck, extra_levels, extra_relu)),
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


BUILDERS = {"torchvision": build_torchvision, "mmdet": build_mmdet}
"""The function that builds the network, by conventions; its keyword arguments are the family's settings."""
