"""Two feature maps of one level, or one stage, compared: each function has its authors' reduction.

The same printed formula differs by factors of hundreds between authors, because one averages what another sums; so a
published weight belongs to one of these functions and to no other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.functional.precision import above_zero, at_least_float32, comparable
from understudy.functional.richness import feature_richness, weighted_feature_loss

SMALLEST_DEVIATION = 1e-6
"""Added to a channel's standard deviation before dividing by it (PKD's authors' code)."""

RARELY_NEGATIVE = 1e-3
"""Below this chance of a negative response its expectation is not computed but set (Overhaul's authors' code)."""


def mean_squared_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Draw every value of a feature map to the teacher's.

    FitNets (Romero et al., ICLR 2015), Eq. 3: squared differences, averaged over images, channels and cells. (The
    equation has half of a sum; detectors use the mean.)

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W); a constant, no gradient reaches it.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = comparable(student, teacher)
    return (student - teacher).square().mean()


def squared_loss_per_image(student: Tensor, teacher: Tensor) -> Tensor:
    """Draw a whole feature map to the teacher's, the larger map and the more channels the harder.

    The generation loss of MGD (Yang et al., ECCV 2022) for one level, in its authors' reduction: squared differences,
    summed over channels and cells, averaged over images.

    Args:
        student: (N, C, H, W), what was generated from the student's.
        teacher: (N, C, H, W); a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = comparable(student, teacher)
    return (student - teacher).square().sum() / len(student)


def score_weighted_loss(student: Tensor, teacher: Tensor, class_logits: Tensor) -> Tensor:
    """Draw features to the teacher's where the teacher sees something, whatever the number of channels.

    The feature term that Ultralytics ships, for one level, by its formula: squared differences under the teacher's
    highest class score of each cell, summed over images, channels and cells, divided by the sum of these scores over
    the images and cells of the batch, and by the channels. It is FRS' Eq. 6 divided by C.

    Args:
        student: (N, C, H, W), adapted to the teacher's channels.
        teacher: (N, C, H, W); a constant.
        class_logits: the teacher's, (N, H, W, A, K), before the sigmoid; a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    scores = feature_richness(class_logits.detach())
    return weighted_feature_loss(student, teacher, scores, "batch") / teacher.shape[1]


def channelwise_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Let every channel respond at the same places as the teacher's, however strongly.

    CWD (Shu et al., ICCV 2021): a channel's map becomes a distribution over cells by a softmax; Kullback-
    Leibler divergence from the student's to the teacher's, summed over cells, averaged over images and channels, times
    the squared temperature. A constant added to a channel changes nothing.

    Args:
        student: (N, C, H, W), as many channels as the teacher's.
        teacher: (N, C, H, W); a constant.
        temperature: above zero, divides both; large values spread a channel's weight over more cells.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    own, theirs = ((maps / above_zero(temperature)).flatten(2).log_softmax(-1) for maps in comparable(student, teacher))
    divergence = F.kl_div(own, theirs, reduction="sum", log_target=True)
    return divergence * temperature**2 / own[..., 0].numel()


def standardised(features: Tensor) -> Tensor:
    """Give every channel mean 0 and standard deviation 1 over the images and cells of the batch.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, C, H, W). The deviation is the unbiased one; a channel that is constant, or of a single cell, becomes zero.
    """
    features = at_least_float32(features)
    # Counted from one of its values a constant channel is exactly 0: the round-off of the mean of large values is far
    # above the 1e-6, and would become a pattern. In the result, and its gradient, this value cancels out.
    features = features - features[:1, :, :1, :1].detach()
    centred = features - features.mean((0, 2, 3), keepdim=True)
    count = features[:, 0].numel()
    # A norm has a gradient of zero at zero, where a square root's is infinite.
    deviation = torch.linalg.vector_norm(centred, dim=(0, 2, 3), keepdim=True) / math.sqrt(max(count - 1, 1))
    return centred / (deviation + SMALLEST_DEVIATION)


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Let every channel rise and fall where the teacher's does; its mean and its scale are left to the student.

    PKD (Cao et al., NeurIPS 2022), by its authors' code: half of the squared difference of standardised channels,
    averaged over images, channels and cells. With n images times cells this is (n - 1) / n * (1 - r), r the mean over
    channels of the Pearson correlation, so it lies in 0..2; by that n it depends slightly on the size of the batch. A
    channel that is constant on one side counts as half of an uncorrelated one, on both as 0.

    Args:
        student: (N, C, H, W), as many channels as the teacher's.
        teacher: (N, C, H, W); a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = comparable(student, teacher)
    return (standardised(student) - standardised(teacher)).square().mean() / 2


def shown_cells(features: Tensor, hidden: float) -> Tensor:
    """Draw which cells of a map may be seen, for every image anew, the same for all channels.

    The random mask of MGD (Yang et al., ECCV 2022). It draws from torch's global random numbers.

    Args:
        features: (N, C, H, W), of which only shape and device are read.
        hidden: chance of a cell to be hidden, in 0..1.

    Returns:
        (N, 1, H, W) bool.

    Raises:
        ValueError: the chance is not in 0..1.
    """
    if not 0 <= hidden <= 1:
        raise ValueError(f"the chance of a cell to be hidden is in 0..1, got {hidden}")
    return torch.rand(len(features), 1, *features.shape[2:], device=features.device) >= hidden


