"""FGFI, DeFeat, FGD and GID against slow loops written from their equations."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pairs import (
    BIG,
    CLASSES,
    LITTLE,
    Inputs,
    Pair,
    made_up_specs,
    record,
    tiny_detector,
    tiny_images,
    tiny_teacher,
    truth,
)
from test_functional import wave
from torch import Tensor, nn

from understudy.boxes import decode
from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.functional import (
    area_weights,
    decoupled_cells,
    distance_relation_loss,
    focal_loss,
    general_instances,
    imitated_cells,
    imitation_loss,
    losses_of_regions,
    object_cells,
    pooled_regions,
    region_loss,
    response_box_loss,
    response_class_loss,
    scored_boxes,
    widened_points,
)
from understudy.learner import Learner
from understudy.methods import METHODS, Method, build_methods
from understudy.methods.base import Layers
from understudy.outputs import Outputs, Spec, Truth
from understudy.pairing import pair

NO_BOX = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}


def boxes(*rows: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(rows), "labels": torch.zeros(len(rows)).long()}


def ground(*targets: dict[str, Tensor], left_out: tuple[Tensor, ...] = (), unlabelled: tuple[int, ...] = ()) -> Truth:
    """A ground truth of which methods read no assignment, only which images have one."""
    gt_index = torch.full((len(targets), 1), -1)
    gt_index[list(unlabelled)] = -2
    return Truth(targets, gt_index, left_out)


SIDE = 512


def pyramid(spec: Spec, images: int = 1) -> Outputs:
    """Random features, leaves with gradient, of images of 512 x 512 pixels."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(images, *each) for each in zip(spec.channels, *2 * [[SIDE // s for s in spec.strides]], strict=True)]
    features = [torch.rand(shape, generator=generator).requires_grad_() for shape in shapes]
    return Outputs(stages=[], features=features, class_logits=[], box_raw=[], anchors=[])


def strides_reached(method: Method, term: str, student: Outputs, truth: Truth) -> set[int]:
    """The strides of the levels to whose features a term gives a gradient."""
    teacher = replace(student, features=[torch.rand_like(level) for level in student.features])
    method(student, teacher, truth)[term].backward()
    pairs = zip(method.student.strides, student.features, strict=True)
    return {stride for stride, level in pairs if level.grad is not None and level.grad.any()}


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
    for nothing in (torch.inf, torch.nan):
        student[..., 1, 1] = nothing
        own = student.clone().requires_grad_()
        loss = imitation_loss(own, teacher, chosen)
        assert torch.equal(loss, before)
        loss.backward()
        torch.testing.assert_close(own.grad, torch.where(chosen[:, None], student - teacher, 0))


def test_fine_grained_is_the_mean_over_levels():
    method = identity(METHODS["fine_grained"](BIG, BIG))
    student, teacher, whole = record(BIG, 1), record(BIG, 2), truth(BIG)
    masks = imitated_cells(student.anchors, whole.targets)
    levels = [  # the adapter ends in a ReLU
        imitation_loss(own.clamp(min=0), theirs, mask)
        for own, theirs, mask in zip(student.features, teacher.features, masks, strict=True)
    ]
    found = method(student, teacher, whole)["fine_grained_feature"]
    assert found.item() == pytest.approx(sum(levels).item() / 2, rel=1e-6)
    first = METHODS["fine_grained"](LITTLE, BIG).adapters[0][0]
    assert 0 < first.weight.std() < 2e-4
    assert not first.bias.any()


@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
@pytest.mark.parametrize("side", [50, 100, 200, 400])
def test_fine_grained_imitates_an_fcos_on_the_levels_that_look_for_the_object(side, conventions):
    detector = build_detector("fcos_resnet18", CLASSES, neck_channels=16, width_mult=1 / 8, conventions=conventions)
    assert detector.spec.box_code.startswith("distances")
    with torch.no_grad():
        outputs = detector(torch.zeros(1, 3, SIDE, SIDE))
    corner = (SIDE - side) / 2 + 3
    target = boxes((corner, corner, corner + side, corner + side))
    levels = detector.assign(outputs, [target]).split([level[..., 0].numel() for level in outputs.anchors], dim=1)
    assigned = {s for s, level in zip(detector.spec.strides, levels, strict=True) if (level >= 0).any()}
    method = METHODS["fine_grained"](detector.spec, detector.spec)
    student = replace(outputs, features=pyramid(detector.spec).features)
    reached = strides_reached(method, "fine_grained_feature", student, ground(target))
    assert assigned
    assert assigned <= reached
    assert len(reached) <= 2


