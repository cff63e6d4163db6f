"""Parts of Faster R-CNN in mmdet's conventions: its sampling, its matching and its anchors."""

import pytest
import torch
from two_stage_detectors import SIZES, built, detector_of, photos, targets

from understudy.detectors import open_detector
from understudy.networks.faster_rcnn import RandomSampler


def test_samples_are_random_only_if_there_are_more_than_needed():
    labels = [torch.tensor([1.0, 0, 0, -1, 0, 1, 0]), torch.tensor([0.0, 0, -1, -1, -1, -1, 2])]
    state = torch.random.get_rng_state()
    few = RandomSampler(8, 0.5)(labels)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing was drawn
    assert [mask.tolist() for mask in few[0]] == [(row >= 1).tolist() for row in labels]
    assert [mask.tolist() for mask in few[1]] == [(row == 0).tolist() for row in labels]
    positives, negatives = RandomSampler(4, 0.25)(labels)
    assert [int(mask.sum()) for mask in positives] == [1, 1]
    assert [int(mask.sum()) for mask in negatives] == [3, 2]
    assert not (negatives[0] & (labels[0] != 0)).any()


def test_anchors_beyond_an_images_own_padding_are_ignored():
    detector = detector_of("mmdet")
    sizes = [(96, 128), (60, 90)]  # padded alone, the second would be 64 x 96
    outputs = detector(torch.rand(2, 3, 96, 128), sizes)
    gt_index = detector.assign(outputs, targets([], second=False))
    finest = gt_index[:, : 24 * 32 * 3].view(2, 24, 32, 3)
    assert (finest[0] == -1).all()
    assert (finest[1, :16, :24] == -1).all()
    assert (finest[1, 16:] == -2).all()
    assert (finest[1, :, 24:] == -2).all()


def test_an_object_takes_its_best_anchor_inside_its_images_own_padding():
    """Its best anchor overall is centred beyond; of those inside, the best overlaps it by less than one half."""
    detector = detector_of("mmdet")
    sizes = [(96, 128), (64, 64)]
    outputs = detector(torch.rand(2, 3, 96, 128), sizes)
    truth = targets([])
    truth[1]["boxes"] = torch.tensor([[56.0, 16, 88, 48]])
    gt_index = detector.assign(outputs, truth)[1]
    centres = torch.cat([level.flatten(0, 2) for level in outputs.anchors])[gt_index >= 0]
    assert len(centres)
    assert ((centres[:, 0] + centres[:, 2]) / 2 < 64).all()


@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
def test_anchors_are_eight_cells_wide_by_default(conventions):
    _, batch = photos()
    for scale, expected in ((None, 8), (4.0, 4)):
        detector = open_detector(built(conventions, anchor_scale=scale))
        for anchors, stride in zip(detector(batch, SIZES).anchors, detector.spec.strides, strict=True):
            torch.testing.assert_close(anchors[0, 0, 1, 2:], torch.full((2,), expected * stride / 2))
