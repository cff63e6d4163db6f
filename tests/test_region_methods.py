"""FGFI, DeFeat, FGD and GID against slow loops written from their equations."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from pairs import BIG, LITTLE, made_up_specs, record, truth
from test_functional import wave
from torch import Tensor, nn

from understudy.boxes import decode
from understudy.errors import UserError
from understudy.functional import (
    area_weights,
    distance_relation_loss,
    general_instances,
    imitated_cells,
    imitation_loss,
    matched_anchors,
    object_cells,
    pooled_regions,
    region_loss,
    response_box_loss,
    response_class_loss,
    scored_boxes,
)
from understudy.methods import METHODS, build_methods
from understudy.outputs import Truth

NO_BOX = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}


def boxes(*rows: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(rows), "labels": torch.zeros(len(rows)).long()}


def identity(method: nn.Module) -> nn.Module:
    for adapter in method.modules():
        if isinstance(adapter, nn.Conv2d):
            nn.init.dirac_(adapter.weight)
            nn.init.zeros_(adapter.bias)
    return method


def cells(height: int, width: int) -> itertools.product:
    return itertools.product(range(height), range(width))


def iou(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


# ----------------------------------------------------------------------------------------------------------------- FGFI


def test_imitated_cells_against_a_loop_over_anchors():
    outputs, targets = record(LITTLE, 1), truth(LITTLE).targets
    found = imitated_cells(outputs.anchors, targets, 0.5)
    assert 0 < sum(mask.sum().item() for mask in found) < 2 * (48 + 12)
    for image, target in enumerate(targets):
        best = [
            max(iou(box, anchor) for level in outputs.anchors for anchor in level.reshape(-1, 4).tolist())
            for box in target["boxes"].tolist()
        ]
        for level, mask in zip(outputs.anchors, found, strict=True):
            for y, x in cells(*level.shape[:2]):
                expected = any(
                    iou(box, anchor) > 0.5 * most
                    for box, most in zip(target["boxes"].tolist(), best, strict=True)
                    for anchor in level[y, x].tolist()
                )
                assert mask[image, y, x].item() == expected


def test_imitation_loss_against_a_loop_and_its_known_value():
    student, teacher = wave((2, 3, 2, 3), 0.9, 0.4, 1.0), wave((2, 3, 2, 3), 0.7, 0.1, 1.5)
    chosen = torch.tensor([[[True, False, True], [False, False, False]], [[False] * 3, [True, True, False]]])
    above = sum(
        (student[n, c, y, x] - teacher[n, c, y, x]).item() ** 2
        for n, c, (y, x) in itertools.product(range(2), range(3), cells(2, 3))
        if chosen[n, y, x]
    )
    assert imitation_loss(student, teacher, chosen).item() == pytest.approx(above / (2 * 4), rel=1e-12)
    # All cells: half of the channels times the mean square, which methods that align statistics start from.
    every = imitation_loss(student, teacher, torch.ones(2, 2, 3, dtype=torch.bool))
    assert every.item() == pytest.approx(3 / 2 * 1.495001047, abs=1e-6)


def test_what_stands_outside_the_chosen_cells_does_not_matter():
    student, teacher = torch.rand(1, 2, 2, 2), torch.rand(1, 2, 2, 2)
    chosen = torch.tensor([[[True, False], [False, False]]])
    before = imitation_loss(student, teacher, chosen)
    student[..., 1, 1] = torch.inf
    assert torch.equal(imitation_loss(student, teacher, chosen), before)


def test_fine_grained_is_the_mean_over_levels():
    method = identity(METHODS["fine_grained"](BIG, BIG))
    student, teacher, ground = record(BIG, 1), record(BIG, 2), truth(BIG)
    masks = imitated_cells(student.anchors, ground.targets)
    levels = [  # the adapter ends in a ReLU
        imitation_loss(own.clamp(min=0), theirs, mask)
        for own, theirs, mask in zip(student.features, teacher.features, masks, strict=True)
    ]
    found = method(student, teacher, ground)["fine_grained_feature"]
    assert found.item() == pytest.approx(sum(levels).item() / 2, rel=1e-6)
    first = METHODS["fine_grained"](LITTLE, BIG).adapters[0][0]
    assert 0 < first.weight.std() < 2e-4
    assert not first.bias.any()


# --------------------------------------------------------------------------------------------------------------- DeFeat


def test_an_object_is_on_the_level_of_its_size_and_fills_its_cells():
    sides = [30, 111, 112, 223, 224, 500, 5000]
    strides, sizes = (8, 16, 32), [(100, 100), (50, 50), (25, 25)]
    for side, level in zip(sides, [0, 0, 1, 1, 2, 2, 2], strict=True):
        masks = object_cells([boxes((0, 0, side, side))], strides, sizes)
        assert [mask.any().item() for mask in masks] == [place == level for place in range(3)]
    (mask,) = object_cells([boxes((9, 20, 33, 63), (60, 1, 62, 3)), NO_BOX], (8,), [(8, 8)])
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[0, 2:7, 1:4] = True  # from the first corner's cell to before the last one's
    expected[0, 0, 7] = True  # thinner than a cell, and yet one
    assert torch.equal(mask, expected)


def test_defeat_against_a_loop():
    method = identity(METHODS["defeat"](BIG, BIG))
    student, teacher = record(BIG, 1), record(BIG, 2)
    ground = Truth([boxes((4, 4, 36, 40)), boxes((0, 0, 120, 120))], truth(BIG).gt_index)
    sums = {"foreground": 0.0, "background": 0.0}
    for level, (own, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
        inside = {(0, 0): (0, 0, 4, 5), (1, 1): (0, 0, 7, 7)}  # image, level: cells; 36 / 8 is cut off
        squares = {"foreground": [], "background": []}
        for image, (y, x) in itertools.product(range(2), cells(*own.shape[2:])):
            left, top, right, bottom = inside.get((image, level), (0, 0, 0, 0))
            kind = "foreground" if left <= x < right and top <= y < bottom else "background"
            squares[kind] += (own - theirs)[image, :, y, x].square().tolist()
        for kind, values in squares.items():
            sums[kind] += sum(values) / max(1, 2 * len(values)) / 2
    terms = method(student, teacher, ground)
    for kind, expected in sums.items():
        assert expected > 0 or kind == "foreground"
        assert terms[f"defeat_{kind}"].item() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------------ FGD


def test_area_weights_against_a_loop():
    targets = [boxes((4, 4, 36, 40), (26, 12, 60, 44)), NO_BOX]
    size, image_sizes = (6, 8), ((48, 60), (48, 64))
    foreground, background = area_weights(targets, size, image_sizes)
    for image, (target, (height, width)) in enumerate(zip(targets, image_sizes, strict=True)):
        expected = torch.zeros(size)
        for left, top, right, bottom in target["boxes"].tolist():
            columns = math.floor(left / width * 8), math.ceil(right / width * 8)
            rows = math.floor(top / height * 6), math.ceil(bottom / height * 6)
            area = (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)  # inclusive, and not cut at the border
            for y, x in cells(*size):
                if rows[0] <= y <= rows[1] and columns[0] <= x <= columns[1]:
                    expected[y, x] = max(expected[y, x].item(), 1 / area)
        torch.testing.assert_close(foreground[image], expected)
        torch.testing.assert_close(background[image], (expected == 0) / (expected == 0).sum())
    whole, nothing = area_weights([boxes((0, 0, 64, 48))], size, ((48, 64),))
    assert whole.min() > 0
    assert not nothing.any()


def slow_attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    (images, channels, height, width), size = features.shape, features.abs()
    spatial, channel = torch.zeros(images, height, width), torch.zeros(images, channels)
    for n in range(images):
        exponents = {(y, x): math.exp(size[n, :, y, x].mean().item() / temperature) for y, x in cells(height, width)}
        for (y, x), value in exponents.items():
            spatial[n, y, x] = height * width * value / sum(exponents.values())
        exponents = [math.exp(size[n, c].mean().item() / temperature) for c in range(channels)]
        channel[n] = channels * torch.tensor(exponents) / sum(exponents)
    return spatial, channel


def slow_context(features: Tensor, block: nn.Module) -> Tensor:
    shares = torch.einsum("nchw,c->nhw", features, block.attention.weight[0, :, 0, 0]) + block.attention.bias
    shares = shares.exp() / shares.exp().sum((1, 2), keepdim=True)
    hidden = (features * shares[:, None]).sum((2, 3))
    narrow, norm, _, wide = block.transform
    hidden = hidden @ narrow.weight[:, :, 0, 0].T + narrow.bias
    spread = (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = (hidden - hidden.mean(1, keepdim=True)) / spread * norm.weight.flatten() + norm.bias.flatten()
    return features + (hidden.clamp(min=0) @ wide.weight[:, :, 0, 0].T + wide.bias)[:, :, None, None]


def test_fgd_against_loops():
    method = METHODS["fgd"](BIG, BIG)
    assert not list(method.adapters.parameters())  # channels agree
    torch.manual_seed(0)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    student, teacher, ground = record(BIG, 1), record(BIG, 2), truth(BIG)
    expected = dict.fromkeys(METHODS["fgd"].terms, 0.0)
    for level, (own, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
        own, theirs = own.detach(), theirs.detach()
        kinds = area_weights(ground.targets, (own.shape[2], own.shape[3]), student.image_sizes)
        spatial, channel = slow_attention(theirs, 0.5)
        for n, c, (y, x) in itertools.product(range(2), range(8), cells(*own.shape[2:])):
            square = (own[n, c, y, x] - theirs[n, c, y, x]).item() ** 2 * (spatial[n, y, x] * channel[n, c]).item() / 2
            for kind, weight in zip(("foreground", "background"), kinds, strict=True):
                expected[kind] += weight[n, y, x].item() * square
        for one, other in zip(slow_attention(own, 0.5), (spatial, channel), strict=True):
            expected["attention"] += (one - other).abs().sum().item() / 2
        with torch.no_grad():
            pair = slow_context(own, method.student_context[level]), slow_context(theirs, method.teacher_context[level])
        expected["relation"] += (pair[0] - pair[1]).square().sum().item() / 2
    terms = method(student, teacher, ground)
    for kind, value in expected.items():
        assert terms[f"fgd_{kind}"].item() == pytest.approx(value, rel=1e-4), kind


def test_fgd_takes_temperature_and_levels_from_the_family_and_its_blocks_begin_as_nothing():
    made = {family: METHODS["fgd"](*made_up_specs(family)) for family in ("retinanet", "fcos", "faster_rcnn")}
    assert [method.temperature for method in made.values()] == [0.5, 0.8, 0.5]
    pyramid = replace(BIG, strides=(4, 8, 16, 32, 64), channels=(8,) * 5)
    assert METHODS["fgd"](pyramid, pyramid).levels == [0, 1, 2, 3, 4]
    pyramid = replace(pyramid, family="faster_rcnn")
    assert METHODS["fgd"](pyramid, pyramid).levels == [0, 1, 2, 3]
    features = torch.rand(2, 8, 3, 4)
    assert torch.equal(made["fcos"].student_context[0](features), features)


def test_fgd_stretches_boxes_from_the_image_without_its_padding_where_that_is_known():
    method, teacher, ground = METHODS["fgd"](BIG, BIG), record(BIG, 2), truth(BIG)
    student = record(BIG, 1)
    whole = replace(student, image_sizes=((48, 64),) * 2)
    unknown = replace(student, image_sizes=None)
    values = [method(each, teacher, ground)["fgd_foreground"].item() for each in (student, whole, unknown)]
    assert values[1] == values[2]
    assert values[0] != values[1]


# ------------------------------------------------------------------------------------------------------------------ GID


def test_general_instances_against_a_greedy_loop():
    generator = torch.Generator().manual_seed(3)
    corners = 50 * torch.rand(60, 2, generator=generator)
    pair = [torch.cat([corners, corners + 4 + 30 * torch.rand(60, 2, generator=generator)], dim=1) for _ in range(2)]
    own, theirs = torch.rand(60, generator=generator), torch.rand(60, generator=generator)
    found = general_instances(own, theirs, *pair, (64, 70), count=5)
    ranked = []
    for place in range(60):
        left, top, right, bottom = pair[int(theirs[place] > own[place])][place].tolist()
        box = [min(left, 70), min(top, 64), min(right, 70), min(bottom, 64)]
        if box[2] - box[0] >= 10 and box[3] - box[1] >= 10:
            ranked.append((abs(theirs[place] - own[place]).item(), box))
    kept = []
    for _, box in sorted(ranked, reverse=True):
        if all(iou(box, better) <= 0.3 for better in kept):
            kept.append(box)
    torch.testing.assert_close(found, torch.tensor(kept[:5]))
    assert len(general_instances(own, theirs, pair[0] / 20, pair[1] / 20, (64, 70))) == 0  # all are too small


def slow_region(feature: Tensor, box: list[float], stride: int) -> Tensor:
    """RoIAlign of one box, two samples a side of each of 10 x 10 cells."""
    left, top, right, bottom = (value / stride - 0.5 for value in box)
    height, width = feature.shape[1:]

    def at(y: float, x: float) -> Tensor:
        if not (-1 <= y <= height and -1 <= x <= width):
            return torch.zeros(len(feature))
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        row, column = int(y), int(x)
        below, beside = min(row + 1, height - 1), min(column + 1, width - 1)
        upper = feature[:, row, column] * (1 - x + column) + feature[:, row, beside] * (x - column)
        lower = feature[:, below, column] * (1 - x + column) + feature[:, below, beside] * (x - column)
        return upper * (1 - y + row) + lower * (y - row)

    out = torch.zeros(len(feature), 10, 10)
    for i, j, a, b in itertools.product(range(10), range(10), (0.25, 0.75), (0.25, 0.75)):
        out[:, i, j] += at(top + (i + a) * (bottom - top) / 10, left + (j + b) * (right - left) / 10) / 4
    return out


def test_pooled_regions_against_a_loop_each_from_the_level_of_its_size():
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(2, 3, size, size, generator=generator) for size in (32, 16, 8)]
    some = torch.tensor([[10.0, 20, 60, 90], [3, 5, 250, 240]]), torch.tensor([[0.0, 0, 130, 120]])
    found = pooled_regions(features, some, (8, 16, 32))
    expected = [  # 112 to 224 pixels are on stride 8, the next octave on stride 16
        slow_region(features[0][0], some[0][0].tolist(), 8),
        slow_region(features[0][1], some[1][0].tolist(), 8),
        slow_region(features[1][0], some[0][1].tolist(), 16),
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_pooled_regions_of_no_boxes_stay_connected():
    features = [torch.rand(1, 3, 8, 8, requires_grad=True)]
    none = pooled_regions(features, [torch.zeros(0, 4)], (8,))
    assert none.shape == (0, 3, 10, 10)
    (region_loss(none, none.detach()) + distance_relation_loss(none.flatten(1), none.flatten(1))).backward()
    assert not features[0].grad.any()


def test_distance_relation_has_its_known_value():
    teacher, student = wave((3, 4), 0.7, 0.1, 1.5), wave((3, 4), 0.9, 0.4, 1.0)
    assert distance_relation_loss(student, teacher).item() == pytest.approx(0.006309568, abs=1e-6)
    # Distances relative to their mean do not know the scale, and need three boxes.
    assert distance_relation_loss(7 * student, teacher).item() == pytest.approx(0.006309568, abs=1e-6)
    assert distance_relation_loss(student[:2], teacher[:2]).item() == 0


def test_distance_relation_of_boxes_that_are_all_the_same_is_finite():
    student = torch.ones(4, 5, requires_grad=True)
    distance_relation_loss(student, torch.rand(4, 5)).backward()
    assert student.grad.isfinite().all()


def test_region_and_response_losses_against_loops():
    student, teacher = wave((2, 3, 2, 2), 0.9, 0.4, 1.0), wave((2, 3, 2, 2), 0.7, 0.1, 1.5)
    squares = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert region_loss(student, teacher).item() == pytest.approx(squares / 8)
    student, teacher = student.flatten(1), teacher.flatten(1)
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    cross = 0.0
    for own, theirs in pairs:
        score, soft = 1 / (1 + math.exp(-own)), 1 / (1 + math.exp(-theirs))
        cross -= soft * math.log(score) + (1 - soft) * math.log(1 - score)
    assert response_class_loss(student, teacher).item() == pytest.approx(cross / 2)
    for beta in (0.1, 0.5):
        gaps = [abs(a - b) for a, b in pairs]
        smooth = sum(gap**2 / (2 * beta) if gap < beta else gap - beta / 2 for gap in gaps)
        assert response_box_loss(student, teacher, beta).item() == pytest.approx(smooth / 2)
    close = response_box_loss(torch.tensor([[0.05, 0.2]]), torch.zeros(1, 2))
    assert close.item() == pytest.approx(0.05**2 / 0.2 + 0.2 - 0.05)
    assert response_box_loss(student[:0], teacher[:0]).item() == 0


def test_anchors_match_as_those_of_a_retinanet():
    anchors = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [6, 0, 16, 10], [100, 100, 120, 120]])
    assert matched_anchors(torch.tensor([[0.0, 0, 10, 10]]), anchors).tolist() == [True, True, False, False]
    # the best of a box, however small their IoU; and none for a box that no anchor touches
    assert matched_anchors(torch.tensor([[110.0, 110, 200, 200]]), anchors).tolist() == [False, False, False, True]
    assert not matched_anchors(torch.tensor([[300.0, 300, 310, 310]]), anchors).any()
    assert not matched_anchors(torch.zeros(0, 4), anchors).any()


def test_gid_puts_its_parts_together():
    method = identity(METHODS["gid"](BIG, BIG, count=4))
    student, teacher = record(BIG, 1), record(BIG, 2)
    ground = truth(BIG)
    terms = method(student, teacher, ground)
    decoded = [decode(outputs, BIG) for outputs in (student, teacher)]
    found = []
    for image in range(2):
        scores = [
            torch.cat([level[image].flatten(0, 2).max(-1).values.sigmoid() for level in outputs.class_logits])
            for outputs in (student, teacher)
        ]
        flat = [torch.cat([level[image].reshape(-1, 4) for level in levels]) for levels in decoded]
        found.append(general_instances(*scores, *flat, student.image_sizes[image], 4))
    assert all(torch.equal(one, other) for one, other in zip(method.find(student, teacher), found, strict=True))
    own, theirs = (pooled_regions(outputs.features, found, BIG.strides) for outputs in (student, teacher))
    assert terms["gid_feature"].item() == pytest.approx(region_loss(own, theirs).item(), rel=1e-5)
    relation = distance_relation_loss(own.flatten(1), theirs.flatten(1))
    assert terms["gid_relation"].item() == pytest.approx(relation.item(), rel=1e-5)
    anchors = torch.cat([level.reshape(-1, 4) for level in student.anchors])
    chosen = [matched_anchors(each, anchors) for each in found]
    for term, field, loss in (("class", "class_logits", response_class_loss), ("box", "box_raw", response_box_loss)):
        pair = []
        for outputs in (student, teacher):
            flat = torch.cat([level.flatten(1, 3) for level in getattr(outputs, field)], dim=1)
            pair.append(torch.cat([image[mask] for image, mask in zip(flat, chosen, strict=True)]))
        assert terms[f"gid_{term}"].item() == pytest.approx(loss(*pair).item(), rel=1e-5)
    assert torch.equal(method(student, teacher, truth(BIG, (0, 0)))["gid_feature"], terms["gid_feature"])


def test_gid_compares_features_where_anchors_differ_by_the_best_anchor_of_each_cell():
    single = replace(BIG, num_anchors=1, name="single")
    with pytest.raises(UserError, match="little has 2 anchors per cell, the teacher single has 1"):
        METHODS["gid"](LITTLE, single)
    weights = {"class_weight": 0, "box_weight": 0}
    (method,), _ = build_methods({"gid": weights}, LITTLE, single)
    student, teacher = record(LITTLE, 1), record(single, 2)
    terms = method(student, teacher, truth(LITTLE))
    assert list(terms) == ["gid_feature", "gid_relation"]
    assert all(term > 0 for term in terms.values())
    scores, places = scored_boxes(student.class_logits, decode(student, LITTLE), per_cell=True)
    logits, own = student.class_logits[0][1, 2, 3], decode(student, LITTLE)[0][1, 2, 3]
    best = logits.amax(-1).argmax()
    assert scores.shape == (2, 48 + 12)
    assert scores[1, 2 * 8 + 3].item() == pytest.approx(logits.max().sigmoid().item())
    assert torch.equal(places[1, 2 * 8 + 3], own[best])


def test_gid_without_a_box_to_compare_is_a_connected_zero():
    method = METHODS["gid"](LITTLE, BIG)
    student, teacher = record(LITTLE, 1), record(BIG, 2)
    small = [replace(each, anchors=[level / 100 for level in each.anchors]) for each in (student, teacher)]
    terms = method(*small, truth(LITTLE))
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in method.parameters())
    assert not student.class_logits[0].grad.any()


# ---------------------------------------------------------------------------------------------------- options and pairs


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fine_grained", {"share": 1.0}, r"\[methods.fine_grained\] share is in 0..1"),
        ("fgd", {"temperature": 0.0}, r"\[methods.fgd\] temperature is above 0, got 0.0"),
        ("gid", {"count": 0}, r"\[methods.gid\] count is at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        build_methods({name: options}, LITTLE, BIG)


def test_gid_refuses_what_one_adapter_or_smooth_l1_cannot_compare():
    with pytest.raises(UserError, match="uneven has levels of different channels"):
        METHODS["gid"](replace(LITTLE, channels=(6, 7), name="uneven"), BIG)
    student, teacher = made_up_specs("gfl")
    with pytest.raises(UserError, match=r"gid_box: the sides of little and big are distributions"):
        METHODS["gid"](student, teacher)
    (method,), weights = build_methods({"gid": {}}, student, teacher)  # by default it is off there
    assert list(weights) == ["gid_feature", "gid_relation", "gid_class"]
    assert method(record(student, 1), record(teacher, 2), truth(student))["gid_class"] > 0


@pytest.mark.parametrize("name", ["fine_grained", "defeat", "fgd"])
def test_features_are_compared_whatever_the_heads_are(name):
    student, teacher = LITTLE, replace(made_up_specs("gfl")[1], num_classes=1, objectness=True)
    (method,), _ = build_methods({name: {}}, student, teacher)
    terms = method(record(student, 1), record(teacher, 2), truth(student))
    assert all(term.isfinite() for term in terms.values())
    assert sum(terms.values()) > 0