def test_points_are_widened_round_their_middle_and_other_anchors_stay():
    anchors = [torch.tensor([[[[0.0, 0, 8, 8]], [[8, 0, 16, 8]]]]), torch.tensor([[[[-4.0, 0, 4, 8]]]])]
    wide = widened_points(anchors, (8, 16))
    assert [level.tolist() for level in wide] == [
        [[[[-28, -28, 36, 36]], [[-20, -28, 44, 36]]]],
        [[[[-64, -60, 64, 68]]]],
    ]
    method, student, teacher = METHODS["fine_grained"](BIG, BIG), record(BIG, 1), record(BIG, 2)
    moved = replace(student, anchors=widened_points(student.anchors, BIG.strides))
    values = [method(each, teacher, truth(BIG))["fine_grained_feature"].item() for each in (student, moved)]
    assert values[0] != values[1]  # those of a RetinaNet are taken as they are


# --------------------------------------------------------------------------------------------------------------- DeFeat


def test_an_object_is_on_the_level_of_its_size_and_fills_its_cells():
    sides = [30, 111, 112, 223, 224, 500, 5000]
    strides, sizes = (8, 16, 32), [(100, 100), (50, 50), (25, 25)]
    for side, level in zip(sides, [0, 0, 1, 1, 2, 2, 2], strict=True):
        masks = object_cells([torch.tensor([[0.0, 0, side, side]])], strides, sizes)
        assert [mask.any().item() for mask in masks] == [place == level for place in range(3)]
    some = torch.tensor([[9.0, 20, 33, 63], [60, 1, 62, 3]])
    (mask,) = object_cells([some, NO_BOX["boxes"]], (8,), [(8, 8)])
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[0, 2:7, 1:4] = True  # from the first corner's cell to before the last one's
    expected[0, 0, 7] = True  # thinner than a cell, and yet one
    assert torch.equal(mask, expected)


def test_defeat_against_a_loop():
    method = identity(METHODS["defeat"](BIG, BIG))
    student, teacher = record(BIG, 1), record(BIG, 2)
    targets = boxes((4, 4, 36, 40)), boxes((0, 0, 120, 120))
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
    terms = method(student, teacher, ground(*targets))
    for kind, expected in sums.items():
        assert expected > 0
        assert terms[f"defeat_{kind}"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "by_stride"),
    [
        ("faster_rcnn", {80: (4, 8), 150: (8, 8), 300: (16, 16), 500: (32, 32)}),
        ("retinanet", {80: (8, 8), 150: (16, 16), 300: (32, 32), 500: (64, 64)}),
    ],
)
def test_the_level_of_an_object_is_that_of_its_stride_whichever_levels_the_teacher_shares(family, by_stride):
    """The two of each size: with a teacher of the same family, and with one of another, which lacks stride 4 or 128."""
    alone = (4, 8, 16, 32, 64) if family == "faster_rcnn" else (8, 16, 32, 64, 128)
    for side, expected in by_stride.items():
        for strides, stride in zip((alone, (8, 16, 32, 64)), expected, strict=True):
            spec = replace(BIG, family=family, strides=strides, channels=(8,) * len(strides))
            target = ground(boxes((4, 4, 4 + side, 4 + side)))
            assert strides_reached(METHODS["defeat"](spec, spec), "defeat_foreground", pyramid(spec), target) == {
                stride
            }


def test_a_detector_without_the_usual_finest_level_counts_from_what_it_has():
    for strides, side, expected in (((4, 8, 16), 80, 4), ((16, 32), 80, 16), ((16, 32), 300, 32), ((8, 32), 150, 8)):
        spec = replace(BIG, strides=strides, channels=(8,) * len(strides))
        target = ground(boxes((4, 4, 4 + side, 4 + side)))
        assert strides_reached(METHODS["defeat"](spec, spec), "defeat_foreground", pyramid(spec), target) == {expected}


