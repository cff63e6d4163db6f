"""RetinaNet (Lin et al., ICCV 2017) on any backbone, as in torchvision and as in mmdet.

Letters of the shapes: N images, R anchors of all levels together, R_l of one level, K classes without background, M
objects of an image.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .backbones import ConvLevels, with_pyramid
from .dense import STRIDES, classification_loss, initialise, tower, usual_groups
from .design import Design
from .geometry import ClippedBoxCoder, StrideAnchors
from .matching import ForcedMatcher, SizedTransform, match_in_own_padding
from .postprocessing import postprocess_levels
from .processes import averaged_over_processes


def build_torchvision(design: Design) -> RetinaNet:
    """Build torchvision's ``RetinaNet`` with five levels, P3 to P7.

    Args:
        design: the options of every builder.
    """
    neck, scale = design.neck_channels, design.anchor_scale or 4.0
    sizes = tuple(tuple(int(stride * scale * 2 ** (octave / 3)) for octave in range(3)) for stride in STRIDES)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    norm = partial(nn.GroupNorm, usual_groups(neck)) if design.head_norm == "group" else None
    head = RetinaNetHead(neck, anchors.num_anchors_per_location()[0], design.num_classes, norm_layer=norm)
    backbone = with_pyramid(design.body(), neck, 3, LastLevelP6P7(neck, neck))
    return RetinaNet(
        backbone, design.num_classes, anchor_generator=anchors, head=head, score_thresh=0.05, **design.transform
    )


class MMDetRetinaNetHead(RetinaNetHead):
    """torchvision's RetinaNet head with mmdet's divisors of the losses.

    Args:
        in_channels: channels of every level.
        num_anchors: anchors per cell.
        num_classes: classes K, without background.
        stacked_convs: convolutions of each of the two towers.
        groups: of the towers' GroupNorm; None: there is none.
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
        """Compute the focal loss and the L1 loss of the deltas, each summed over the batch.

        Both are divided by the number of matched anchors in the batch, averaged over processes (mmdet divides by that
        of each process). An image without any counts as one.

        Args:
            targets: per image ``boxes`` (M, 4) and ``labels`` (M,).
            head_outputs: ``cls_logits`` (N, R, K) and ``bbox_regression`` (N, R, 4).
            anchors: per image (R, 4).
            matched_idxs: per image (R,), number of the object, -1 background, -2 ignored.
        """
        logits, raw = head_outputs["cls_logits"].float(), head_outputs["bbox_regression"].float()
        positives = torch.stack([(index >= 0).sum().clamp(min=1) for index in matched_idxs]).sum()
        divisor = averaged_over_processes(positives)
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

    It is called as torchvision's: ``model(images, targets)`` returns losses in training, ``model(images)`` detections
    in evaluation.

    Args:
        backbone: a backbone with its pyramid.
        num_classes: classes K, without background.
        anchors: lays the anchors.
        head: the head.
        transform: normalises, resizes and pads.
        **thresholds: torchvision's ``score_thresh``, ``nms_thresh``, ``detections_per_img`` and ``topk_candidates``.
    """

    head: Any
    proposal_matcher: Any

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
        self.anchor_generator = anchors  # torchvision's constructor takes only its own class
        self.transform = transform

    def assign(
        self,
        anchors: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Match the anchors to the objects of each image.

        An anchor belongs to an object if their IoU is at least 0.5. Below 0.4 it is background, between the two it is
        ignored. In any case an object takes the anchors that overlap it most.

        Args:
            anchors: (R_l, 4) of each level, xyxy in pixels of the padded batch.
            targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.
            image_sizes: height and width of each image without padding; anchors outside an image's own padding are
                ignored (:func:`.in_own_padding`). None: no image is padded.

        Returns:
            Per image (R,) int64: number of the object, -1 background, -2 ignored.
        """
        return match_in_own_padding(self.proposal_matcher.match, anchors, targets, image_sizes)

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
        """Choose the detections of each image; see :func:`.postprocess_levels`."""
        decode = self.head.regression_head.box_coder.decode_single
        return postprocess_levels(self, decode, head_outputs, anchors, image_shapes)


def build_mmdet(
    design: Design,
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
    """Build mmdet's RetinaNet with five levels, P3 to P7; the defaults are those of mmdet's configs.

    Args:
        design: the options of every builder.
        style: convolution of a ResNet's bottleneck that has its stride: the 3x3 (``"pytorch"``) or the first 1x1
            (``"caffe"``).
        extra_levels: map that P6 is computed from: C5 (``"on_input"``) or P5 (``"on_output"``).
        extra_relu: a ReLU before P7's convolution.
        octaves: sizes of anchors per cell, spread evenly from the smallest up to twice its size.
        ratios: height divided by width of the anchors.
        stacked_convs: convolutions of each tower of the head.
        groups: of the head's GroupNorm, which exists with ``head_norm="group"`` only; None is 32, or fewer if the
            channels are few. mmdet always has 32.
        score_threshold: the score of a detection is above this.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level before this suppression.
        detections: most boxes of an image.
    """
    body, neck = design.body(style), design.neck_channels
    backbone = with_pyramid(body, neck, 3, ConvLevels(body.channels[-1], neck, extra_levels, extra_relu))
    scale = design.anchor_scale or 4.0
    anchors = StrideAnchors(STRIDES, [scale * 2 ** (octave / octaves) for octave in range(octaves)], ratios)
    normed = (groups or usual_groups(neck)) if design.head_norm == "group" else None
    per_cell = anchors.num_anchors_per_location()[0]
    return MMDetRetinaNet(
        backbone,
        design.num_classes,
        anchors,
        MMDetRetinaNetHead(neck, per_cell, design.num_classes, stacked_convs, normed),
        SizedTransform(**design.transform),
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=candidates,
        detections_per_img=detections,
    )


BUILDERS = {"torchvision": build_torchvision, "mmdet": build_mmdet}
"""The function that builds the network, by conventions; its keyword arguments are the family's settings."""
