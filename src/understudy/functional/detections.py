"""Detections of the teacher's layers on the student's features, compared with the teacher's own (Dist2)."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from understudy.functional.precision import comparable
from understudy.functional.richness import SMALLEST_MASS
from understudy.networks.processes import averaged_over_processes


def soft_detection_loss(class_logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor) -> Tensor:
    """Compare detections with the teacher's, weighted by the teacher's scores.

    This is our choice for Dist2's distribution imitation without labels; it is in no paper. At every anchor the binary
    cross-entropy of the scores with the teacher's as soft targets, summed over classes, is added to one minus the GIoU
    of the two boxes. The sum over images and anchors is weighted by the teacher's highest score and divided by the sum
    of the weights, averaged over processes. The minimum is the entropy of the teacher's scores, not zero.

    Args:
        class_logits: (N, R, K), before the sigmoid.
        boxes: (N, R, 4), xyxy.
        teacher_logits: (N, R, K); a constant.
        teacher_boxes: (N, R, 4); a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = comparable(class_logits, teacher_logits, "class logits")
    target = theirs.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(own, target, reduction="none").sum(-1)
    apart = generalized_box_iou_loss(*comparable(boxes, teacher_boxes, "boxes"))
    weight = target.amax(-1)
    return (weight * (entropy + apart)).sum() / averaged_over_processes(weight.sum(), SMALLEST_MASS)
