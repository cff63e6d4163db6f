"""Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid on any backbone, as in torchvision and as in mmdet.

Letters of the shapes: R anchors of all levels together, P proposals of all images, C channels, K classes without
background.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, box_area, clip_boxes_to_image, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .backbones import with_pyramid
from .design import Design
from .geometry import ClippedBoxCoder, StrideAnchors
from .matching import ForcedMatcher, SizedTransform, match_in_own_padding
from .processes import averaged_over_processes

STRIDES = (4, 8, 16, 32, 64)
CANDIDATES_IN_TRAINING = 2000
"""Best anchors of a level, by score, from which NMS chooses the proposals of a training step."""


def build_torchvision(design: Design, *, fc_channels: int = 1024) -> FasterRCNN:
    """Build torchvision's ``FasterRCNN`` with five levels, P2 to P6.

    Args:
        design: the options of every builder.
        fc_channels: of the two layers of the box head.
    """
    neck = design.neck_channels
    sizes = tuple((stride * (design.anchor_scale or 8.0),) for stride in STRIDES)
    return FasterRCNN(
        with_pyramid(design.body(), neck, 2, LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=TwoMLPHead(neck * 7**2, fc_channels),  # torchvision pools 7 x 7 cells
        box_predictor=FastRCNNPredictor(fc_channels, design.num_classes + 1),
        **design.transform,
    )


class MMDetFasterRCNN(FasterRCNN):
    """torchvision's ``FasterRCNN`` with parts that compute the same as mmdet's.

    It is called as torchvision's: ``model(images, targets)`` returns losses in training, ``model(images)`` detections
    in evaluation. The labels are 1..K, and 0 is the background.

    Args:
        backbone: a backbone with its pyramid.
        rpn: the first stage.
        roi_heads: the second stage.
        transform: normalises, resizes and pads.
    """

    def __init__(self, backbone: nn.Module, rpn: "MMDetRPN", roi_heads: "MMDetRoIHeads", transform: SizedTransform):
        super(FasterRCNN, self).__init__(
            backbone, rpn, roi_heads, transform
        )  # torchvision's own constructor builds its own parts


class RandomSampler:
    """Draw positives and negatives as mmdet does: at random only if there are more than needed.

    It is called as torchvision's ``BalancedPositiveNegativeSampler``. Under the same seed it draws the same samples as
    mmdet.

    Args:
        count: samples per image.
        positive_fraction: largest share of positives among them.
    """

    def __init__(self, count: int, positive_fraction: float):
        self.count, self.positive_fraction = count, positive_fraction

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw from the labels (R,) of each image, positive from 1 on, negative at 0: two masks (R,) per image."""
        positives, negatives = [], []
        for row in labels:
            positives.append(self._draw(row >= 1, int(self.count * self.positive_fraction)))
            negatives.append(self._draw(row == 0, self.count - int(positives[-1].sum())))
        return positives, negatives

    @staticmethod
    def _draw(candidates: Tensor, wanted: int) -> Tensor:
        index = torch.where(candidates)[0]
        if len(index) <= wanted:
            return candidates
        drawn = index[torch.randperm(len(index))[:wanted].to(index.device)]
        return torch.zeros_like(candidates).index_fill_(0, drawn, True)


