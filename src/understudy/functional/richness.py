"""Weight maps from a teacher's class scores, and losses under them (FRS)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.functional.precision import at_least_float32, comparable
from understudy.networks.geometry import centres, paired_giou
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Truth, unflatten_levels

Normaliser = Literal["batch", "image"] | Tensor
"""What the weighted sum over the cells of a level is divided by: a name, or the divisor itself."""

Region = Literal["richness", "tp", "tp_fp", "tp_fn", "tp_tn"]
"""Cells that FRS compares: all, weighted by richness, or those of a region of the paper's Table 4."""

WITHOUT_TRUTH = ("richness", "tp_fp")
"""Regions that do not depend on the ground truth."""

RICH = 0.1
"""Score above which a cell counts as detected, in the authors' ablation (their code)."""

RARE = 0.05
"""Part of a weight map's sum below which the cells of a class gain little more influence by being balanced: a class
without an object has cells, too, of low scores. It does not depend on the number of classes: of many classes, most are
below it, and balancing has less effect."""

SMALLEST_MASS = 1e-6
"""Smallest divisor for a weight map: an empty mask gives zero, not NaN."""


def feature_richness(class_logits: Tensor, centerness: Tensor | None = None) -> Tensor:
    """Return the highest class score of a detector in every cell.

    FRS (Du et al., NeurIPS 2021), Eq. 5. The paper takes the maximum over classes; the authors' code takes it over
    classes and anchors, as does this. With centre-ness it is the highest product of the two scores, which the authors'
    development code tries for FCOS and their release leaves out.

    Args:
        class_logits: (N, H, W, A, K), before the sigmoid.
        centerness: (N, H, W, A), before the sigmoid; None: without it.

    Returns:
        (N, H, W), in 0..1. Differentiable; a teacher's richness is used as a constant.

    Raises:
        ValueError: the logits have other dimensions.

    Examples:
        >>> feature_richness(torch.tensor([-2.0, 0.0, -1.0]).view(1, 1, 1, 1, 3))
        tensor([[[0.5000]]])
    """
    if class_logits.dim() != 5:
        raise ValueError(f"class logits: expected the shape (N, H, W, A, K), got {tuple(class_logits.shape)}")
    if centerness is None:
        return at_least_float32(class_logits).amax((-2, -1)).sigmoid()
    return (at_least_float32(class_logits).amax(-1).sigmoid() * at_least_float32(centerness).sigmoid()).amax(-1)


def richness_mask(
    richness: Tensor, objects: Tensor | None = None, region: Region = "richness", threshold: float | None = None
) -> Tensor:
    """Choose cells by whether teacher and ground truth have an object there.

    FRS (Du et al., NeurIPS 2021), Table 4; the paper names the regions, the authors' development code defines them.
    With D the cells whose richness is above the threshold and G those of an object: ``"tp"`` is D and G, ``"tp_fp"``
    is D, ``"tp_fn"`` is G, and ``"tp_tn"`` is where D equals G.

    Args:
        richness: (N, H, W), in 0..1.
        objects: (N, H, W) bool, cells with an anchor that is assigned to an object; required by all regions but
            ``"richness"`` and ``"tp_fp"``.
        region: which cells. ``"richness"`` returns the richness itself or, with a threshold, the same as ``"tp_fp"``.
        threshold: a score in 0..1; None: :data:`RICH`.

    Returns:
        (N, H, W), 0 or 1 except for ``"richness"`` without a threshold.

    Raises:
        ValueError: the region requires the cells of objects.

    Examples:
        >>> richness = torch.tensor([[[0.9, 0.3, 0.05]]])
        >>> richness_mask(richness, region="tp_fp", threshold=0.5)
        tensor([[[1., 0., 0.]]])
    """
    if region == "richness" and threshold is None:
        return richness
    detected = richness > (RICH if threshold is None else threshold)
    if region in WITHOUT_TRUTH:
        return detected.to(richness.dtype)
    if objects is None:
        raise ValueError(f"the region {region!r} needs the cells of objects, got None")
    chosen = {"tp": detected & objects, "tp_fn": objects, "tp_tn": detected == objects}[region]
    return chosen.to(richness.dtype)


