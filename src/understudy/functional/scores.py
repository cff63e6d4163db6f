"""Losses between class scores, anchor by anchor: ranks, soft labels, and features weighted by their difference."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.functional.distributions import softened_divergence
from understudy.functional.precision import above_zero, comparable

Score = Literal["sigmoid", "logit"]


def log_softmax_of_groups(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Compute the logarithm of a softmax over the members of each group, for all groups at once.

    Args:
        values: (P,).
        group: (P,) int64, the group of each value, 0 to ``groups`` - 1. A group may be empty.
        groups: number of groups.

    Returns:
        (P,).

    Examples:
        >>> log_softmax_of_groups(torch.tensor([1.0, 1.0, 5.0]), torch.tensor([0, 0, 2]), groups=3).exp()
        tensor([0.5000, 0.5000, 1.0000])
    """
    lowest = values.new_full((groups,), -torch.inf)
    # Subtracting a constant from a whole group does not change its softmax, so no gradient is needed through it.
    shifted = values - lowest.scatter_reduce(0, group, values.detach(), "amax")[group]
    total = values.new_zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total[group].log()


def rank_loss(
    student: Tensor,
    teacher: Tensor,
    objects: Tensor,
    counts: Sequence[int],
    temperature: float = 1.0,
    images: int | Tensor | None = None,
) -> Tensor:
    """Compare the student's ranking of the anchors of each object with the teacher's.

    RM (Li et al., AAAI 2022), rank mimicking: for each object the Kullback-Leibler divergence of the teacher's softmax
    over its anchors from the student's, summed over the anchors, averaged over all objects of an image, then over
    images (by second-hand sources). Objects with fewer than two anchors have no ranking and add zero.

    Args:
        student: (P,) scores of the anchors that are assigned to an object.
        teacher: (P,) the teacher's scores; a constant.
        objects: (P,) int64, the number of each anchor's object among the objects of the whole batch.
        counts: number of objects of each image.
        temperature: divides the scores.
        images: number of images that have a ground truth, over which to average; None: all.

    Returns:
        A scalar.

    Raises:
        ValueError: student and teacher differ in number, or the temperature is not above 0.

    Examples:
        >>> scores = torch.tensor([0.9, 0.6, 0.3])
        >>> rank_loss(scores - 0.2, scores, objects=torch.tensor([0, 0, 0]), counts=[1]) < 1e-6  # the same ranking
        tensor(True)
    """
    per_image = torch.tensor(counts, device=objects.device)
    own, theirs = (
        log_softmax_of_groups(scores / above_zero(temperature), objects, sum(counts))
        for scores in comparable(student, teacher, "scores")
    )
    images = len(counts) if images is None else images
    siblings = per_image.repeat_interleave(per_image, output_size=sum(counts))  # (M,) objects of each object's image
    return (theirs.exp() * (theirs - own) / siblings[objects]).sum() / torch.as_tensor(images).clamp(min=1)


def prediction_guided_loss(
    student: Tensor,
    teacher: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    score: Score = "logit",
    power: Literal[1, 2] = 1,
    normaliser: Literal["mean", "norm"] = "mean",
    detach: bool = False,
) -> Tensor:
    """Compare the features of one level, weighted by the difference of the predictions in each cell.

    PFI (Li et al., AAAI 2022), prediction-guided feature imitation: in every cell the squared difference of the
    predictions, averaged over anchors and classes, times that of the features, averaged over channels; this product
    to a power, averaged over images and cells. The paper's own equation was not available to us. The default is that
    of an implementation with a known weight; the keyword arguments cover the points where others differ.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W); a constant.
        student_logits: (N, H, W, A, K).
        teacher_logits: (N, H, W, A, K); a constant.
        score: predictions are logits, or their sigmoid.
        power: exponent of the product.
        normaliser: ``"mean"`` over images and cells, or their 2-norm ``"norm"`` divided by their number (with power
            1), which shrinks as the batch grows.
        detach: no gradient flows through the difference of the predictions.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes of student and teacher differ, or features and predictions have different cells.
    """
    own, theirs = comparable(student_logits, teacher_logits, "class logits")
    cells = (len(student), *student.shape[2:])
    if own.shape[:3] != cells:
        raise ValueError(f"features have {cells} images, rows and columns, class logits {tuple(own.shape[:3])}")
    if score == "sigmoid":
        own, theirs = own.sigmoid(), theirs.sigmoid()
    predictions = (own - theirs).square().mean((-2, -1))
    student, teacher = comparable(student, teacher)
    features = (student - teacher).square().mean(1)
    product = ((predictions.detach() if detach else predictions) * features) ** power
    return product.mean() if normaliser == "mean" else torch.linalg.vector_norm(product) / product.numel()


