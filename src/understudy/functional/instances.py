"""The boxes on which two detectors disagree, and the losses in these boxes (GID)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from understudy.functional.precision import at_least_float32, comparable
from understudy.networks.processes import averaged_over_processes

USUAL_SIDE, USUAL_STRIDE = 224.0, 16
"""An object of this side is pooled from the level of this stride (Lin et al., CVPR 2017, Eq. 1)."""

REGION_CELLS = 10
"""Cells per side of a pooled region (GID, the first author's re-implementation)."""

INSTANCE_CANDIDATES, INSTANCE_OVERLAP, INSTANCE_SIDE = 3000, 0.3, 10.0
"""Constants of GID's instances (the first author's re-implementation): number of candidates, the IoU above which a box
suppresses a worse one, and the length in pixels that both sides must exceed."""


def scored_boxes(class_logits: Sequence[Tensor], boxes: Sequence[Tensor], per_cell: bool) -> tuple[Tensor, Tensor]:
    """Collect the highest score and the box of every anchor, or of the best anchor of every cell.

    Args:
        class_logits: per level (N, H, W, A, K).
        boxes: per level (N, H, W, A, 4).
        per_cell: keep only the best anchor of every cell, for detectors with different numbers of anchors.

    Returns:
        Scores (N, R) in 0..1 and boxes (N, R, 4), R anchors or cells of all levels.
    """
    scores = [at_least_float32(level).amax(-1).sigmoid() for level in class_logits]
    if per_cell:
        best = [level.argmax(-1, keepdim=True) for level in scores]
        scores = [level.gather(-1, index) for level, index in zip(scores, best, strict=True)]
        boxes = [level.take_along_dim(index[..., None], -2) for level, index in zip(boxes, best, strict=True)]
    return torch.cat([level.flatten(1) for level in scores], 1), torch.cat([level.flatten(1, 3) for level in boxes], 1)


@torch.no_grad()
def general_instances(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    image_size: tuple[int, int],
    count: int = 10,
) -> Tensor:
    """Find the boxes of an image on which two detectors disagree most, independent of the labels.

    The general instances of GID (Dai et al., CVPR 2021): anchors are ranked by the difference of the two scores, the
    box is that of the detector with the higher score, and boxes that overlap a better one are left out. The number of
    candidates and the smallest side are those of the first author's re-implementation.

    Args:
        student_scores: (R,), in 0..1.
        teacher_scores: (R,), in 0..1.
        student_boxes: (R, 4), xyxy in pixels.
        teacher_boxes: (R, 4), xyxy in pixels.
        image_size: height and width in pixels, to which boxes are clipped.
        count: most boxes to find.

    Returns:
        (G, 4), G at most ``count``, the greatest disagreement first.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0, 20, 20], [30, 30, 60, 60]])
        >>> general_instances(torch.tensor([0.9, 0.1]), torch.tensor([0.8, 0.7]), boxes, boxes + 1, (64, 64), count=1)
        tensor([[31., 31., 61., 61.]])
    """
    surer = teacher_scores - student_scores
    boxes = torch.where((surer > 0)[:, None], teacher_boxes, student_boxes)
    distance, best = surer.abs().topk(min(INSTANCE_CANDIDATES, len(surer)))
    boxes = clip_boxes_to_image(boxes[best], image_size)
    large = (boxes[:, 2:] - boxes[:, :2] > INSTANCE_SIDE).all(1)
    boxes = boxes[large]
    return boxes[nms(boxes, distance[large].to(boxes.dtype), INSTANCE_OVERLAP)[:count]]


def disagreements(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    image_sizes: Sequence[tuple[int, int]],
    count: int = 10,
) -> list[Tensor]:
    """Find the :func:`general_instances` of every image of a batch.

    Args:
        student: scores (N, R) and boxes (N, R, 4), from :func:`scored_boxes`.
        teacher: likewise.
        image_sizes: height and width in pixels of each image, to which boxes are clipped.
        count: most boxes per image.

    Returns:
        Per image (G, 4), xyxy in pixels.
    """
    images = zip(student[0], teacher[0], student[1], teacher[1], image_sizes, strict=True)
    return [general_instances(*image, count) for image in images]


def pooled_regions(features: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Pool the features of boxes from a pyramid, each from the level of its size, to 10 x 10 cells.

    RoIAlign (He et al., ICCV 2017) with two samples per side of a cell and its half-pixel shift corrected. The level is
    chosen by the rule of FPN (Lin et al., CVPR 2017, Eq. 1): stride 16 for boxes of 224 pixels.

    Args:
        features: per level (N, C, H, W), of equal channels.
        boxes: per image (G_i, 4), xyxy in pixels.
        strides: pixels per cell of every level.

    Returns:
        (G, C, 10, 10), the G boxes of all images, ordered by level; connected to the features even if G is 0.
    """
    sides = [(each[:, 2:] - each[:, :2]).prod(1).sqrt() for each in boxes]
    exponents = [(side / USUAL_SIDE + 1e-8).log2().floor() + math.log2(USUAL_STRIDE) for side in sides]
    edges = torch.tensor([math.log2(stride) for stride in strides[1:]], device=features[0].device)
    levels = [torch.bucketize(exponent, edges.to(exponent.dtype), right=True) for exponent in exponents]
    regions = []
    for number, (level, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = [each[place == number].to(level.dtype) for each, place in zip(boxes, levels, strict=True)]
        regions.append(_aligned(level, chosen, stride))
    return torch.cat(regions)


def losses_of_regions(
    student: Sequence[Tensor], teacher: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]
) -> dict[str, Tensor]:
    """Compare the features of boxes, and the distances between the boxes in these features (GID).

    Args:
        student: per level (N, C, H, W), adapted to the teacher's channels.
        teacher: per level (N, C, H, W); constants.
        boxes: per image (G_i, 4), xyxy in pixels.
        strides: pixels per cell of every level.

    Returns:
        ``feature``, the :func:`region_loss`, and ``relation``, the :func:`distance_relation_loss`, of the boxes'
        :func:`pooled_regions`: two scalars.
    """
    own, theirs = (pooled_regions(features, boxes, strides) for features in (student, teacher))
    relation = distance_relation_loss(own.flatten(1), theirs.flatten(1))
    return {"feature": region_loss(own, theirs), "relation": relation}


def region_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared difference of the features of boxes.

    The feature term of GID (Dai et al., CVPR 2021), with the reduction of the first author's re-implementation: summed
    over channels, averaged over boxes and their cells. The number of boxes is averaged over processes.

    Args:
        student: (G, C, S, S), adapted to the teacher's channels.
        teacher: (G, C, S, S); a constant.

    Returns:
        A scalar; zero without boxes.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = comparable(student, teacher, "regions")
    squares = (own - theirs).square().sum(1)
    return squares.sum() / averaged_over_processes(squares.new_tensor(squares.numel()))


def distance_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the distances between the features of boxes with the teacher's.

    The relation term of GID (Dai et al., CVPR 2021): Euclidean distances of all pairs of boxes, divided by the
    detector's mean distance; smooth L1 (beta 1) between the two detectors, averaged over the G * (G - 1) ordered pairs.

    Args:
        student: (G, D), the boxes of the whole batch.
        teacher: (G, D); a constant. D may differ from the student's.

    Returns:
        A scalar; zero for fewer than three boxes, since a single distance has no relation to another.

    Raises:
        ValueError: student and teacher do not have one row for each of the same boxes.
    """
    count = len(student)
    if (student.dim(), teacher.dim()) != (2, 2) or len(teacher) != count:
        raise ValueError(
            f"expected (G, D) for both, got student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    if count < 3:
        return at_least_float32(student[:0]).sum()
    own, theirs = _relative_distances(student), _relative_distances(teacher.detach())
    return F.smooth_l1_loss(own, theirs, reduction="sum") / (count * (count - 1))


def response_class_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the class scores of some anchors with the teacher's.

    The class part of GID's response term (Dai et al., CVPR 2021), as in the first author's re-implementation: binary
    cross-entropy with the teacher's scores as soft targets, summed over classes, averaged over anchors (their number
    over processes).

    Args:
        student: (P, K) logits.
        teacher: (P, K) logits; a constant.

    Returns:
        A scalar; zero without anchors.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = comparable(student, teacher, "class logits")
    entropy = F.binary_cross_entropy_with_logits(own, theirs.sigmoid(), reduction="sum")
    return entropy / averaged_over_processes(own.new_tensor(len(own)))


def response_box_loss(student: Tensor, teacher: Tensor, beta: float = 0.1) -> Tensor:
    """Compare the raw box outputs of some anchors with the teacher's.

    The box part of GID's response term (Dai et al., CVPR 2021), as in the first author's re-implementation: smooth L1,
    summed over the numbers of a box, averaged over anchors (their number over processes).

    Args:
        student: (P, D).
        teacher: (P, D); a constant.
        beta: difference below which the loss is quadratic; 0.1 is that of its configuration of RetinaNet.

    Returns:
        A scalar; zero without anchors.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = comparable(student, teacher, "box outputs")
    return F.smooth_l1_loss(own, theirs, reduction="sum", beta=beta) / averaged_over_processes(own.new_tensor(len(own)))


def _aligned(features: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
    features = at_least_float32(features)
    boxes = [each.to(features.dtype) for each in boxes]
    return roi_align(features, boxes, REGION_CELLS, 1 / stride, sampling_ratio=2, aligned=True)


def _relative_distances(features: Tensor) -> Tensor:
    # Without matrix products: they lose small distances, and their gradient at zero is not zero.
    features = at_least_float32(features)
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (len(features) * (len(features) - 1))
    return distances / mean.clamp(min=1e-12)
