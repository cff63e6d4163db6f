"""FCOS, opened: its assignment and its boxes."""

import torch
from dense_detectors import SIZES, photos, small


def test_a_point_near_the_centre_of_several_objects_goes_to_the_smallest():
    detector = small("fcos, torchvision")
    outputs = detector(photos()[1], SIZES)
    boxes = torch.tensor([[0.0, 0, 60, 60], [16, 16, 44, 44]])
    truth = [{"boxes": boxes, "labels": torch.tensor([0, 1])}] * 2
    gt_index = detector.assign(outputs, truth)[0]
    finest = gt_index[: 12 * 16].view(12, 16)
    assert finest[4, 4] == 1  # point (32, 32): inside both, the smaller one wins
    assert finest[1, 1] == -1  # point (8, 8): inside the first, far from its centre


def test_the_boxes_of_an_fcos_lie_around_the_centre_of_each_cell():
    detector = small("fcos")
    outputs = detector(photos()[1], SIZES)
    box, raw = detector.decode(outputs)[1][0, 2, 3, 0], outputs.box_raw[1][0, 2, 3, 0]
    torch.testing.assert_close(box, torch.stack([56 - raw[0], 40 - raw[1], 56 + raw[2], 40 + raw[3]]))
