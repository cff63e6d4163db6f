"""The recall of proposals: the best overlap of each object, and means over IoU and classes."""

import pytest
import torch
from small_detectors import IMAGES, NAMES, SIZES, TARGETS, small
from torchvision.ops import box_iou

from understudy.data import Batch
from understudy.evaluation.proposals import COUNTS, OVERLAPS, ProposalRecall, Recall, best_overlaps, has_proposals

BATCH = Batch(IMAGES, TARGETS, SIZES, SIZES, [1, 2], [True, True])


def test_numbers_are_those_of_a_loop_over_objects():
    detector = small("faster_rcnn").eval()
    with torch.no_grad():
        outputs = detector(BATCH.images, BATCH.image_sizes)
        proposed = detector.proposals(outputs, BATCH.image_sizes)
    found = ProposalRecall(detector)
    found.add(BATCH, outputs)
    result = found.result(NAMES)
    by_class = {}
    for boxes, target in zip(proposed, TARGETS, strict=True):
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            overlaps = box_iou(box[None], boxes)[0].tolist()
            hits = {count: [float(max(overlaps[:count]) >= overlap) for overlap in OVERLAPS] for count in COUNTS}
            by_class.setdefault(NAMES[label], []).append(hits)
    assert list(result.per_class) == [name for name in NAMES if name in by_class]
    assert result.objects == {name: len(by_class[name]) for name in result.per_class}

    def mean(count, place=slice(None)):
        rows = [torch.tensor([hits[count] for hits in by_class[name]])[:, place].mean() for name in by_class]
        return float(torch.stack(rows).mean())

    assert [result.average[count] for count in COUNTS] == pytest.approx([mean(count) for count in COUNTS])
    assert (result.at_50, result.at_75) == pytest.approx((mean(1000, 0), mean(1000, 5)))
    assert result.best == result.average[1000] > 0


def test_only_the_best_proposals_count():
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    far, half = torch.tensor([[90.0, 90, 95, 95]]), torch.tensor([[0.0, 0, 10, 5]])
    overlaps = best_overlaps(
        objects, torch.cat([half, far.expand(10, 4), objects[1:], far.expand(200, 4), objects[:1]])
    )
    assert overlaps.tolist() == [[0.5, 0.5, 1.0], [0.0, 1.0, 1.0]]
    assert best_overlaps(objects, objects[:0]).tolist() == [[0.0] * 3] * 2
    assert best_overlaps(objects[:0], objects).shape == (0, 3)


def test_without_objects_nothing_is_known():
    result = ProposalRecall(small("faster_rcnn")).result(NAMES)
    assert (result.best, result.at_50, result.per_class, result.objects) == (None, None, {}, {})
    some = Recall({10: 0.1, 100: 0.2, 1000: 0.3}, 0.5, 0.4, {}, {})
    assert not result.leads(some)
    assert not some.leads(result)


def test_detectors_of_one_stage_have_none():
    assert [has_proposals(small(family)) for family in ("faster_rcnn", "fcos")] == [True, False]
    assert has_proposals(small("faster_rcnn", conventions="mmdet"))
