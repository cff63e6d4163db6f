"""Weight maps and the losses under them, against known values, slow loops and their invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import BIG, LITTLE, made_up_specs, record, truth
from references import sigmoid, wave

from understudy.functional import (
    balanced_over_classes,
    class_factors,
    feature_richness,
    richness_mask,
    richness_masks,
    total_mass,
    weighted_box_loss,
    weighted_class_loss,
    weighted_feature_loss,
    weighted_giou_loss,
)

N, C, H, W, K = 2, 3, 2, 3, 4


def maps() -> tuple[torch.Tensor, ...]:
    def logits(rate: float, start: float, size: float) -> torch.Tensor:
        return wave((N, K, H, W), rate, start, size).permute(0, 2, 3, 1).unsqueeze(3)

    teacher, student = wave((N, C, H, W), 0.7, 0.1, 1.5), wave((N, C, H, W), 0.9, 0.4, 1.0)
    return student, teacher, logits(0.6, -0.3, 2.0), logits(0.5, 0.2, 3.0)


def test_known_values():
    """The two terms by batch are also what duzhixing/FRS @ decd60c computes; the others are our own."""
    student, teacher, student_logits, teacher_logits = maps()
    weight = feature_richness(teacher_logits)
    assert weight.sum().item() == pytest.approx(10.541784602, abs=1e-6)
    assert weighted_feature_loss(student, teacher, weight).item() == pytest.approx(4.454958458, abs=1e-6)
    assert weighted_feature_loss(student, teacher, weight, "image").item() == pytest.approx(4.460030447, abs=1e-6)
    assert weighted_class_loss(student_logits, teacher_logits, weight).item() == pytest.approx(3.911967201, abs=1e-6)
    entropy = weighted_class_loss(teacher_logits, teacher_logits, weight)
    own = weighted_class_loss(student_logits, teacher_logits, weight) - entropy
    assert own.item() == pytest.approx(2.429101600, abs=1e-6)


def slow_feature_loss(student, teacher, weight, per_image: bool) -> float:
    images = []
    for n in range(student.shape[0]):
        above = below = 0.0
        for y in range(student.shape[2]):
            for x in range(student.shape[3]):
                squares = sum((student[n, c, y, x] - teacher[n, c, y, x]).item() ** 2 for c in range(student.shape[1]))
                above += weight[n, y, x].item() * squares
                below += weight[n, y, x].item()
        images.append((above, below))
    if per_image:
        return sum(above / below for above, below in images) / len(images)
    return sum(above for above, _ in images) / sum(below for _, below in images)


def slow_class_loss(student, teacher, weight) -> float:
    above = below = 0.0
    for n, y, x in ((n, y, x) for n in range(N) for y in range(H) for x in range(W)):
        for a in range(student.shape[3]):
            for k in range(student.shape[4]):
                target = sigmoid(teacher[n, y, x, a, k].item())
                guess = sigmoid(student[n, y, x, a, k].item())
                cross = -(target * math.log(guess) + (1 - target) * math.log(1 - guess))
                above += weight[n, y, x].item() * cross
        below += weight[n, y, x].item()
    return above / below


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_equal_to_loops_written_from_the_equations(seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    student, teacher = random(N, C, H, W), random(N, C, H, W)
    student_logits, teacher_logits = random(N, H, W, 2, K), random(N, H, W, 2, K)
    weight = feature_richness(teacher_logits)
    for n, y, x in ((n, y, x) for n in range(N) for y in range(H) for x in range(W)):
        best = max(sigmoid(value) for value in teacher_logits[n, y, x].flatten().tolist())
        assert weight[n, y, x].item() == pytest.approx(best)
    for normaliser in ("batch", "image"):
        found = weighted_feature_loss(student, teacher, weight, normaliser).item()
        assert found == pytest.approx(slow_feature_loss(student, teacher, weight, normaliser == "image"))
    found = weighted_class_loss(student_logits, teacher_logits, weight).item()
    assert found == pytest.approx(slow_class_loss(student_logits, teacher_logits, weight))


def test_box_loss_against_a_loop():
    student, teacher = wave((2, 2, 3, 2, 4), 0.9, 0.4, 1.0), wave((2, 2, 3, 2, 4), 0.7, 0.1, 1.5)
    weight = wave((2, 2, 3), 0.3, 1.0, 0.4).abs()
    above = below = 0.0
    for n in range(2):
        for y in range(2):
            for x in range(3):
                squares = [(student[n, y, x, a, d] - teacher[n, y, x, a, d]) ** 2 for a in range(2) for d in range(4)]
                above += weight[n, y, x].item() * sum(squares).item()
                below += weight[n, y, x].item()
    assert weighted_box_loss(student, teacher, weight).item() == pytest.approx(above / below)
    with pytest.raises(ValueError, match="box outputs to compare differ"):
        weighted_box_loss(student[..., :2], teacher, weight)


def test_one_divisor_for_a_pyramid_by_hand():
    fine, coarse = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0]]]])
    masks = [torch.tensor([[[1.0, 0.5]]]), torch.tensor([[[0.5]]])]
    levels = list(zip((fine, coarse), (fine * 0, coarse * 0), masks, strict=True))
    assert [weighted_feature_loss(*level).item() for level in levels] == [3 / 1.5, 4.5 / 0.5]
    divisor = total_mass(masks)
    assert divisor.item() == 2
    assert [weighted_feature_loss(*level, divisor).item() for level in levels] == [3 / 2, 4.5 / 2]
    assert total_mass([masks[0] * 0]).item() == pytest.approx(1e-6)


def test_rare_classes_by_hand():
    """Two of three classes occur, one of them in a level of its own; a factor is the same on all levels."""
    often, rare = [3.0, 0.0, 0.0], [0.0, 0.0, 2.0]
    logits = [torch.tensor([often, often, rare]).view(1, 1, 3, 1, 3), torch.tensor([often]).view(1, 1, 1, 1, 3)]
    weights = [torch.tensor([[[0.5, 0.2, 0.1]]]), torch.tensor([[[0.2]]])]
    fine, coarse = balanced_over_classes(weights, logits)
    common, seldom = (1 / 3 + 0.05) / (0.9 + 0.05), (1 / 3 + 0.05) / (0.1 + 0.05)
    torch.testing.assert_close(fine, torch.tensor([[[0.5 * common, 0.2 * common, 0.1 * seldom]]]))
    torch.testing.assert_close(coarse, torch.tensor([[[0.2 * common]]]))
    best_anchor = [torch.stack([level[:, :, :, 0] * 0 - 1, level[:, :, :, 0]], 3) for level in logits]
    torch.testing.assert_close(balanced_over_classes(weights, best_anchor), [fine, coarse])
    alone = [level[..., :1] for level in logits]
    torch.testing.assert_close(balanced_over_classes(weights, alone), weights)
    empty = [level * 0 for level in weights]
    torch.testing.assert_close(balanced_over_classes(empty, logits), empty)


def test_a_class_without_influence_has_the_largest_factor_and_none_has_a_gradient():
    masses = torch.tensor([6.0, 2.0, 0.0], requires_grad=True)
    factors = class_factors(masses)
    expected = [(1 / 3 + 0.05) / (part + 0.05) for part in (0.75, 0.25, 0.0)]
    torch.testing.assert_close(factors, torch.tensor(expected))
    assert not factors.requires_grad


@pytest.mark.parametrize(("classes", "parts", "ratio"), [(3, (0.93, 0.02, 0.05), 3.32), (80, (0.2, 0.0025), 16.8)])
def test_many_classes_are_balanced_less_than_few(classes, parts, ratio):
    """The numbers in the docs: the influence of the first class over that of the second."""
    shares = torch.tensor([*parts, *[(1 - sum(parts)) / max(1, classes - len(parts))] * (classes - len(parts))])
    logits = torch.eye(classes).view(1, 1, classes, 1, classes)  # a cell for each class
    balanced = balanced_over_classes([shares.view(1, 1, classes)], [logits])[0].flatten()
    assert (balanced[0] / balanced[1]).item() == pytest.approx(ratio, rel=1e-2)


def test_boxes_by_hand():
    scores = torch.tensor([[0.6, 0.2], [0.9, 0.1]])  # of two anchors in two cells
    logits = torch.stack([scores.logit(), torch.full((2, 2), -9.0)], dim=-1).view(1, 1, 2, 2, 2).requires_grad_()
    teacher = torch.tensor([[[0.0, 0, 4, 2], [2, 0, 3, 1]], [[0, 0, 8, 8], [1, 1, 2, 2]]]).view(1, 1, 2, 2, 4)
    student = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 1, 1]], [[0, 0, 8, 8], [1, 1, 2, 2]]]).view(1, 1, 2, 2, 4)
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    # GIoU: 8 / 16 - 0 and 0 - (3 - 2) / 3; by score 0.75 * 0.5 + 0.25 * 4 / 3; the boxes of the second cell are equal
    loss = weighted_giou_loss(student, teacher, logits, torch.tensor([[[0.6, 0.9]]]))
    assert loss.item() == pytest.approx(0.6 * (0.375 + 1 / 3) / 1.5, rel=1e-5)
    loss.backward()
    assert student.grad[0, 0, 0].abs().sum(-1).gt(0).all()
    assert teacher.grad is None
    assert logits.grad is None
    with pytest.raises(ValueError, match="boxes to compare differ"):
        weighted_giou_loss(student[:, :, :1], teacher, logits, torch.ones(1, 1, 2))


def test_boxes_of_scores_near_zero_still_have_a_gradient():
    student = torch.tensor([0.0, 0, 4, 4]).expand(1, 1, 1, 2, 4).clone().requires_grad_()
    logits = torch.full((1, 1, 1, 2, 3), -1e4)  # their sigmoids are 0
    loss = weighted_giou_loss(student, student.detach() + 1, logits, torch.ones(1, 1, 1))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.any()


@pytest.mark.parametrize("normaliser", ["batch", "image"])
def test_the_scale_of_the_mask_does_not_matter(normaliser):
    student, teacher, student_logits, teacher_logits = maps()
    weight = feature_richness(teacher_logits)
    for loss, pair in (
        (weighted_feature_loss, (student, teacher)),
        (weighted_class_loss, (student_logits, teacher_logits)),
    ):
        assert loss(*pair, 7 * weight, normaliser).item() == pytest.approx(loss(*pair, weight, normaliser).item())


def test_a_constant_mask_gives_channels_times_the_mean_square():
    student, teacher, *_ = maps()
    flat = torch.full((N, H, W), 0.3, dtype=torch.float64)
    expected = C * (student - teacher).square().mean().item()
    assert weighted_feature_loss(student, teacher, flat).item() == pytest.approx(expected)


def test_an_empty_mask_is_a_connected_zero():
    student, teacher, student_logits, teacher_logits = maps()
    student.requires_grad_()
    student_logits = student_logits.clone().requires_grad_()
    nothing = torch.zeros(N, H, W)
    for normaliser in ("batch", "image"):
        total = weighted_feature_loss(student, teacher, nothing, normaliser)
        total = total + weighted_class_loss(student_logits, teacher_logits, nothing, normaliser)
        assert total.item() == 0
        total.backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher, student_logits, teacher_logits = (value.bfloat16() for value in maps())
    weight = feature_richness(teacher_logits)
    assert weight.dtype == torch.float32
    assert weighted_feature_loss(student, teacher, weight).dtype == torch.float32
    assert weighted_class_loss(student_logits, teacher_logits, weight).dtype == torch.float32


def test_shapes_that_do_not_fit_are_named():
    student, teacher, student_logits, teacher_logits = maps()
    weight = feature_richness(teacher_logits)
    with pytest.raises(ValueError, match=r"student \(2, 2, 2, 3\), teacher \(2, 3, 2, 3\)"):
        weighted_feature_loss(student[:, :2], teacher, weight)
    with pytest.raises(ValueError, match="class logits"):
        weighted_class_loss(student_logits[..., :2], teacher_logits, weight)
    with pytest.raises(ValueError, match=r"weight map of shape \(1, 2, 3\) for cells of shape \(2, 2, 3\)"):
        weighted_feature_loss(student, teacher, weight[:1])
    with pytest.raises(ValueError, match=r'normaliser: expected "batch" or "image", got \'level\''):
        weighted_feature_loss(student, teacher, weight, "level")


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "expected"),
    [("tp", [1, 0, 0, 0]), ("tp_fp", [1, 1, 0, 0]), ("tp_fn", [1, 0, 1, 0]), ("tp_tn", [1, 0, 0, 1])],
)
def test_the_regions_of_table_4(region, expected):
    richness = torch.tensor([0.9, 0.2, 0.1, 0.05]).view(1, 1, 4)  # 0.1 itself is not above 0.1
    objects = torch.tensor([True, False, True, False]).view(1, 1, 4)
    assert richness_mask(richness, objects, region).flatten().tolist() == expected
    everything = richness_mask(richness, objects, region, threshold=0.01).flatten().tolist()
    assert everything == {"tp": [1, 0, 1, 0], "tp_fp": [1] * 4, "tp_fn": [1, 0, 1, 0], "tp_tn": [1, 0, 1, 0]}[region]


def test_a_region_needs_the_cells_of_objects_and_richness_a_threshold_to_be_binary():
    richness = torch.tensor([[[0.9, 0.05]]])
    assert richness_mask(richness) is richness
    assert richness_mask(richness, threshold=0.5).tolist() == [[[1.0, 0.0]]]
    assert richness_mask(richness, threshold=0.1).tolist() == richness_mask(richness, None, "tp_fp").tolist()
    with pytest.raises(ValueError, match="'tp_tn' needs the cells of objects"):
        richness_mask(richness, None, "tp_tn")


def test_a_cell_is_an_objects_if_one_of_its_anchors_is_assigned_to_it():
    student, teacher, ground = record(LITTLE, 1), record(BIG, 2), truth(LITTLE)
    masks = richness_masks(student, teacher, ground, region="tp_fn")
    assert 0 < sum(mask.sum() for mask in masks) < sum(mask.numel() for mask in masks)
    place = 0  # level, row, column, anchor
    for mask in masks:
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                for image in range(2):
                    assert mask[image, y, x].item() == any(ground.gt_index[image, place + a] >= 0 for a in range(2))
                place += 2
    ground.gt_index.fill_(-2)  # as of an unlabelled image
    assert not any(mask.any() for mask in richness_masks(student, teacher, ground, region="tp"))


def test_centerness_in_the_richness_against_a_loop():
    specs = made_up_specs("fcos")
    student, teacher = record(specs[0], 1), record(specs[1], 2)
    masks = richness_masks(student, teacher, truth(specs[0]), centerness=True)
    place = 0
    for mask, logits in zip(masks, teacher.class_logits, strict=True):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                for image in range(2):
                    score = max(sigmoid(value) for value in logits[image, y, x, 0].tolist())
                    expected = score * sigmoid(teacher.extra["centerness"][image, place].item())
                    assert mask[image, y, x].item() == pytest.approx(expected, rel=1e-5)
                place += 1
    with pytest.raises(ValueError, match="record has no centre-ness"):
        richness_masks(record(LITTLE, 1), record(BIG, 2), truth(LITTLE), centerness=True)
