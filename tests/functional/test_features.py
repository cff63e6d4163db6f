"""Losses between feature maps, against known values, slow loops and their invariants."""

import math

import pytest
import torch
from references import wave

from understudy import functional

FEATURES = (2, 3, 2, 3)
TEACHER, STUDENT = wave(FEATURES, 0.7, 0.1, 1.5), wave(FEATURES, 0.9, 0.4, 1.0)
LOGITS = wave((2, 4, 2, 3), 0.5, 0.2, 3.0).permute(0, 2, 3, 1).unsqueeze(3)  # (N, H, W, 1, K)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (functional.correlation_loss(STUDENT, TEACHER), 0.856760574),
        (functional.channelwise_loss(STUDENT, TEACHER), 0.572279714),
        (functional.score_weighted_loss(STUDENT, TEACHER, LOGITS), 4.454958458 / 3),
    ],
    ids=["pkd", "cwd", "score_l2"],
)
def test_known_values(value, expected):
    """Those of PKD and CWD are also what open-mmlab/mmrazor @ 90c7af1 computes; that of score_l2 is FRS' over C."""
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_attentions_sum_to_cells_and_to_channels():
    spatial, channel = functional.spatial_attention(STUDENT, 0.1), functional.channel_attention(STUDENT, 0.1)
    assert spatial.flatten(1).sum(1).tolist() == pytest.approx([6.0, 6.0])
    assert channel.sum(1).tolist() == pytest.approx([3.0, 3.0])
    weight = functional.mean_attention(STUDENT, TEACHER, 0.1, STUDENT)
    assert weight.flatten(1).mean(1).tolist() == pytest.approx([1.0, 1.0])
    own = functional.mean_attention(STUDENT.clone().requires_grad_(), TEACHER, 0.1)
    assert not own.requires_grad


def test_correlation_ignores_scale_and_offset_and_is_at_most_two():
    scale, offset = torch.tensor([0.5, 2, 7]).view(1, 3, 1, 1), torch.tensor([-3.0, 0, 4]).view(1, 3, 1, 1)
    assert functional.correlation_loss(scale * TEACHER + offset, TEACHER).item() == pytest.approx(0, abs=1e-9)
    assert functional.correlation_loss(-TEACHER, TEACHER).item() == pytest.approx(2 * 11 / 12, abs=1e-5)


def test_deviations_by_hand():
    level = torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]])
    assert functional.deviation(level, "level").flatten().tolist() == pytest.approx([math.sqrt((4 + 0 + 9 + 25) / 4)])
    assert functional.deviation(level, "channel").flatten().tolist() == [1, 4]
    assert functional.deviation(level + 7, "channel").flatten().tolist() == [1, 4]
    assert not functional.deviation(level.requires_grad_(), "level").requires_grad
    with pytest.raises(ValueError, match='"level" or "channel", got \'batch\''):
        functional.deviation(level, "batch")


def test_a_channel_or_level_that_hardly_varies_is_not_enlarged():
    level = torch.tensor([[[[1.0, 3.0]], [[0.0, 400.0]]]])
    usual = math.sqrt((1 + 200**2) / 2)  # of the deviations 1 and 200
    assert functional.deviation(level, "channel").flatten().tolist() == pytest.approx([0.1 * usual, 200])
    constant = torch.tensor([0.1, 700.3, 0]).view(1, 3, 1, 1).expand(5, 3, 7, 11)
    for each in ("level", "channel"):
        assert functional.deviation(torch.full((2, 3, 4, 4), 123.456), each).unique().tolist() == [1]
        assert functional.deviation(torch.zeros(2, 3, 4, 4), each).unique().tolist() == [1]
    assert functional.deviation(constant, "channel").unique().tolist() == [1]
    assert functional.deviation(constant[:1, :, :1, :1], "channel").unique().tolist() == [1]  # a level of one cell


@pytest.mark.parametrize("each", ["level", "channel"])
def test_divided_features_differ_as_standardised_ones(each):
    dims = (0, 2, 3) if each == "channel" else (0, 1, 2, 3)
    middle, size = TEACHER.mean(dims, keepdim=True), TEACHER.std(dims, keepdim=True, unbiased=False)
    (own,), (theirs,) = functional.in_deviations([STUDENT], [TEACHER], each)
    assert torch.allclose(own - theirs, (STUDENT - middle) / size - (TEACHER - middle) / size)
    larger = functional.in_deviations([10 * STUDENT + 3], [10 * TEACHER + 3], each)
    assert torch.allclose(larger[0][0] - larger[1][0], own - theirs)
    assert torch.equal(functional.in_deviations([STUDENT], [TEACHER], None)[0][0], STUDENT)


def test_channelwise_ignores_a_constant_of_a_channel():
    offset = torch.tensor([-3.0, 0, 4]).view(1, 3, 1, 1)
    before, after = (functional.channelwise_loss(maps, TEACHER).item() for maps in (STUDENT, STUDENT + offset))
    assert after == pytest.approx(before)
    assert functional.channelwise_loss(TEACHER + offset, TEACHER).item() == pytest.approx(0, abs=1e-12)