def test_cells_of_objects_left_out_and_of_unlabelled_images_are_in_neither():
    strides, sizes = (8, 16), [(16, 16), (8, 8)]
    left_out = torch.tensor([[16.0, 0, 56, 40], [0, 0, 128, 128]]), torch.zeros(0, 4), torch.zeros(0, 4)
    whole = ground(boxes((0, 0, 24, 40)), boxes((8, 8, 24, 24)), NO_BOX, left_out=left_out, unlabelled=(2,))
    foreground, background = decoupled_cells(whole, strides, sizes)
    for image, level in itertools.product(range(3), range(2)):
        for y, x in cells(*sizes[level]):
            inside = level == 0 and ((x < 3 and y < 5) if image == 0 else (x in (1, 2) and y in (1, 2)))
            other = image == 0 and (level == 1 or (2 <= x < 7 and y < 5))  # the larger of the two is on stride 16
            assert foreground[level][image, y, x].item() == (inside and image < 2)
            assert background[level][image, y, x].item() == (not inside and not other and image < 2)


@pytest.mark.parametrize("name", ["defeat", "fgd"])
def test_what_stands_in_an_unlabelled_image_is_in_no_term_of_objects_and_dilutes_none(name):
    terms = [f"{name}_foreground", f"{name}_background"]
    method = identity(METHODS[name].narrowed(("foreground", "background"))(BIG, BIG))
    both, other = [record(BIG, seed) for seed in (1, 2)], [record(BIG, seed) for seed in (3, 4)]
    targets = truth(BIG).targets
    partly = ground(targets[0], NO_BOX, unlabelled=(1,))
    found = method(*both, partly)
    alone = method(*(each.of_images([0]) for each in both), ground(targets[0]))
    for term in terms:
        assert found[term].item() == pytest.approx(alone[term].item(), rel=1e-5)
        assert found[term] > 0
    mixed = [
        replace(each, features=[torch.stack([a[0], b[1]]) for a, b in zip(each.features, more.features, strict=True)])
        for each, more in zip(both, other, strict=True)
    ]
    assert all(torch.equal(value, found[term]) for term, value in method(*mixed, partly).items())
    nothing = method(*both, ground(NO_BOX, NO_BOX, unlabelled=(0, 1)))
    assert all(value == 0 for value in nothing.values())
    sum(nothing.values()).backward()
    assert not any(level.grad.any() for level in both[0].features)


@pytest.mark.parametrize("name", ["defeat", "fgd"])
def test_objects_that_the_teacher_does_not_know_are_in_no_term_of_objects(name):
    """From the student's assignment through the pairing to the term: what stands there changes nothing."""
    teacher = replace(BIG, num_classes=2)
    pairing = pair(BIG, teacher, ["cat", "dog", "cow"], ["dog", "cow"])
    method = identity(METHODS[name].narrowed(("foreground", "background"))(pairing.student, pairing.teacher))
    one, known = boxes((4, 4, 44, 44)), boxes((4, 4, 20, 20), (8, 8, 16, 24))
    targets = [one, {**known, "labels": torch.tensor([1, 2])}]  # the only object of the first image is a cat
    student, other = record(BIG, 1), record(teacher, 2)
    whole = Truth(targets, torch.full_like(truth(BIG).gt_index, -1))
    reduced = pairing.truth(whole, student)
    assert [len(each) for each in reduced.left_out] == [1, 0]
    records = pairing.student_record(student), pairing.teacher_record(other)
    before, plain = method(*records, reduced), method(*records, Truth(reduced.targets, whole.gt_index))
    changed = [level.clone() for level in records[0].features]
    changed[0][0, :, 1:5, 1:5] += 3  # within the cells of the cat on the one level of its size
    after = method(replace(records[0], features=changed), records[1], reduced)
    for term, value in before.items():
        assert torch.equal(after[term], value)
        assert (plain[term] == value) == (term == f"{name}_foreground")  # as if nothing had been left out


# ------------------------------------------------------------------------------------------------------------------ FGD


