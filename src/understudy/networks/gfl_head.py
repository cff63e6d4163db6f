"""The head of a GFL (Li et al., NeurIPS 2020) with its box code and its losses.

Letters of the shapes: N images, R anchors of all levels together, K classes without background, M objects of an image,
n ``reg_max``. A side is a distribution over the distances 0, 1, ..., n.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from .dense import flat, initialise, tower
from .geometry import boxes_around, centres, distances_to_sides, integral, paired_iou
from .processes import averaged_over_processes


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Compute the binary cross-entropy towards a quality, weighted by the distance of the score from it.

    Eq. 2 of the paper: the target of the object's class is the IoU of the predicted box, that of all others 0.

    Args:
        logits: of any shape; a score is a logit's sigmoid.
        quality: of the same shape, 0..1.
        beta: power of the distance between score and quality.

    Returns:
        The loss of each element, not reduced.
    """
    distance = (quality - logits.sigmoid()).abs()
    return distance.pow(beta) * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Compute the cross-entropy with the two whole distances beside the true one, each weighted by its nearness.

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
    """Code boxes as distances from the centre of a square anchor to the four sides, in strides.

    Args:
        anchor_scale: side of an anchor in strides, which gives the stride.
        reg_max: the largest distance n.
    """

    def __init__(self, anchor_scale: float, reg_max: int):
        self.anchor_scale, self.reg_max = anchor_scale, reg_max

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Measure boxes (..., 4) from their anchors (..., 4): distances (..., 4), limited to 0 and n - 0.1."""
        distances = distances_to_sides(centres(anchors), boxes) / self._strides(anchors)
        return distances.clamp(0, self.reg_max - 0.1)  # below n, since the loss needs a whole distance above it

    def decode(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Compute the boxes (..., 4) in pixels at the expected distances of the logits (..., 4 * (n + 1))."""
        return boxes_around(centres(anchors), integral(raw) * self._strides(anchors))

    def _strides(self, anchors: Tensor) -> Tensor:
        return (anchors[..., 2:3] - anchors[..., 0:1]) / self.anchor_scale


class GFLClassificationHead(nn.Module):
    """Scores of the classes, each of which also estimates the quality of the box; see :class:`GFLHead`."""

    def __init__(self, in_channels: int, num_classes: int, stacked_convs: int, groups: int):
        super().__init__()
        self.conv = tower(in_channels, stacked_convs, groups)
        self.cls_logits = nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=1)
        initialise(self, self.cls_logits)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute logits (N, R, K) from the levels, each (N, C, H, W)."""
        return torch.cat([flat(self.cls_logits(self.conv(level))) for level in features], dim=1)


class GFLRegressionHead(nn.Module):
    """Distributions of the four sides; see :class:`GFLHead`."""

    def __init__(self, in_channels: int, num_levels: int, reg_max: int, stacked_convs: int, groups: int):
        super().__init__()
        self.conv = tower(in_channels, stacked_convs, groups)
        self.bbox_reg = nn.Conv2d(in_channels, 4 * (reg_max + 1), kernel_size=3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        initialise(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Compute logits (N, R, 4 * (n + 1)) from the levels, each (N, C, H, W)."""
        if len(features) != len(self.scales):
            raise ValueError(
                f"The GFL head expects {len(self.scales)} levels, one for each scale, got {len(features)}."
            )
        levels = zip(features, self.scales, strict=True)
        return torch.cat([flat(self.bbox_reg(self.conv(level)) * scale) for level, scale in levels], dim=1)


class GFLHead(nn.Module):
    """The head of a GFL: two towers of convolutions, shared by all levels, and their losses.

    Args:
        in_channels: channels of every level.
        num_classes: classes K, without background.
        num_levels: levels of the pyramid; the box outputs of each level have a learnt scale.
        reg_max: the largest distance n from an anchor's centre to a side, in strides.
        anchor_scale: side of the square anchors, in strides.
        stacked_convs: convolutions of each tower.
        groups: of the towers' GroupNorm.

    Raises:
        ValueError: ``reg_max`` is below 1.
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
            raise ValueError(f"reg_max: expected at least 1, got {reg_max}")
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

        - ``classification``: the quality focal loss, summed over the batch and divided by the number of matched
          anchors. An image without any counts as one.
        - ``bbox_regression``: the GIoU loss of the matched anchors, weighted by each anchor's best score. The sum over
          the batch is divided by the sum of these weights, which is at least 1.
        - ``distribution``: the distribution focal loss, averaged over the four sides, with the same weights and
          divisor.

        Both divisors are averaged over processes, as in mmdet.

        The paper (Eq. 8) weights the last two by the scores, too, and divides all three by the number of matched
        anchors.

        Args:
            targets: per image ``boxes`` (M, 4) xyxy in pixels and ``labels`` (M,) in 0..K-1.
            head_outputs: as :meth:`forward` returns them.
            anchors: per image (R, 4).
            matched_idxs: per image (R,), number of the object, -1 background, -2 ignored.
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
        quality[images, cells, labels] = paired_iou(predicted.detach(), boxes)
        classification = quality_focal_loss(logits, quality, self.beta).sum(-1)[matched > -2].sum()

        # Without objects these sums are zeros with a graph, so that every parameter gets a gradient.
        weights = logits.detach()[positive].sigmoid().amax(-1)
        giou = generalized_box_iou_loss(predicted, boxes)
        distances = self.box_coder.encode(boxes, own_anchors)
        distribution = distribution_focal_loss(own_raw.unflatten(-1, (4, -1)), distances).mean(-1)
        divisor = averaged_over_processes(positive.sum(dim=1).clamp(min=1).sum())
        total_weight = averaged_over_processes(weights.sum())
        return {
            "classification": classification / divisor,
            "bbox_regression": self.giou_weight * (weights * giou).sum() / total_weight,
            "distribution": self.distribution_weight * (weights * distribution).sum() / total_weight,
        }