@torch.no_grad()
def richness_masks(
    student: Outputs,
    teacher: Outputs,
    truth: Truth,
    centerness: bool = False,
    region: Region = "richness",
    threshold: float | None = None,
) -> list[Tensor]:
    """Return the weight of every cell of two records, from the teacher's scores and for some regions the ground truth.

    Args:
        student: the record to whose anchors the ground truth is assigned.
        teacher: the record with the scores.
        truth: ground truth. Regions that read it contain no cell of an unlabelled image, and ``"tp_tn"`` none of an
            object of a class that the teacher lacks.
        centerness: multiply by the teacher's centre-ness, see :func:`feature_richness`.
        region: see :func:`richness_mask`.
        threshold: see :func:`richness_mask`.

    Returns:
        Per level (N, H, W), constants.

    Raises:
        ValueError: the teacher's record has no centre-ness.
    """
    levels = zip(teacher.class_logits, _centerness(teacher, centerness), strict=True)
    richness = [feature_richness(*level) for level in levels]
    if region in WITHOUT_TRUTH:
        return [richness_mask(level, None, region, threshold) for level in richness]
    assigned = unflatten_levels(truth.gt_index, student.level_sizes, student.class_logits[0].shape[-2])
    levels = zip(richness, assigned, strict=True)
    masks = [richness_mask(level, (index >= 0).any(-1), region, threshold) for level, index in levels]
    masks = [mask * truth.labelled[:, None, None] for mask in masks]
    if region != "tp_tn" or not truth.left_out:
        return masks
    levels = zip(masks, student.anchors, assigned, strict=True)
    return [mask * ((index >= 0).any(-1) | ~cells_within(cells, truth.left_out)) for mask, cells, index in levels]