def test_score_weighted_is_the_mean_square_where_all_scores_are_equal():
    same = functional.score_weighted_loss(STUDENT, TEACHER, torch.full_like(LOGITS, -1.0))
    assert same.item() == pytest.approx(functional.mean_squared_loss(STUDENT, TEACHER).item())


def test_norms_grow_with_the_batch_and_are_safe_at_zero():
    twice = [torch.cat([maps, maps]) for maps in (STUDENT, TEACHER)]
    for distance in (functional.batch_distance, functional.joint_distance):
        assert distance(*twice).item() == pytest.approx(math.sqrt(2) * distance(STUDENT, TEACHER).item())
        assert distance(STUDENT, TEACHER, images=2) == distance(STUDENT, TEACHER)  # of two images
        assert distance(*twice, images=2).item() == pytest.approx(distance(STUDENT, TEACHER).item())
        same = TEACHER.clone().requires_grad_()
        distance(same, TEACHER).backward()
        assert same.grad.abs().max() == 0
    weighted = functional.batch_distance(STUDENT, TEACHER, torch.full((2, 1, 2, 3), 4.0))
    assert weighted.item() == pytest.approx(2 * functional.batch_distance(STUDENT, TEACHER).item())


def test_random_cells_are_hidden_with_their_probability():
    features = torch.zeros(4, 3, 100, 100)
    torch.manual_seed(0)
    shown = functional.shown_cells(features, 0.65)
    assert shown.shape == (4, 1, 100, 100)
    assert shown.double().mean().item() == pytest.approx(0.35, abs=0.01)
    assert not torch.equal(shown[0], shown[1])
    assert functional.shown_cells(features, 0.0).all()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 0.4), (-1.0, 2.0), (-3.0, 0.5)])
def test_the_margin_is_the_mean_of_the_negative_part(mean, deviation):
    values = torch.linspace(mean - 12 * deviation, 0, 200_001, dtype=torch.float64)
    density = torch.exp(-((values - mean) ** 2) / (2 * deviation**2))
    expected = (density * values).sum() / density.sum()
    margin = functional.negative_margin(torch.tensor([mean]).double(), torch.tensor([deviation]).double())
    assert margin.item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_margin_of_channels_that_are_hardly_ever_negative_or_constant():
    mean, deviation = torch.tensor([4.0, 2.0, -1.5, 0.0, -3.0e3]), torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(
        functional.negative_margin(mean, deviation), torch.tensor([-3.0, 0.0, -1.5, 0.0, -3.0e3])
    )


def test_the_margin_replaces_zeros_and_limits_negative_responses():
    margin = torch.tensor([-1.0, -2.0])
    responses = torch.tensor([[-0.5, -3.0], [-0.5, -3.0], [0.0, 2.0]]).T.reshape(2, 3).T[None]  # any sign
    found = functional.margin_target(responses.reshape(1, 2, 3, 1), margin).flatten().tolist()
    given = responses.flatten().tolist()
    limits = [-1.0] * 3 + [-2.0] * 3
    assert found == [low if value == 0 else max(value, low) for value, low in zip(given, limits, strict=True)]


@pytest.mark.parametrize(
    "loss",
    [functional.correlation_loss, functional.channelwise_loss, functional.pairwise_loss, functional.batch_distance],
)
@pytest.mark.parametrize("maps", [torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 1, 1)], ids=["dead channels", "one cell"])
def test_maps_without_any_variation_give_finite_values_and_gradients(loss, maps):
    student = maps.clone().requires_grad_()
    for teacher in (maps, torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))):
        value = loss(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("value", [1234.567, -0.1, 1e-3, 3e7])
def test_a_constant_channel_becomes_zero_whatever_its_value(value):
    """The mean of 2 x 37 x 41 equal values is off by round-off, which must not be scaled up to a deviation of 1."""
    maps = torch.randn(2, 3, 37, 41, generator=torch.Generator().manual_seed(0))
    maps[:, 1] = value
    student = maps.clone().requires_grad_()
    found = functional.standardised(student)
    assert not found[:, 1].any()
    spread = (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.std((0, 2, 3), keepdim=True) + 1e-6)
    torch.testing.assert_close(found[:, ::2], spread[:, ::2])
    teacher = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    loss = functional.correlation_loss(student[:, 1:2], teacher[:, 1:2])
    n = 2 * 37 * 41
    assert loss.item() == pytest.approx((n - 1) / n / 2, rel=1e-5)
    loss.backward()
    assert student.grad.isfinite().all()
    aligned = functional.align_scale(maps, teacher)[:, 1]
    torch.testing.assert_close(aligned, teacher[:, 1].mean().expand_as(aligned))


def test_the_gradient_of_standardised_maps_is_that_of_the_formula():
    maps = (wave((2, 3, 2, 3), 0.9, 0.4, 1.0) + 5).requires_grad_()
    assert torch.autograd.gradcheck(functional.standardised, maps)


@pytest.mark.parametrize(
    "loss",
    [
        functional.mean_squared_loss,
        functional.squared_loss_per_image,
        functional.channelwise_loss,
        functional.correlation_loss,
        functional.batch_distance,
        functional.partial_distance,
    ],
)
def test_shapes_that_differ_are_refused(loss):
    with pytest.raises(ValueError, match="differ in"):
        loss(STUDENT, TEACHER[..., :1])
