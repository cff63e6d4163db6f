"""Losses between two feature maps of one level or stage, each with its authors' reduction.

The same printed formula differs between authors by factors of hundreds, because one averages and another sums. So a
published weight belongs to one of these functions and to no other.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.functional.precision import above_zero, at_least_float32, comparable
from understudy.functional.richness import feature_richness, weighted_feature_loss
from understudy.networks.processes import averaged_over_processes

SMALLEST_DEVIATION = 1e-6
"""Added to a channel's standard deviation before dividing by it (PKD's authors' code)."""

Standardise = Literal["level", "channel"]
"""What a standard deviation of the teacher's features is taken of."""

LEAST_OF_LEVEL = 0.1
"""Smallest deviation of a channel, relative to the mean of its level: the differences in a channel that hardly varies
are enlarged at most ten times (ours)."""

CONSTANT = 1e-5
"""Deviation, relative to the size of the features, below which a level counts as constant."""

RARELY_NEGATIVE = 1e-3
"""Below this probability of a negative response its expectation is set, not computed (Overhaul's authors' code)."""


def mean_squared_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of two feature maps.

    FitNets (Romero et al., ICLR 2015), Eq. 3, averaged over images, channels and cells. (The equation has half of a
    sum; detectors use the mean.)

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W), a constant: no gradient reaches it.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.

    Examples:
        >>> mean_squared_loss(torch.full((1, 2, 2, 2), 3.0), torch.ones(1, 2, 2, 2))
        tensor(4.)
    """
    student, teacher = comparable(student, teacher)
    return (student - teacher).square().mean()


def squared_loss_per_image(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared difference of two feature maps, summed over cells and channels.

    The generation loss of MGD (Yang et al., ECCV 2022) for one level, in its authors' reduction: averaged over images
    alone, so larger maps and more channels give larger values.

    Args:
        student: (N, C, H, W), generated from the student's features.
        teacher: (N, C, H, W), a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = comparable(student, teacher)
    return (student - teacher).square().sum() / len(student)


def score_weighted_loss(student: Tensor, teacher: Tensor, class_logits: Tensor) -> Tensor:
    """Compute the mean squared difference of two feature maps, weighted by the teacher's class scores.

    The feature term in Ultralytics' toolkit, for one level, from its formula. The weight of a cell is the teacher's
    highest class score there. The sum over images, channels and cells is divided by the sum of the weights over images
    and cells, and by the channels. It is FRS' Eq. 6 divided by C.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W), a constant.
        class_logits: the teacher's, (N, H, W, A, K), before the sigmoid; a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    scores = feature_richness(class_logits.detach())
    return weighted_feature_loss(student, teacher, scores, "batch") / teacher.shape[1]


