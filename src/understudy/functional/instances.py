"""The boxes on which two detectors disagree, and what is compared there (GID)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes, roi_align

from understudy.functional.precision import at_least_float32, comparable
from understudy.outputs import Spec

USUAL_SIDE, USUAL_STRIDE = 224.0, 16
"""An object of this side is pooled from the level of this stride (Lin et al., CVPR 2017, Eq. 1)."""

REGION_CELLS = 10
"""Cells of a side of a pooled region (GID, the first author's re-implementation)."""

INSTANCE_CANDIDATES, INSTANCE_OVERLAP, INSTANCE_SIDE = 3000, 0.3, 10.0
"""Of GID's instances (the first author's re-implementation): how many anchors are looked at, the IoU above which one
suppresses another, and the shortest side in pixels."""


def scored_boxes(class_logits: Sequence[Tensor], boxes: Sequence[Tensor], per_cell: bool) -> tuple[Tensor, Tensor]:
    """Collect the highest score of every anchor, and its box; or of every cell, and the box of its best anchor.

    Args:
        class_logits: per level (N, H, W, A, K).
        boxes: per level (N, H, W, A, 4).
        per_cell: keep only the best anchor of every cell, so that detectors with other anchors compare.

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
    """Find the boxes of an image on which two detectors disagree most, whatever the labels say.

    The general instances of GID (Dai et al., CVPR 2021): the distance of the two scores of an anchor is
    its rank, the box of whichever is surer its box; those that overlap a better one are left out. The number of
    candidates and the smallest side are those of the first author's re-implementation.

    Args:
        student_scores: (R,), in 0..1.
        teacher_scores: (R,).
        student_boxes: (R, 4), xyxy in pixels.
        teacher_boxes: (R, 4).
        image_size: height and width, to which boxes are clipped.
        count: the most boxes to find.

    Returns:
        (G, 4), G at most the count, the greatest disagreement first.
    """
    surer = teacher_scores - student_scores
    boxes = torch.where((surer > 0)[:, None], teacher_boxes, student_boxes)
    distance, best = surer.abs().topk(min(INSTANCE_CANDIDATES, len(surer)))
    boxes = clip_boxes_to_image(boxes[best], image_size)
    large = remove_small_boxes(boxes, INSTANCE_SIDE)
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
        student: scores (N, R) and boxes (N, R, 4), of :func:`scored_boxes`.
        teacher: likewise.
        image_sizes: height and width of each image, to which boxes are clipped.
        count: the most boxes of an image.

    Returns:
        Per image (G, 4), xyxy in pixels.
    """
    images = zip(student[0], teacher[0], student[1], teacher[1], image_sizes, strict=True)
    return [general_instances(*image, count) for image in images]


def pooled_regions(features: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Cut boxes out of a feature pyramid, each from the level of its size, to maps of 10 x 10.

    RoIAlign (He et al., ICCV 2017), two samples a side of a cell, its half-pixel shift corrected; the level is chosen
    by the rule of FPN (Lin et al., CVPR 2017, Eq. 1): stride 16 for boxes of 224 pixels.

    Args:
        features: per level (N, C, H, W), of the same channels.
        boxes: per image (G_i, 4), xyxy in pixels.
        strides: pixels per cell of every level.

    Returns:
        (G, C, 10, 10), G boxes of all images, ordered by level; connected to the features also where G is 0.
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
    """Compare what stands in some boxes, and how the boxes of the batch lie apart in it (GID).

    Args:
        student: per level (N, C, H, W), adapted to the teacher's channels.
        teacher: per level (N, C, H, W); constants.
        boxes: per image (G_i, 4), xyxy in pixels.
        strides: pixels per cell of every level.

    Returns:
        Of the boxes' :func:`pooled_regions` as ``feature`` the :func:`region_loss`, as ``relation`` the
        :func:`distance_relation_loss`, two scalars.
    """
    own, theirs = (pooled_regions(features, boxes, strides) for features in (student, teacher))
    relation = distance_relation_loss(own.flatten(1), theirs.flatten(1))
    return {"feature": region_loss(own, theirs), "relation": relation}


def region_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Draw the features of boxes to the teacher's.

    The feature term of GID (Dai et al., CVPR 2021), in the reduction of the first author's re-implementation: squared
    differences, summed over channels, averaged over boxes and their cells.

    Args:
        student: (G, C, S, S), adapted to the teacher's channels.
        teacher: (G, C, S, S); a constant.

    Returns:
        A scalar; without boxes a zero.

    Raises:
        ValueError: shapes differ.
    """
    own, theirs = comparable(student, teacher, "regions")
    squares = (own - theirs).square().sum(1)
    return squares.sum() / max(squares.numel(), 1)


def distance_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Let boxes be alike where they are alike to the teacher.

    The relation term of GID (Dai et al., CVPR 2021): Euclidean distances of all pairs, each detector's divided by the
    mean of those above zero; smooth L1 (beta 1) between the two, summed over ordered pairs and divided by their number,
    G * (G - 1).

    Args:
        student: (G, D), the boxes of the whole batch.
        teacher: (G, D); a constant. D may differ.

    Returns:
        A scalar; a zero for fewer than three boxes, whose distances have nothing to be compared with.

    Raises:
        ValueError: the two are not of the same number of boxes, or not one row for each.
    """
    count = len(student)
    if (student.dim(), teacher.dim()) != (2, 2) or len(teacher) != count:
        raise ValueError(f"expected (G, D) of both, got student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    if count < 3:
        return at_least_float32(student[:0]).sum()
    own, theirs = _relative_distances(student), _relative_distances(teacher.detach())
    return F.smooth_l1_loss(own, theirs, reduction="sum") / (count * (count - 1))


def in_strides(box_raw: Sequence[Tensor], spec: Spec) -> list[Tensor]:
    """Make raw boxes of all detectors about as large, which a smooth L1 with one bend for all needs (ours).

    Args:
        box_raw: per level (N, H, W, A, D), as the head emits them.
        spec: of the detector.

    Returns:
        The same levels; distances in pixels divided by the level's stride.
    """
    if spec.box_code != "distances in pixels":
        return list(box_raw)
    return [level / stride for level, stride in zip(box_raw, spec.strides, strict=True)]


def response_class_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the scores of some anchors with the teacher's.

    The class part of GID's response term (Dai et al., CVPR 2021), as its first author's re-implementation: binary
    cross-entropy with the teacher's scores as soft targets, summed over classes, averaged over anchors.

    Args:
        student: (P, K) logits.
        teacher: (P, K) logits; a constant.

    Returns:
        A scalar; without anchors a zero.

    Raises:
        ValueError: shapes differ.
    """
    own, theirs = comparable(student, teacher, "class logits")
    entropy = F.binary_cross_entropy_with_logits(own, theirs.sigmoid(), reduction="sum")
    return entropy / max(len(student), 1)


def response_box_loss(student: Tensor, teacher: Tensor, beta: float = 0.1) -> Tensor:
    """Compare the raw box outputs of some anchors with the teacher's.

    The box part of GID's response term (Dai et al., CVPR 2021), as its first author's re-implementation: smooth L1,
    summed over the numbers of a box, averaged over anchors.

    Args:
        student: (P, D).
        teacher: (P, D); a constant.
        beta: difference below which the loss is quadratic (its configuration of RetinaNet).

    Returns:
        A scalar; without anchors a zero.

    Raises:
        ValueError: shapes differ.
    """
    own, theirs = comparable(student, teacher, "box outputs")
    return F.smooth_l1_loss(own, theirs, reduction="sum", beta=beta) / max(len(student), 1)


def _aligned(features: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
    features = at_least_float32(features)
    boxes = [each.to(features.dtype) for each in boxes]
    return roi_align(features, boxes, REGION_CELLS, 1 / stride, sampling_ratio=2, aligned=True)


def _relative_distances(features: Tensor) -> Tensor:
    # Not by matrix products, which lose small distances, and whose gradient at zero is not zero.
    features = at_least_float32(features)
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=1e-12)