def test_area_weights_against_a_loop():
    """A box in cells, left out or not; that of a known object wins."""
    targets = boxes((4, 4, 36, 40), (26, 12, 60, 44)), NO_BOX, boxes((4, 4, 36, 40))
    left_out = torch.tensor([[30.0, 4, 62, 20]]), torch.tensor([[0.0, 0, 20, 20], [41, 1, 63, 47]]), torch.zeros(0, 4)
    size, image_sizes = (6, 8), ((48, 60), (48, 64), (48, 64))
    foreground, background = area_weights(ground(*targets, left_out=left_out, unlabelled=(2,)), size, image_sizes)
    for image, (target, more, (height, width)) in enumerate(zip(targets, left_out, image_sizes, strict=True)):
        expected, unknown = torch.zeros(size), torch.zeros(size)
        labelled = image != 2
        for map_of, rows_of_boxes in ((expected, target["boxes"]), (unknown, more)):
            for left, top, right, bottom in rows_of_boxes.tolist():
                columns = math.floor(left / width * 8), math.ceil(right / width * 8)
                rows = math.floor(top / height * 6), math.ceil(bottom / height * 6)
                area = (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)  # inclusive, and not cut at the border
                for y, x in cells(*size):
                    if labelled and rows[0] <= y <= rows[1] and columns[0] <= x <= columns[1]:
                        map_of[y, x] = max(map_of[y, x].item(), 1 / area)
        nothing = (expected + unknown == 0) * labelled
        torch.testing.assert_close(foreground[image], expected)
        torch.testing.assert_close(background[image], nothing / max(nothing.sum().item(), 1))
        assert unknown.any() == (image < 2)
    whole, nothing = area_weights(ground(boxes((0, 0, 64, 48))), size, ((48, 64),))
    assert whole.min() > 0
    assert not nothing.any()