def spatial_attention(features: Tensor, temperature: float) -> Tensor:
    """Say which cells a map attends to: those with large values in many channels.

    The spatial attention of FKD (Zhang & Ma, ICLR 2021), which FGD took over: absolute values averaged over channels,
    then a softmax over cells.

    Args:
        features: (N, C, H, W).
        temperature: above zero; a small one sharpens.

    Returns:
        (N, H, W), at least 0; an image's sum is H * W.
    """
    mean = at_least_float32(features).abs().mean(1)
    return (mean / above_zero(temperature)).flatten(1).softmax(1).view_as(mean) * mean[0].numel()


def channel_attention(features: Tensor, temperature: float) -> Tensor:
    """Say which channels a map attends to: those with large values in many cells.

    The channel attention of FKD (Zhang & Ma, ICLR 2021), which FGD took over: absolute values averaged over cells,
    then a softmax over channels.

    Args:
        features: (N, C, H, W).
        temperature: above zero; a small one sharpens.

    Returns:
        (N, C), at least 0; an image's sum is C.
    """
    mean = at_least_float32(features).abs().mean((2, 3))
    return (mean / above_zero(temperature)).softmax(1) * mean.shape[1]


@torch.no_grad()
def mean_attention(student: Tensor, teacher: Tensor, temperature: float, channels_of: Tensor | None = None) -> Tensor:
    """Say what a student and its teacher attend to on average; a constant, the student's part too.

    FKD (Zhang & Ma, ICLR 2021), by its authors' code: the mean of both spatial attentions, for a one-stage detector
    times the mean of both channel attentions.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W).
        temperature: above zero, of both attentions.
        channels_of: (N, C', H, W), student's features in the teacher's channels, whose attention to channels is
            multiplied in; None: attention to cells alone.

    Returns:
        (N, C', H, W), or (N, 1, H, W) for cells alone; at least 0, with mean 1 in each image.
    """
    cells = (spatial_attention(student, temperature) + spatial_attention(teacher, temperature))[:, None] / 2
    if channels_of is None:
        return cells
    channels = channel_attention(channels_of, temperature) + channel_attention(teacher, temperature)
    return cells * channels[:, :, None, None] / 2


def batch_distance(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Measure how far two maps lie apart as two long vectors, one for the whole batch.

    The distance of FKD (Zhang & Ma, ICLR 2021), in the reduction of its authors' code: squared differences, weighted,
    summed over everything, the batch included, and the square root of that. Nothing is averaged: a batch that is
    repeated twice gives sqrt(2) times the value. Where the two are equal the gradient is zero.

    Args:
        student: of any shape.
        teacher: of the same shape; a constant.
        weight: at least 0, of a shape that broadcasts to theirs; a constant. None: 1 everywhere.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = comparable(student, teacher)
    difference = student - teacher
    if weight is not None:
        difference = difference * at_least_float32(weight.detach()).sqrt()
    return torch.linalg.vector_norm(difference)


def negative_margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """The negative response one expects of each channel: the mean of a normal distribution below zero.

    The margin of Overhaul (Heo et al., ICCV 2019). Where a negative response is rarer than 0.001 it is three deviations
    below zero, as in the authors' code.

    Args:
        mean: (C,), of the channels before their ReLU.
        deviation: (C,), at least 0.

    Returns:
        (C,), at most 0.
    """
    mean, deviation = at_least_float32(mean), at_least_float32(deviation)
    ratio = mean / deviation.clamp(min=torch.finfo(deviation.dtype).tiny)
    # Far from zero the ratio of density to chance is of no use, and must not be infinite.
    ratio = ratio.clamp(-1e3, 1e3)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    chance = torch.special.ndtr(-ratio)
    expected = mean - deviation * density / chance.clamp(min=RARELY_NEGATIVE)
    return torch.where(chance > RARELY_NEGATIVE, expected, -3 * deviation)


def margin_target(teacher: Tensor, margin: Tensor) -> Tensor:
    """Raise what the teacher's ReLU throws away to a margin, below which the student need not go.

    The margin ReLU of Overhaul (Heo et al., ICCV 2019): the larger of response and margin. The authors read responses
    before the ReLU. Behind one, an exact zero stands for an unknown negative response, and its expectation, the
    margin, is put in its place (our reading).

    Args:
        teacher: (N, C, H, W), before or behind the ReLU; a constant.
        margin: (C,), at most 0.

    Returns:
        (N, C, H, W).
    """
    teacher, margin = at_least_float32(teacher.detach()), margin.detach().view(1, -1, 1, 1)
    return torch.where(teacher == 0, margin, torch.maximum(teacher, margin))


def partial_distance(student: Tensor, target: Tensor) -> Tensor:
    """Draw features to a target, but where the target is negative only from above.

    The partial L2 distance of Overhaul (Heo et al., ICCV 2019): squared differences, left out where the student does
    not lie above a target that is not positive, summed over channels and cells, averaged over images.

    Args:
        student: (N, C, H, W), through the connector.
        target: (N, C, H, W), of :func:`margin_target`; a constant.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    student, target = comparable(student, target)
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).sum() / len(student)