class MMDetRPN(RegionProposalNetwork):
    """torchvision's region proposals with mmdet's matching, sampling, losses and limits.

    The arguments are torchvision's.
    """

    proposal_matcher: Any

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.box_coder = ClippedBoxCoder((1.0, 1.0, 1.0, 1.0))
        self.proposal_matcher = ForcedMatcher(settings["fg_iou_thresh"], settings["bg_iou_thresh"], 0.3)
        self.fg_bg_sampler = RandomSampler(settings["batch_size_per_image"], settings["positive_fraction"])
        self.min_size = torch.finfo(torch.float32).tiny  # only empty boxes are dropped

    def assign(
        self,
        anchors: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Match the anchors to the objects of each image.

        An anchor belongs to an object if their IoU is at least 0.7. Below 0.3 it is background, between the two it is
        ignored. But an object takes the anchors that overlap it most if their IoU is at least 0.3.

        Arguments and result are those of :meth:`.MMDetRetinaNet.assign`.
        """
        return match_in_own_padding(self.proposal_matcher.match, anchors, targets, image_sizes)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors 1 (object), 0 (background) or -1 (ignored), and return the target box of each."""
        matched = self.assign(anchors[:1], targets, [tuple(target["image_size"].tolist()) for target in targets])
        return rpn_targets(targets, matched)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute cross-entropy and L1 loss, each summed over the drawn anchors and divided by their number.

        The number is averaged over processes. An image without positives, or without negatives, counts as one anchor
        more.
        """
        drawn = self.fg_bg_sampler(labels)
        count = torch.stack([mask.sum().clamp(min=1) for masks in drawn for mask in masks]).sum()
        positive, negative = (torch.cat(masks) for masks in drawn)
        either = positive | negative
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[either], torch.cat(labels)[either], reduction="sum"
        )
        box_loss = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        divisor = averaged_over_processes(count)
        return objectness_loss / divisor, box_loss / divisor

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        # By score, not by logit, and by mmdet's own call, which decides the order of scores equal in float32.
        best, first = [], 0
        for logits in objectness.split(num_anchors_per_level, dim=1):
            order = logits.sigmoid().argsort(dim=1, descending=True)
            best.append(first + order[:, : self.pre_nms_top_n()])
            first += logits.shape[1]
        return torch.cat(best, dim=1)


class MMDetRoIPool(nn.Module):
    """Pool the features under each proposal, from one level by its size, with as many samples as its cells need.

    Args:
        strides: pixels per cell of the levels that are pooled from, fine to coarse.
    """

    cells = 7
    """Height and width of the pooled features."""
    finest_size = 56
    """Proposals of up to twice this side, in pixels, are pooled from the finest level."""

    def __init__(self, strides: Sequence[int]):
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool the features (P, C, 7, 7) of the P proposals of all images; it is called as torchvision's."""
        features = list(x.values())[: len(self.strides)]
        images = [torch.full_like(own[:, :1], number) for number, own in enumerate(boxes)]
        regions = torch.cat([torch.cat(images), torch.cat(boxes)], dim=1)
        sizes = box_area(regions[:, 1:]).sqrt()
        levels = (sizes / self.finest_size + 1e-6).log2().floor().clamp(0, len(features) - 1)
        pooled = features[0].new_zeros(len(regions), features[0].shape[1], self.cells, self.cells)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            index = torch.where(levels == level)[0]
            samples = roi_align(feature.to(regions), regions[index], self.cells, 1 / stride, 0, aligned=True)
            pooled[index] = samples.to(pooled.dtype)
        return pooled


class MMDetRoIHeads(RoIHeads):
    """torchvision's second stage with mmdet's sampling, losses and choice of detections. Class 0 is the background.

    The arguments are torchvision's.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.box_coder = ClippedBoxCoder(self.box_coder.weights)
        self.fg_bg_sampler = RandomSampler(settings["batch_size_per_image"], settings["positive_fraction"])
        for layer in (self.box_head.fc6, self.box_head.fc7):
            nn.init.xavier_uniform_(layer.weight)
        for layer, spread in ((self.box_predictor.cls_score, 0.01), (self.box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
        for layer in (*self.box_head.children(), *self.box_predictor.children()):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Compute the detections from the proposals of each image; in training, the losses."""
        labels, wanted = [], []
        if self.training:
            proposals, _, labels, wanted = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        class_logits, deltas = self.box_predictor(self.box_head(pooled))
        if self.training:
            loss_classifier, loss_box_reg = self.compute_loss(class_logits, deltas, labels, wanted)
            return [], {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}
        found = self.postprocess_detections(class_logits, deltas, proposals, image_shapes)
        return [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in zip(*found, strict=True)], {}

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:
        """Prepend the objects to the proposals."""
        return [torch.cat([boxes, own]) for own, boxes in zip(proposals, gt_boxes, strict=True)]

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match the proposals to objects by their IoU, and each object among them to itself."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for index, row, own in zip(matched, labels, gt_labels, strict=True):
            index[: len(own)] = torch.arange(len(own), device=own.device)
            row[: len(own)] = own
        return matched, labels

    def compute_loss(
        self, class_logits: Tensor, deltas: Tensor, labels: list[Tensor], regression_targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute cross-entropy and L1 loss, each summed over the drawn proposals and divided by their number.

        The number is averaged over processes.
        """
        classes = torch.cat(labels)
        positive = torch.where(classes > 0)[0]
        found = deltas.unflatten(-1, (-1, 4))[positive, classes[positive]]
        box_loss = F.l1_loss(found, torch.cat(list(regression_targets))[positive], reduction="sum")
        divisor = averaged_over_processes(classes.new_tensor(len(classes)))
        return F.cross_entropy(class_logits, classes, reduction="sum") / divisor, box_loss / divisor

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Choose the detections of each image: score threshold, NMS within each class, best overall."""
        counts = [len(own) for own in proposals]
        all_boxes = self.box_coder.decode_single(box_regression, torch.cat(proposals)).unflatten(-1, (-1, 4))
        all_scores = class_logits.softmax(-1)
        per_image = zip(all_boxes.split(counts), all_scores.split(counts), image_shapes, strict=True)
        found = []
        for own_boxes, own_scores, size in per_image:
            rows, classes = torch.where(own_scores[:, 1:] > self.score_thresh)
            labels = classes + 1
            own_boxes, own_scores = clip_boxes_to_image(own_boxes[rows, labels], size), own_scores[rows, labels]
            kept = batched_nms(own_boxes, own_scores, labels, self.nms_thresh)[: self.detections_per_img]
            found.append((own_boxes[kept], own_scores[kept], labels[kept]))
        boxes, scores, labels = (list(part) for part in zip(*found, strict=True))
        return boxes, scores, labels


def rpn_targets(
    targets: Sequence[dict[str, Tensor]], matched: Sequence[Tensor] | Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the RPN should predict at the anchors of each image.

    Args:
        targets: per image ``boxes`` (M, 4).
        matched: per image (R,), number of the object, -1 background, -2 ignored.

    Returns:
        Per image labels (R,), 1 object, 0 background, -1 ignored, and boxes (R, 4); without an object, any box.
    """
    labels, boxes = [], []
    for target, index in zip(targets, matched, strict=True):
        own = target["boxes"]
        labels.append((index >= 0).float().masked_fill(index == -2, -1))
        boxes.append(own[index.clamp(min=0)] if len(own) else own.new_zeros(len(index), 4))
    return labels, boxes


def build_mmdet(
    design: Design,
    *,
    style: str = "pytorch",
    fc_channels: int = 1024,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections: int = 100,
    proposals: int = 1000,
    rpn_candidates: int = 1000,
    rpn_nms_threshold: float = 0.7,
) -> MMDetFasterRCNN:
    """Build mmdet's Faster R-CNN with five levels, P2 to P6; the defaults are those of mmdet's configs.

    Args:
        design: the options of every builder.
        style: convolution of a ResNet's bottleneck that has its stride: the 3x3 (``"pytorch"``) or the first 1x1
            (``"caffe"``).
        fc_channels: of the two layers of the box head.
        ratios: height divided by width of the anchors.
        score_threshold: the score of a detection is above this.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        detections: most boxes of an image.
        proposals: most proposals of an image.
        rpn_candidates: best anchors of a level, by score, from which NMS chooses the proposals; 2000 in training.
        rpn_nms_threshold: IoU above which the weaker of two proposals of a level is dropped.
    """
    neck = design.neck_channels
    anchors = StrideAnchors(STRIDES, (design.anchor_scale or 8.0,), ratios)
    rpn = MMDetRPN(
        anchors,
        RPNHead(neck, len(ratios)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": CANDIDATES_IN_TRAINING, "testing": rpn_candidates},
        post_nms_top_n={"training": proposals, "testing": proposals},
        nms_thresh=rpn_nms_threshold,
    )
    roi_heads = MMDetRoIHeads(
        MMDetRoIPool(STRIDES[:4]),
        TwoMLPHead(neck * MMDetRoIPool.cells**2, fc_channels),
        FastRCNNPredictor(fc_channels, design.num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=512,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=detections,
    )
    backbone = with_pyramid(design.body(style), neck, 2, LastLevelMaxPool())
    return MMDetFasterRCNN(backbone, rpn, roi_heads, SizedTransform(**design.transform))


BUILDERS = {"torchvision": build_torchvision, "mmdet": build_mmdet}
"""The function that builds the network, by conventions; its keyword arguments are the family's settings."""