def test_focal_loss_is_averaged_over_the_images_that_it_is_told():
    student, teacher = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    weight = torch.rand(4, 2, 2)
    whole = focal_loss(student, teacher, weight).item()
    assert focal_loss(student, teacher, weight, images=torch.tensor(2)).item() == pytest.approx(2 * whole)
    assert focal_loss(student, teacher, 0 * weight, images=torch.tensor(0)).item() == 0


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
    student, teacher, whole = record(BIG, 1), record(BIG, 2), truth(BIG)
    expected = dict.fromkeys(METHODS["fgd"].terms, 0.0)
    for level, (own, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
        own, theirs = own.detach(), theirs.detach()
        kinds = area_weights(whole, (own.shape[2], own.shape[3]), student.image_sizes)
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
    terms = method(student, teacher, whole)
    for kind, value in expected.items():
        assert terms[f"fgd_{kind}"].item() == pytest.approx(value, rel=1e-4), kind


def test_fgd_takes_temperature_and_levels_from_the_family_and_its_blocks_begin_as_nothing():
    made = {family: METHODS["fgd"](*made_up_specs(family)) for family in ("retinanet", "fcos", "faster_rcnn")}
    assert [method.temperature for method in made.values()] == [0.5, 0.8, 0.5]
    spec = replace(BIG, strides=(4, 8, 16, 32, 64), channels=(8,) * 5)
    assert len(METHODS["fgd"](spec, spec).adapters) == 5
    two_stage = replace(spec, family="faster_rcnn")
    for own, theirs in ((two_stage, two_stage), (two_stage, spec), (spec, two_stage)):
        assert len(METHODS["fgd"](own, theirs).adapters) == 4
    features = torch.rand(2, 8, 3, 4)
    assert torch.equal(made["fcos"].student_context[0](features), features)


def test_fgd_stretches_boxes_from_the_image_without_its_padding_where_that_is_known():
    method, teacher, student = METHODS["fgd"](BIG, BIG), record(BIG, 2), record(BIG, 1)
    whole = replace(student, image_sizes=((48, 64),) * 2)
    unknown = replace(student, image_sizes=None)
    values = [method(each, teacher, truth(BIG))["fgd_foreground"].item() for each in (student, whole, unknown)]
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


def layers_of(spec: Spec, inputs: Inputs) -> Layers:
    """A student that assigns an anchor to a box if the middle of it lies there."""

    def assign(outputs, targets):
        anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        gt_index = torch.full((len(targets), len(anchors)), -1)
        for row, target in zip(gt_index, targets, strict=True):
            for number, box in enumerate(target["boxes"]):
                row[((middles > box[:2]) & (middles < box[2:])).all(1)] = number
        return gt_index

    detector = SimpleNamespace(spec=spec, assign=assign)
    return Layers(detector, detector, None, inputs.student, inputs.teacher)


def gid_inputs(student: Spec, teacher: Spec) -> Inputs:
    """Made-up records."""
    inputs = Inputs(record(student, 1), record(teacher, 2), truth(student))
    return replace(inputs, layers=layers_of(student, inputs))


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_gid_puts_its_parts_together(family):
    """On real detectors: predictions are compared at the anchors that the student's own rule assigns to the boxes."""
    spec = tiny_teacher(family).spec
    both = Pair(METHODS["gid"].narrowed(METHODS["gid"].terms[: 3 if family == "gfl" else 4]), spec, spec)
    method, inputs = identity(both.made(count=4)), both.inputs()
    terms, student, teacher = inputs.terms(method), inputs.student, inputs.teacher
    decoded = [decode(outputs, spec) for outputs in (student, teacher)]
    found = []
    for image in range(2):
        scores = [
            torch.cat([level[image].flatten(0, 2).max(-1).values.sigmoid() for level in outputs.class_logits])
            for outputs in (student, teacher)
        ]
        flat = [torch.cat([level[image].reshape(-1, 4) for level in levels]) for levels in decoded]
        found.append(general_instances(*scores, *flat, student.image_sizes[image], 4))
    assert all(torch.equal(one, other) for one, other in zip(method.find(student, teacher), found, strict=True))
    assert all(len(each) for each in found)
    own, theirs = (pooled_regions(outputs.features, found, spec.strides) for outputs in (student, teacher))
    assert terms["gid_feature"].item() == pytest.approx(region_loss(own, theirs).item(), rel=1e-5)
    relation = distance_relation_loss(own.flatten(1), theirs.flatten(1))
    assert terms["gid_relation"].item() == pytest.approx(relation.item(), rel=1e-5)
    parts = losses_of_regions(student.features, teacher.features, found, spec.strides)
    assert torch.equal(parts["relation"], relation)
    targets = [{"boxes": each, "labels": torch.full((len(each),), CLASSES - 1)} for each in found]
    chosen = inputs.layers.student.assign(student, targets) >= 0
    assert chosen.any()
    for term, field, loss in (("class", "class_logits", response_class_loss), ("box", "box_raw", response_box_loss)):
        values = []
        for outputs in (student, teacher):
            flat = torch.cat([level.flatten(1, 3) for level in getattr(outputs, field)], dim=1)
            values.append(torch.cat([image[mask] for image, mask in zip(flat, chosen, strict=True)]))
        if term in method.terms:
            assert terms[f"gid_{term}"].item() == pytest.approx(loss(*values).item(), rel=1e-5)
    again = replace(inputs, truth=replace(inputs.truth, targets=[NO_BOX, NO_BOX])).terms(method)
    assert all(torch.equal(again[term], value) for term, value in terms.items())


def test_gid_assigns_on_all_of_the_students_levels_and_compares_on_the_common_ones():
    """The boxes have no class: that the teacher does not know the student's first one changes nothing."""
    student, teacher = tiny_detector("retinanet", 16, seed=5), tiny_teacher("retinanet")
    pairing = pair(student.spec, replace(teacher.spec, strides=(4, 16, 32, 64, 128)), ["a", "b", "c"], ["x", "c", "b"])
    assert pairing.unknown == ("a",)
    assert pairing.student_part.levels == pairing.teacher_part.levels == (1, 2, 3, 4)
    (method,), _ = build_methods({"gid": {"count": 3}}, pairing.student, pairing.teacher)
    images, targets = tiny_images(), truth(LITTLE).targets
    with torch.no_grad():
        theirs = teacher(images)
    losses = Learner(student, [method], pairing)(images, targets, theirs, teacher=teacher)
    with torch.no_grad():
        own = student(images)
    reduced = pairing.student_record(own), pairing.teacher_record(theirs)
    objects = [{"boxes": each, "labels": torch.zeros(len(each)).long()} for each in method.find(*reduced)]
    assigned = student.assign(own, objects)[:, own.class_logits[0][0, ..., 0].numel() :] >= 0
    assert assigned.any()
    values = [torch.cat([level.flatten(1, 3) for level in each.class_logits], dim=1)[assigned] for each in reduced]
    assert losses["gid_class"].item() == pytest.approx(response_class_loss(*values).item(), rel=1e-4)


def test_gid_compares_distances_in_pixels_as_if_they_were_in_strides():
    student, teacher = made_up_specs("fcos")
    method = METHODS["gid"](student, teacher)
    in_pixels = METHODS["gid"](*(replace(spec, box_code="distances in pixels") for spec in (student, teacher)))
    in_pixels.load_state_dict(method.state_dict())
    inputs = gid_inputs(student, teacher)
    pixels = [
        replace(each, box_raw=[raw * stride for raw, stride in zip(each.box_raw, student.strides, strict=True)])
        for each in (inputs.student, inputs.teacher)
    ]
    terms = inputs.terms(method)
    found = replace(inputs, student=pixels[0], teacher=pixels[1]).terms(in_pixels)
    assert terms["gid_box"] > 0
    for term, value in terms.items():
        torch.testing.assert_close(found[term], value)


def test_gid_compares_features_where_anchors_differ_by_the_best_anchor_of_each_cell():
    single = replace(BIG, num_anchors=1, name="single")
    with pytest.raises(UserError, match="little has 2 anchors per cell, the teacher single has 1"):
        METHODS["gid"](LITTLE, single)
    weights = {"class_weight": 0, "box_weight": 0}
    (method,), _ = build_methods({"gid": weights}, LITTLE, single)
    inputs = gid_inputs(LITTLE, single)
    terms, student = inputs.terms(method), inputs.student
    assert list(terms) == ["gid_feature", "gid_relation"]
    assert all(term > 0 for term in terms.values())
    scores, places = scored_boxes(student.class_logits, decode(student, LITTLE), per_cell=True)
    logits, own = student.class_logits[0][1, 2, 3], decode(student, LITTLE)[0][1, 2, 3]
    best = logits.amax(-1).argmax()
    assert scores.shape == (2, 48 + 12)
    assert scores[1, 2 * 8 + 3].item() == pytest.approx(logits.max().sigmoid().item())
    assert torch.equal(places[1, 2 * 8 + 3], own[best])


def test_gid_without_a_box_to_compare_is_a_connected_zero():
    method, inputs = METHODS["gid"](LITTLE, BIG), gid_inputs(LITTLE, BIG)
    student, teacher = (
        replace(each, anchors=[level / 100 for level in each.anchors]) for each in (inputs.student, inputs.teacher)
    )
    terms = replace(inputs, student=student, teacher=teacher).terms(method)
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in method.parameters())
    assert not student.class_logits[0].grad.any()


