"""The maps inside the two towers of a head: kept, computed again, and replaced."""

from dataclasses import replace

import pytest
import torch
from tower_detectors import IMAGES, KINDS, tiny, tiny_teacher

from understudy.detectors import build_detector
from understudy.errors import UserError

EVERY = pytest.mark.parametrize("kind", KINDS)


@EVERY
def test_a_record_is_the_same_with_and_without_the_maps_inside(kind):
    detector = tiny(kind, 1)
    plain = detector.train()(IMAGES[:, :, :32])
    assert plain.tower_maps == {}
    with detector.keeping(0, 2):
        kept = detector(IMAGES[:, :, :32])
        evaluated = detector.eval()(IMAGES[:, :, :32])
    assert set(kept.tower_maps) == set(evaluated.tower_maps) == {0, 2}
    assert kept.of_images([0]).tower_maps == detector(IMAGES[:, :, :32]).tower_maps == {}
    for own, other in zip(plain.class_logits + plain.box_raw, kept.class_logits + kept.box_raw, strict=True):
        assert torch.equal(own, other)
    for number in (0, 2):  # computed from the features, they are the same
        computed = detector.tower_maps(plain, number)
        for part in ("classes", "boxes"):
            kept_maps = getattr(kept.tower_maps[number], part)
            assert [tuple(level.shape[2:]) for level in kept_maps] == plain.level_sizes
            for level, again in zip(kept_maps, getattr(computed, part), strict=True):
                assert torch.equal(level, again)
                assert level.min() < 0  # before the ReLU


@EVERY
@pytest.mark.parametrize("number", [0, 3])
def test_a_head_continued_from_its_own_maps_gives_its_own_record(kind, number):
    detector = tiny_teacher(kind)
    names = list(detector.state_dict())
    outputs = detector(IMAGES)
    again = detector.head_from(detector.tower_maps(outputs, number), number, outputs)
    for part in ("class_logits", "box_raw", "anchors"):
        for own, other in zip(getattr(outputs, part), getattr(again, part), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    for name, value in outputs.extra.items():
        torch.testing.assert_close(again.extra[name], value, rtol=1e-5, atol=1e-5)
    assert list(detector.state_dict()) == names
    assert not any("forward" in vars(module) for module in detector.modules())


def test_the_maps_of_a_head_that_fails_half_way_leave_it_as_it_was():
    detector = tiny_teacher("gfl")
    outputs = detector(IMAGES)
    maps = detector.tower_maps(outputs, 3)
    with pytest.raises(RuntimeError):
        detector.head_from(replace(maps, boxes=[level[:, :3] for level in maps.boxes]), 3, outputs)
    with pytest.raises(ZeroDivisionError), detector.keeping(1):
        raise ZeroDivisionError
    again = detector(IMAGES)
    assert again.tower_maps == {}
    assert torch.equal(again.class_logits[0], outputs.class_logits[0])


def test_the_spec_has_the_channels_of_the_towers():
    assert tiny("gfl", 1).spec.tower_channels == (16,) * 4
    short = tiny("retinanet, mmdet", 1, settings={"stacked_convs": 2})
    assert short.spec.tower_channels == (16, 16)
    two_stage = build_detector("faster_rcnn_mobilenet_v2", 2, neck_channels=16, settings={"fc_channels": 8})
    assert two_stage.spec.tower_channels == ()
    with pytest.raises(UserError, match=r"retinanet_mobilenet_v2 has 2 convolutions.*no number 2, 7"):
        short.keeping(1, 2, 7).__enter__()
    with pytest.raises(UserError, match="faster_rcnn_mobilenet_v2 has 0 convolutions"):
        two_stage.keeping(0).__enter__()
    with two_stage.keeping():
        two_stage(IMAGES)
