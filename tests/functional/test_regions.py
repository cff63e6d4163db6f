"""The cells of the objects and the losses in them, against slow loops."""

import itertools
import math

import pytest
import torch
from pairs import LITTLE, record, truth
from references import NO_BOX, boxes, cells, ground, iou, wave

from understudy.functional import (
    area_weights,
    decoupled_cells,
    focal_loss,
    imitated_cells,
    imitation_loss,
    object_cells,
    widened_points,
)

# --- FGFI -------------------------------------------------------------------------------------------------------------


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


def test_values_outside_the_chosen_cells_do_not_matter():
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


def test_points_are_widened_around_their_middle():
    anchors = [torch.tensor([[[[0.0, 0, 8, 8]], [[8, 0, 16, 8]]]]), torch.tensor([[[[-4.0, 0, 4, 8]]]])]
    wide = widened_points(anchors, (8, 16))
    assert [level.tolist() for level in wide] == [
        [[[[-28, -28, 36, 36]], [[-20, -28, 44, 36]]]],
        [[[[-64, -60, 64, 68]]]],
    ]


# --- DeFeat -----------------------------------------------------------------------------------------------------------


def test_an_object_is_on_the_level_of_its_size_and_fills_its_cells():
    sides = [30, 110.9, 111, 222.9, 223, 500, 5000]
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


# --- FGD --------------------------------------------------------------------------------------------------------------


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


def test_focal_loss_is_averaged_over_the_given_number_of_images():
    student, teacher = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    weight = torch.rand(4, 2, 2)
    whole = focal_loss(student, teacher, weight).item()
    assert focal_loss(student, teacher, weight, images=torch.tensor(2)).item() == pytest.approx(2 * whole)
    assert focal_loss(student, teacher, 0 * weight, images=torch.tensor(0)).item() == 0
