"""How boxes fit anchors: counts of a data set of known boxes, for every family."""

from pathlib import Path

import pytest
import torch
from small_detectors import small
from torchvision.ops import box_iou

from understudy.data.records import DetectionData, Record, Records
from understudy.detectors import Detector
from understudy.detectors.anchor_fit import fit_of_boxes


def data_of(*images: list[list[float]], size: tuple[int, int] = (128, 128)) -> DetectionData:
    """Images of this height and width with these boxes."""
    records = []
    for number, boxes in enumerate(images, 1):
        count = len(boxes)
        box = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        area = (box[:, 2:] - box[:, :2]).prod(1)
        labels, ids = torch.zeros(count, dtype=torch.int64), torch.arange(count)
        records.append(Record(number, Path(f"{number}.png"), size[1], size[0], box, labels, labels.bool(), area, ids))
    return DetectionData(("a",), (1,), Records.of(records), "coco", Path(), "train")


SQUARES = data_of([[40, 40, 72, 72], [10, 70, 42, 102]], [], [[64, 8, 96, 40]])
DOTS = data_of([[40, 40, 43, 43], [90, 12, 93, 15]], [[60, 60, 63, 63]])
WALLS = data_of([[0, 0, 128, 128]], [[0, 0, 128, 128]])


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_boxes_of_the_size_of_an_anchor_fit_every_family_and_dots_fit_none(family):
    detector = small(family, classes=1)
    fit = fit_of_boxes(detector, SQUARES, 128, 128)
    assert fit is not None
    assert (fit.images, fit.objects, fit.usual_sides) == (3, 3, (32, 32, 32))
    assert fit.remarks() == []
    assert sum(fit.levels.values()) == 3
    dots = fit_of_boxes(detector, DOTS, 128, 128)
    assert dots is not None
    assert dots.below_cell == 1
    assert "100% of the objects are smaller than one cell of the finest level" in dots.remarks()[-1]


def test_the_positives_are_those_that_training_has():
    detector = small("retinanet", classes=1)
    fit = fit_of_boxes(detector, SQUARES, 128, 128)
    assert fit is not None
    first = SQUARES.records[0].boxes.float()
    outputs = detector(torch.zeros(1, 3, 128, 128))
    index = detector.assign(outputs, [{"boxes": first, "labels": torch.zeros(2, dtype=torch.int64)}])[0]
    assert fit.positives[:2].tolist() == [int((index == number).sum()) for number in (0, 1)]
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
    assert torch.equal(fit.overlaps[:2], box_iou(first, anchors).amax(1))
    assert all(map(torch.equal, detector.lay_anchors((128, 128)), outputs.anchors))


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_anchors_are_laid_without_a_pass(family):
    detector = small(family, classes=1)
    expected = detector(torch.zeros(1, 3, 128, 256)).anchors
    assert all(map(torch.equal, detector.lay_anchors((128, 256)), expected))
    # As for a detector that says only what its first cells have:
    assert all(map(torch.equal, Detector.lay_anchors(detector, (128, 256)), expected))


def test_anchors_that_are_too_large_or_too_small_are_said_with_a_scale_that_fits():
    far = small("retinanet", classes=1, anchor_scale=64.0)
    fit = fit_of_boxes(far, SQUARES, 128, 128)
    assert fit is not None
    assert fit.too_small == 1
    assert fit.remarks()[-1] == (
        "100% of the objects are too small for the smallest anchor of retinanet_resnet18 (512 pixels): their IoU is "
        "below 0.4, that of background"
    )
    assert fit.remedy() == "detector.anchor_scale=4.0"
    mended = fit_of_boxes(small("retinanet", classes=1, anchor_scale=4.0), SQUARES, 128, 128)
    assert mended is not None
    assert mended.remarks() == []

    narrow = fit_of_boxes(small("retinanet", classes=1, anchor_scale=0.25), WALLS, 128, 128)
    assert narrow is not None
    assert narrow.too_large == 1
    assert narrow.remedy() == "detector.anchor_scale=1.0"


def test_boxes_are_measured_at_the_training_size():
    fit = fit_of_boxes(small("fcos", classes=1), data_of([[40, 40, 72, 72]]), 512, 512)
    assert fit is not None
    assert fit.usual_sides == (128, 128, 128)
    assert fit.to_dict()["side_percentiles"] == {"10": 128.0, "50": 128.0, "90": 128.0}
    dots = fit_of_boxes(small("fcos", classes=1), DOTS, 128, 128)
    assert dots is not None
    assert dots.remedy() == "another detector, whose levels or anchors fit the boxes"
    assert "background" not in " ".join(fit.remarks())


def test_a_data_set_without_objects_has_nothing_to_remark():
    fit = fit_of_boxes(small("retinanet", classes=1), data_of([], []), 128, 128)
    assert fit is not None
    assert (fit.objects, fit.remarks()) == (0, [])