def cells_within(anchors: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Return whether the middle of a cell's anchors (H, W, A, 4) lies in one of an image's boxes (X, 4): (N, H, W)."""
    middles = centres(anchors[:, :, :1])
    inside = [((middles > each[:, :2]) & (middles < each[:, 2:])).all(-1).any(-1) for each in boxes]
    return torch.stack(inside)


def total_mass(weights: Sequence[Tensor]) -> Tensor:
    """Sum the weight maps of several levels over all images and cells, as one divisor for all of these levels.

    Args:
        weights: per level (N, H, W), not negative.

    Returns:
        A scalar above zero, averaged over processes.

    Examples:
        >>> total_mass([torch.ones(1, 2, 2), torch.tensor([[[0.5]]])])
        tensor(4.5000)
    """
    masses = [at_least_float32(level).sum() for level in weights]
    return averaged_over_processes(torch.stack(masses).sum(), SMALLEST_MASS)


def class_factors(masses: Tensor) -> Tensor:
    """Return factors for classes, so that none has most of the influence because it is frequent (ours).

    A class k that has the part p_k of all gets the factor (1/K + s) / (p_k + s), where K is the number of classes and
    s is :data:`RARE`. Classes far below this part have nearly the same factor, so many classes are balanced less than
    few. Of 3 classes, parts of 93 % and 2 % (46:1) become 3.3:1; of 80 classes, parts of 20 % and 0.25 % (80:1) become
    16.8:1.

    Args:
        masses: (K,), not negative: the weights or the number of what belongs to each class in the batch; several
            processes count theirs together.

    Returns:
        (K,), constants.

    Examples:
        >>> class_factors(torch.tensor([3.0, 1.0])).round(decimals=2)
        tensor([0.6900, 1.8300])
    """
    masses = averaged_over_processes(at_least_float32(masses.detach()), SMALLEST_MASS)
    return (1 / len(masses) + RARE) / (masses / masses.sum() + RARE)


@torch.no_grad()
def balanced_over_classes(weights: Sequence[Tensor], class_logits: Sequence[Tensor]) -> list[Tensor]:
    """Multiply weight maps by a factor per class, so that no class has most of their sum because it is frequent.

    An option for FRS (ours, in no paper). A cell belongs to the class with the teacher's highest score there, and is
    multiplied by the factor of this class (:func:`class_factors`).

    Args:
        weights: per level (N, H, W), not negative.
        class_logits: the teacher's, per level (N, H, W, A, K); several processes count their images together.

    Returns:
        Per level (N, H, W), constants.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]).view(1, 1, 4, 1, 2)
        >>> balanced_over_classes([torch.ones(1, 1, 4)], [logits])[0].round(decimals=2)
        tensor([[[0.6900, 0.6900, 0.6900, 1.8300]]])
    """
    classes = class_logits[0].shape[-1]
    of_cells = [level.amax(-2).argmax(-1) for level in class_logits]
    pairs = list(zip(of_cells, map(at_least_float32, weights), strict=True))
    sums = [torch.zeros(classes, device=w.device).index_add(0, of.flatten(), w.flatten()) for of, w in pairs]
    factors = class_factors(torch.stack(sums).sum(0))
    return [weight * factors[of] for of, weight in pairs]


def highest_of_cell(class_logits: Tensor) -> Tensor:
    """Return the highest score of a cell over its anchors, for each class, for detectors with other anchors.

    Args:
        class_logits: (N, H, W, A, K).

    Returns:
        (N, H, W, 1, K); anchors with the same highest score share its gradient.
    """
    return class_logits.amax(-2, keepdim=True)


def weighted_feature_loss(student: Tensor, teacher: Tensor, weight: Tensor, normaliser: Normaliser = "batch") -> Tensor:
    """Compute the squared difference of two feature maps, averaged over cells by a weight map.

    FRS (Du et al., NeurIPS 2021), Eq. 6, for one level: summed over channels, weighted and summed over cells, divided
    by the sum of the weights.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W), a constant: no gradient reaches it.
        weight: (N, H, W), not negative; its scale does not matter.
        normaliser: ``"batch"`` sums over all images and divides once by the weights of all images (the authors' code),
            averaged over processes.
            ``"image"`` divides per image and averages over images (the equation read literally).
            A tensor is the divisor itself, e.g. :func:`total_mass` of all levels.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the normaliser is unknown.

    Examples:
        >>> student, teacher = torch.zeros(1, 4, 1, 2), torch.ones(1, 4, 1, 2)
        >>> weighted_feature_loss(student, teacher, weight=torch.tensor([[[1.0, 0.5]]]))  # 4 channels, each off by 1
        tensor(4.)
    """
    own, theirs = comparable(student, teacher)
    return _weighted_mean_of_cells((own - theirs).square().sum(1), weight, normaliser)


def weighted_class_loss(student: Tensor, teacher: Tensor, weight: Tensor, normaliser: Normaliser = "batch") -> Tensor:
    """Compute the cross-entropy of two maps of class scores, averaged over cells by a weight map.

    FRS (Du et al., NeurIPS 2021), Eq. 7, for one level: binary cross-entropy of the student's scores with the
    teacher's scores as soft targets, summed over anchors and classes, weighted and summed over cells, divided by the
    sum of the weights. Its minimum is the teacher's own entropy, not zero.

    Args:
        student: (N, H, W, A, K) logits.
        teacher: (N, H, W, A, K) logits; their sigmoid is the target, a constant.
        weight: (N, H, W), not negative.
        normaliser: as in :func:`weighted_feature_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the normaliser is unknown.
    """
    own, theirs = comparable(student, teacher, "class logits")
    entropy = F.binary_cross_entropy_with_logits(own, theirs.sigmoid(), reduction="none")
    return _weighted_mean_of_cells(entropy.sum((-2, -1)), weight, normaliser)


def weighted_box_loss(student: Tensor, teacher: Tensor, weight: Tensor, normaliser: Normaliser = "batch") -> Tensor:
    """Compute the squared difference of two maps of raw box outputs, averaged over cells by a weight map.

    An optional term of the development code of FRS' authors (Du et al., NeurIPS 2021), not in the paper: summed over
    anchors and the numbers of a box, weighted and summed over cells, divided by the sum of the weights.

    Args:
        student: (N, H, W, A, D), of the teacher's box code.
        teacher: (N, H, W, A, D), a constant.
        weight: (N, H, W), not negative.
        normaliser: as in :func:`weighted_feature_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the normaliser is unknown.
    """
    own, theirs = comparable(student, teacher, "box outputs")
    return _weighted_mean_of_cells((own - theirs).square().sum((-2, -1)), weight, normaliser)


def weighted_giou_loss(
    student: Tensor, teacher: Tensor, class_logits: Tensor, weight: Tensor, normaliser: Normaliser = "batch"
) -> Tensor:
    """Compute one minus the GIoU of two maps of decoded boxes, averaged over cells by a weight map.

    A box term for FRS (ours, in no paper), for one level. The anchors of a cell are averaged in proportion to the
    teacher's highest class score of each, so that anchors without a detection hardly count. Weighted and summed over
    cells, divided by the sum of the weights, it lies in 0..2 whatever the box code and the size of the objects.

    Args:
        student: (N, H, W, A, 4), xyxy in pixels.
        teacher: (N, H, W, A, 4), a constant.
        class_logits: the teacher's, (N, H, W, A, K), before the sigmoid; a constant.
        weight: (N, H, W), not negative.
        normaliser: as in :func:`weighted_feature_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the normaliser is unknown.
    """
    own, theirs = comparable(student, teacher, "boxes")
    # The softmax of logarithms is the share of each score in their sum.
    shares = F.logsigmoid(at_least_float32(class_logits.detach()).amax(-1)).softmax(-1)
    return _weighted_mean_of_cells(((1 - paired_giou(own, theirs)) * shares).sum(-1), weight, normaliser)


def _centerness(outputs: Outputs, wanted: bool) -> Sequence[Tensor | None]:
    """Return the centre-ness of every level, (N, H, W, A) logits; None per level if it is not wanted."""
    if not wanted:
        return [None] * len(outputs.class_logits)
    if "centerness" not in outputs.extra:
        raise ValueError("centerness=True: the teacher's record has no centre-ness")
    return unflatten_levels(outputs.extra["centerness"], outputs.level_sizes, outputs.class_logits[0].shape[-2])


def _weighted_mean_of_cells(cells: Tensor, weight: Tensor, normaliser: Normaliser) -> Tensor:
    if cells.shape != weight.shape:
        raise ValueError(f"weight map of shape {tuple(weight.shape)} for cells of shape {tuple(cells.shape)}")
    weight = at_least_float32(weight)
    if isinstance(normaliser, Tensor):
        return (cells * weight).sum() / normaliser
    if normaliser == "batch":
        return (cells * weight).sum() / total_mass([weight])
    if normaliser == "image":
        return ((cells * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=SMALLEST_MASS)).mean()
    raise ValueError(f'normaliser: expected "batch" or "image", got {normaliser!r}')
