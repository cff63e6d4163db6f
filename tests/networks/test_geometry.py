"""Anchors, overlaps, distances and box codes at known values."""

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_area, box_iou, generalized_box_iou

from understudy.networks import geometry


def test_anchors_lie_at_multiples_of_the_stride():
    grid = geometry.StrideAnchors((8, 16), (1.0, 2.0), (0.25, 1.0), offset=0.5)
    assert grid.num_anchors_per_location() == [4, 4]
    batch = ImageList(torch.zeros(2, 3, 16, 24), [(16, 24), (10, 20)])
    first, second = grid(batch, [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 2)])
    assert torch.equal(first, second)
    finest, coarsest = first[: 2 * 3 * 4].view(2, 3, 4, 4), first[2 * 3 * 4 :].view(1, 2, 4, 4)
    assert finest[1, 2, 0].tolist() == [20 - 8, 12 - 2, 20 + 8, 12 + 2]  # of one stride, a quarter as high as wide
    assert finest[1, 2, 1].tolist() == [20 - 16, 12 - 4, 20 + 16, 12 + 4]
    assert finest[0, 1, 2].tolist() == [8, 0, 16, 8]
    assert coarsest[0, 1, 3].tolist() == [8, -8, 40, 24]


def test_own_padding_ends_at_a_multiple_of_32():
    anchors = geometry.StrideAnchors((16,), (3.7,), (1.0,)).level(16, 6, 6, torch.device("cpu"))
    inside = geometry.in_own_padding(anchors, (33, 64)).view(6, 6)
    wanted = torch.zeros(6, 6, dtype=torch.bool)
    wanted[:4, :4] = True
    assert torch.equal(inside, wanted)
    assert geometry.in_own_padding(anchors, None).all()


@pytest.mark.parametrize(
    ("compute", "of_all"), [(geometry.paired_iou, box_iou), (geometry.paired_giou, generalized_box_iou)]
)
def test_overlaps_of_pairs_are_torchvisions(compute, of_all):
    corner = torch.rand(2, 20, 2, generator=torch.Generator().manual_seed(0)) * 30
    own, other = torch.cat([corner, corner.flip(1) / 2 + corner + 1], dim=-1)
    torch.testing.assert_close(compute(own, other), of_all(own, other).diagonal(), rtol=1e-5, atol=1e-6)


def test_empty_boxes_do_not_overlap_and_areas_agree():
    empty, box = torch.zeros(1, 4), torch.tensor([[1.0, 2, 6, 9]])
    assert geometry.paired_iou(empty, empty).item() == geometry.paired_iou(empty, box).item() == 0
    other = box + torch.tensor([-0.5, 0.3, 1.7, -2])
    assert torch.equal(geometry.paired_iou(box, other), geometry.paired_iou(box, other, area=box_area))


def test_the_integral_of_a_distribution_is_its_expectation():
    bins = torch.zeros(2, 4 * 17)
    bins[1, 17 * 2 + 9] = 50.0  # the right side is nine strides away, the others anywhere
    torch.testing.assert_close(geometry.integral(bins), torch.tensor([[8.0, 8, 8, 8], [8, 8, 9, 8]]))


def test_distances_and_boxes_belong_together():
    points, boxes = torch.tensor([[4.0, 6], [0, 0]]), torch.tensor([[1.0, 2, 9, 8], [5, -3, 7, 1]])
    distances = geometry.distances_to_sides(points, boxes)
    assert distances.tolist() == [[3, 4, 5, 2], [-5, 3, 7, 1]]
    assert torch.equal(geometry.boxes_around(points, distances), boxes)
    assert geometry.centres(boxes).tolist() == [[5, 5], [6, -1]]


def test_centreness_at_known_values():
    distances = torch.tensor([[5.0, 3, 5, 3], [1, 4, 4, 1], [0, 2, 3, 2], [-1, 2, 3, 2]])
    points = torch.full((4, 2), 20.0)
    anchors = torch.cat([points - 3, points + 3], dim=1)
    found = geometry.true_centerness(anchors, geometry.boxes_around(points, distances))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.25, 0, 0]))


def test_deltas_neither_shrink_nor_grow_a_side_beyond_the_limit():
    coder = geometry.ClippedBoxCoder((1.0, 1.0, 2.0, 2.0))
    anchor = torch.tensor([[0.0, 0, 62.5, 62.5]])
    boxes = coder.decode_single(torch.tensor([[0.0, 0, -20, 20, 0, 0, 2, 0]]), anchor)
    middle, half = 31.25, 62.5**2 / 2
    wanted = [middle - 0.5, middle - half, middle + 0.5, middle + half]
    torch.testing.assert_close(boxes[0, :4], torch.tensor(wanted))
    assert boxes[0, 6] - boxes[0, 4] == pytest.approx(62.5 * math.e)