# ---------------------------------------------------------------------------------------------------- options and pairs

NO_NUMBERS = float("nan"), float("inf"), -float("inf")


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        *(("fine_grained", {"share": value}, "share") for value in (1.0, -0.1, *NO_NUMBERS)),
        *(("fgd", {"temperature": value}, "temperature") for value in (0.0, *NO_NUMBERS)),
        ("gid", {"count": 0}, "count"),
    ],
)
def test_options_out_of_range_are_refused(name, options, option):
    with pytest.raises(UserError, match=rf"methods\.{name}\.{option}: expected a"):
        build_methods({name: options}, LITTLE, BIG)


def test_gid_refuses_what_one_adapter_or_smooth_l1_cannot_compare():
    with pytest.raises(UserError, match="uneven has levels of different channels"):
        METHODS["gid"](replace(LITTLE, channels=(6, 7), name="uneven"), BIG)
    student, teacher = made_up_specs("gfl")
    with pytest.raises(UserError, match=r"gid_box: the sides of little and big are distributions"):
        METHODS["gid"](student, teacher)
    (method,), weights = build_methods({"gid": {}}, student, teacher)  # by default it is off there
    assert list(weights) == ["gid_feature", "gid_relation", "gid_class"]
    assert gid_inputs(student, teacher).terms(method)["gid_class"] > 0


@pytest.mark.parametrize("name", ["fine_grained", "defeat", "fgd"])
def test_features_are_compared_whatever_the_heads_are(name):
    student, teacher = LITTLE, replace(made_up_specs("gfl")[1], num_classes=1, objectness=True)
    (method,), _ = build_methods({name: {}}, student, teacher)
    terms = method(record(student, 1), record(teacher, 2), truth(student))
    assert all(term.isfinite() for term in terms.values())
    assert sum(terms.values()) > 0


@pytest.mark.parametrize(("own", "theirs"), list(itertools.product(("faster_rcnn", "retinanet"), repeat=2)))
def test_fgd_is_refused_where_only_the_level_of_a_first_stage_is_shared(own, theirs):
    student = replace(LITTLE, strides=(64,), channels=(6,), family=own, name="little")
    teacher = replace(BIG, strides=(64,), channels=(8,), family=theirs, name="big")
    if own == theirs == "retinanet":
        assert len(METHODS["fgd"](student, teacher).adapters) == 1
        return
    with pytest.raises(UserError, match=r"fgd_foreground: the student little and the teacher big .*\(64,\) in common"):
        METHODS["fgd"](student, teacher)