def channelwise_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute how much the distribution of each channel over the cells differs from the teacher's.

    CWD (Shu et al., ICCV 2021). A softmax turns the map of a channel into a distribution over cells. The Kullback-
    Leibler divergence of the teacher's from the student's is summed over cells, averaged over images and channels, and
    multiplied by the squared temperature. A constant added to a channel changes nothing.

    Args:
        student: (N, C, H, W), with the teacher's channels.
        teacher: (N, C, H, W), a constant.
        temperature: above zero, divides both; large values spread a channel over more cells.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or the temperature is not above zero.

    Examples:
        >>> maps = torch.rand(1, 2, 4, 4)
        >>> channelwise_loss(maps + 7, maps).abs() < 1e-6
        tensor(True)
    """
    own, theirs = ((maps / above_zero(temperature)).flatten(2).log_softmax(-1) for maps in comparable(student, teacher))
    divergence = F.kl_div(own, theirs, reduction="sum", log_target=True)
    return divergence * temperature**2 / own[..., 0].numel()


def standardised(features: Tensor) -> Tensor:
    """Return the features with mean 0 and standard deviation 1 per channel, over the images and cells of the batch.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, C, H, W). The deviation is the unbiased one; a channel that is constant, or of a single cell, becomes zero.
    """
    features = at_least_float32(features)
    # Minus one of its own values a constant channel is exactly 0. Otherwise the round-off of the mean of large values,
    # far above the 1e-6, would become a pattern. In the result and its gradient this value cancels out.
    features = features - features[:1, :, :1, :1].detach()
    centred = features - features.mean((0, 2, 3), keepdim=True)
    count = features[:, 0].numel()
    # A norm has a gradient of zero at zero, where a square root's is infinite.
    deviation = torch.linalg.vector_norm(centred, dim=(0, 2, 3), keepdim=True) / math.sqrt(max(count - 1, 1))
    return centred / (deviation + SMALLEST_DEVIATION)


@torch.no_grad()
def deviation(features: Tensor, each: Standardise) -> Tensor:
    """Return the standard deviation of a level, or of each of its channels, over the batches of all processes.

    The statistics are those of this step, so there is no state to save. Padding is part of the batch.

    Args:
        features: (N, C, H, W).
        each: ``"level"`` for one deviation over images, channels and cells, ``"channel"`` for one per channel, at least
            :data:`LEAST_OF_LEVEL` of their root mean square.

    Returns:
        (1, 1, 1, 1) or (1, C, 1, 1), above zero; 1 if the whole level is constant.

    Raises:
        ValueError: neither a level's nor a channel's is asked for.

    Examples:
        >>> deviation(torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]]), each="channel").flatten()
        tensor([1., 4.])
    """
    if each not in ("level", "channel"):
        raise ValueError(f'expected the deviation of each "level" or "channel", got {each!r}')
    features = at_least_float32(features)
    dims = (0, 2, 3) if each == "channel" else (0, 1, 2, 3)

    def mean(values: Tensor) -> Tensor:
        total = values.sum(dims, keepdim=True)
        count = averaged_over_processes(total.new_tensor(values.numel() / total.numel()))
        return averaged_over_processes(total, -math.inf) / count

    middle = mean(features)
    spread = mean((features - middle).square()).sqrt()
    usual, size = spread.square().mean().sqrt(), (middle.square() + spread.square()).mean().sqrt()
    return torch.where(usual > CONSTANT * size, spread.clamp(min=LEAST_OF_LEVEL * usual), 1.0)


def in_deviations(
    student: Iterable[Tensor], teacher: Sequence[Tensor], each: Standardise | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Divide both sides of a comparison by the teacher's deviation, so that features of all levels have the same size.

    This is the comparison of features that are standardised by the teacher's mean and deviation: the mean cancels out
    in their difference.

    Args:
        student: per level (N, C, H, W), with the teacher's channels.
        teacher: per level (N, C, H, W).
        each: see :func:`deviation`; None returns both as they are.

    Returns:
        Both sides, in the same shapes.
    """
    if each is None:
        return list(student), list(teacher)
    sizes = [deviation(level, each) for level in teacher]
    own, theirs = ([level / size for level, size in zip(side, sizes, strict=True)] for side in (student, teacher))
    return own, theirs


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute one minus the correlation of each channel with the teacher's; mean and scale of a channel are free.

    PKD (Cao et al., NeurIPS 2022), by its authors' code: half of the squared difference of standardised channels,
    averaged over images, channels and cells. With n images times cells this is (n - 1) / n * (1 - r), where r is the
    mean over channels of the Pearson correlation. So it lies in 0..2, and depends slightly on the size of the batch. A
    channel that is constant on one side counts as half of an uncorrelated one, on both sides as 0.

    Args:
        student: (N, C, H, W), with the teacher's channels.
        teacher: (N, C, H, W), a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.

    Examples:
        >>> maps = torch.rand(2, 3, 4, 4)
        >>> correlation_loss(5 * maps - 1, maps) < 1e-6
        tensor(True)
    """
    student, teacher = comparable(student, teacher)
    return (standardised(student) - standardised(teacher)).square().mean() / 2


def shown_cells(features: Tensor, hidden: float) -> Tensor:
    """Return random cells of each image to show, the same for all channels; the others are hidden.

    The random mask of MGD (Yang et al., ECCV 2022), from torch's global random numbers.

    Args:
        features: (N, C, H, W); only shape and device are read.
        hidden: probability that a cell is hidden, in 0..1.

    Returns:
        (N, 1, H, W) bool.

    Raises:
        ValueError: the probability is not in 0..1.
    """
    if not 0 <= hidden <= 1:
        raise ValueError(f"hidden: expected a probability in 0..1, got {hidden}")
    return torch.rand(len(features), 1, *features.shape[2:], device=features.device) >= hidden


def spatial_attention(features: Tensor, temperature: float) -> Tensor:
    """Return the attention of a map to its cells: high where many channels have large absolute values.

    The spatial attention of FKD (Zhang & Ma, ICLR 2021), which FGD took over: absolute values averaged over channels,
    then a softmax over cells.

    Args:
        features: (N, C, H, W).
        temperature: above zero; a small one sharpens.

    Returns:
        (N, H, W), at least 0; the sum over an image is H * W.

    Examples:
        >>> spatial_attention(torch.rand(1, 3, 2, 5), temperature=0.5).sum().round()
        tensor(10.)
    """
    mean = at_least_float32(features).abs().mean(1)
    return (mean / above_zero(temperature)).flatten(1).softmax(1).view_as(mean) * mean[0].numel()


def channel_attention(features: Tensor, temperature: float) -> Tensor:
    """Return the attention of a map to its channels: high where many cells have large absolute values.

    The channel attention of FKD (Zhang & Ma, ICLR 2021), which FGD took over: absolute values averaged over cells,
    then a softmax over channels.

    Args:
        features: (N, C, H, W).
        temperature: above zero; a small one sharpens.

    Returns:
        (N, C), at least 0; the sum over an image is C.
    """
    mean = at_least_float32(features).abs().mean((2, 3))
    return (mean / above_zero(temperature)).softmax(1) * mean.shape[1]


@torch.no_grad()
def mean_attention(student: Tensor, teacher: Tensor, temperature: float, channels_of: Tensor | None = None) -> Tensor:
    """Return the mean attention of student and teacher, a constant for both.

    FKD (Zhang & Ma, ICLR 2021), by its authors' code: the mean of both spatial attentions, for a one-stage detector
    times the mean of both channel attentions.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W).
        temperature: above zero, of both attentions.
        channels_of: (N, C', H, W), the student's features in the teacher's channels, for the attention to channels;
            None: attention to cells alone.

    Returns:
        (N, C', H, W), or (N, 1, H, W) for cells alone; at least 0, with mean 1 in each image.
    """
    cells = (spatial_attention(student, temperature) + spatial_attention(teacher, temperature))[:, None] / 2
    if channels_of is None:
        return cells
    channels = channel_attention(channels_of, temperature) + channel_attention(teacher, temperature)
    return cells * channels[:, :, None, None] / 2


def batch_distance(student: Tensor, teacher: Tensor, weight: Tensor | None = None, images: int | None = None) -> Tensor:
    """Compute the 2-norm of the difference of two maps, over the whole batch.

    The distance of FKD (Zhang & Ma, ICLR 2021), in the reduction of its authors' code: the square root of the weighted
    squared differences, summed over everything, the batch included. It is no average: repeating the batch twice
    multiplies it by sqrt(2), unless ``images`` is given. If the maps are equal, the gradient is zero.

    Args:
        student: (N, ...).
        teacher: of the same shape, a constant.
        weight: at least 0, of a shape that broadcasts to theirs, a constant. None: 1 everywhere.
        images: the number of images that the norm is scaled to: it is divided by sqrt(N / images), so that it does not
            depend on N if all images have the same squared difference. None: not scaled.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = comparable(student, teacher)
    difference = student - teacher
    if weight is not None:
        difference = difference * at_least_float32(weight.detach()).sqrt()
    return torch.linalg.vector_norm(difference) * math.sqrt(images / len(student) if images else 1)


def negative_margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """Compute the expected negative response of each channel: the mean of the part of a normal distribution below 0.

    The margin of Overhaul (Heo et al., ICCV 2019). If a negative response has a probability below 0.001, it is three
    deviations below zero, as in the authors' code.

    Args:
        mean: (C,), of the channels before their ReLU.
        deviation: (C,), at least 0.

    Returns:
        (C,), at most 0.
    """
    mean, deviation = at_least_float32(mean), at_least_float32(deviation)
    ratio = mean / deviation.clamp(min=torch.finfo(deviation.dtype).tiny)
    # Far from zero the ratio of density to probability is not used, but must not be infinite.
    ratio = ratio.clamp(-1e3, 1e3)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    chance = torch.special.ndtr(-ratio)
    expected = mean - deviation * density / chance.clamp(min=RARELY_NEGATIVE)
    return torch.where(chance > RARELY_NEGATIVE, expected, -3 * deviation)


def margin_target(teacher: Tensor, margin: Tensor) -> Tensor:
    """Raise the teacher's negative responses to a margin, below which the student need not go.

    The margin ReLU of Overhaul (Heo et al., ICCV 2019): the larger one of response and margin. The authors read
    responses before the ReLU. After a ReLU, an exact zero stands for an unknown negative response, and its expectation,
    the margin, takes its place (our reading).

    Args:
        teacher: (N, C, H, W), before or after the ReLU; a constant.
        margin: (C,), at most 0.

    Returns:
        (N, C, H, W).

    Examples:
        >>> margin_target(torch.tensor([[[[2.0, 0.0, -0.5]]]]), torch.tensor([-1.0]))
        tensor([[[[ 2.0000, -1.0000, -0.5000]]]])
    """
    teacher, margin = at_least_float32(teacher.detach()), margin.detach().view(1, -1, 1, 1)
    return torch.where(teacher == 0, margin, torch.maximum(teacher, margin))


def partial_distance(student: Tensor, target: Tensor) -> Tensor:
    """Compute the squared difference of features from a target, without those that lie below a negative target.

    The partial L2 distance of Overhaul (Heo et al., ICCV 2019): left out where the target is not positive and the
    student does not lie above it; summed over channels and cells, averaged over images.

    Args:
        student: (N, C, H, W), after the connector.
        target: (N, C, H, W), of :func:`margin_target`, a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, target = comparable(student, target)
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).sum() / len(student)