def soft_label_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, loss: Literal["bce", "kl"] = "bce"
) -> Tensor:
    """Compare class scores with the teacher's as soft labels.

    ``"kl"`` is that of knowledge distillation (Hinton et al., 2015), section 2: softmaxes over the classes, softened by
    a temperature (:func:`softened_divergence`). ``"bce"`` is its counterpart for detectors that score each class by
    itself (ours): binary cross-entropy with the teacher's sigmoid, of logits divided by T, times T squared. Its minimum
    is the entropy of the teacher's scores, not zero.

    Args:
        student: (..., K) logits.
        teacher: (..., K) logits; a constant.
        temperature: above 0.
        loss: ``"bce"`` or ``"kl"``.

    Returns:
        (...), the sum over classes; not reduced further.

    Raises:
        ValueError: the shapes differ, the temperature is not above 0, or there is no such loss.

    Examples:
        >>> soft_label_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, -9.0]]))
        tensor([1.3863])
    """
    if loss == "kl":
        return softened_divergence(student, teacher, temperature)
    if loss != "bce":
        raise ValueError(f'loss: expected "bce" or "kl", got {loss!r}')
    own, theirs = (logits / above_zero(temperature) for logits in comparable(student, teacher, "class logits"))
    target = theirs.sigmoid()
    return F.binary_cross_entropy_with_logits(own, target, reduction="none").sum(-1) * temperature**2


def softmax_label_loss(student: Tensor, teacher: Tensor, background: float = 1.5) -> Tensor:
    """Compare class scores of a softmax with the teacher's as soft labels, with a weight of the background.

    Chen et al. (NeurIPS 2017), the class scores of a second stage: cross-entropy with the teacher's scores, in which
    each class has a weight, 1.5 for the background and 1 for the others. Its minimum is not zero.

    Args:
        student: (..., K + 1) logits, the background first.
        teacher: (..., K + 1) scores, which add up to 1; constants.
        background: weight of the background.

    Returns:
        (...), the sum over classes; not reduced further.

    Raises:
        ValueError: the shapes differ.

    Examples:
        >>> softmax_label_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([0.8664])
    """
    own, theirs = comparable(student, teacher, "class scores")
    entropy = -theirs * own.log_softmax(-1)
    return background * entropy[..., 0] + entropy[..., 1:].sum(-1)


def gap_weighted_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare class scores with the teacher's, weighted by their difference.

    BCKD (Yang et al., ICCV 2023), the binary classification distillation: the absolute difference of the two scores
    times the binary cross-entropy of the student's with the teacher's as soft label. This is the quality focal loss
    with beta 1. As in that loss, gradient flows through the difference, too.

    Args:
        student: (..., K) logits.
        teacher: (..., K) logits; a constant.

    Returns:
        (...), the sum over classes; not reduced further.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = comparable(student, teacher, "class logits")
    target = theirs.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(own, target, reduction="none")
    return ((own.sigmoid() - target).abs() * entropy).sum(-1)


def score_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the largest absolute difference, over the classes, between the scores of two detectors.

    BCKD (Yang et al., ICCV 2023), the weight of an anchor's box.

    Args:
        student: (..., K) logits.
        teacher: (..., K) logits; a constant.

    Returns:
        (...), 0..1.

    Raises:
        ValueError: the shapes differ.

    Examples:
        >>> score_gap(torch.zeros(1, 2), torch.tensor([[0.0, 30.0]]))
        tensor([0.5000])
    """
    own, theirs = comparable(student, teacher, "class logits")
    return (own.sigmoid() - theirs.sigmoid()).abs().amax(-1)
