"""Detectors by name and options, and networks that a user already has."""

import copy

import pytest
import torch
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS, RetinaNet, ssd300_vgg16
from torchvision.models.detection.anchor_utils import AnchorGenerator

from understudy.detectors import BACKBONES, build_detector, families, open_detector
from understudy.detectors.build import detector_names
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError


@pytest.mark.parametrize("family", [RetinaNet, FCOS])
def test_any_torchvision_detector_opens(family):
    """A backbone without a pyramid, own anchors, own number of classes; the user's object stays the same."""
    body = mobilenet_v2(width_mult=0.5).features[:-1]
    body.out_channels = 160
    ratios = ((0.5, 1.0),) if family is RetinaNet else ((1.0,),)
    network = family(body, num_classes=3, anchor_generator=AnchorGenerator(((32,),), ratios), min_size=64, max_size=64)
    before = copy.deepcopy(network.state_dict())
    detector = open_detector(network, "mine")
    assert detector.network is network
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert detector.spec.strides == (32,)
    assert detector.spec.num_anchors == len(ratios[0])
    assert detector.spec.num_classes == 3
    assert detector.spec.name == "mine"
    network.eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (wanted,) = network([image])
        (found,) = detector.detect(detector(image[None]), [(64, 64)])
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key])


def test_other_networks_are_refused_by_name():
    with shapes_only():
        network = ssd300_vgg16(weights=None, weights_backbone=None)
    with pytest.raises(UserError, match=r"open_detector takes a .*RetinaNet.*, FCOS, GFL.*, got torchvision\..*\.SSD"):
        open_detector(network)


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50", "resnext50_32x4d", "mobilenet_v2"])
def test_backbones_by_name(backbone):
    detector = build_detector(f"fcos_{backbone}", 2, neck_channels=24)
    assert detector.spec.channels == (24,) * 5
    assert detector.spec.stage_strides == (8, 16, 32)
    assert detector.spec.name == f"fcos_{backbone}"


def test_every_name_is_listed():
    assert len(BACKBONES) == 26
    assert set(detector_names()) == {f"{family}_{name}" for family in families.FAMILIES for name in BACKBONES}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcos_resnet18", {"anchor_scale": 4.0}, "anchor_scale=4.0 is not available for FCOS"),
        ("faster_rcnn_resnet18", {"head_norm": "group"}, "head_norm=group is not available for Faster R-CNN"),
        ("retinanet_resnet18", {"head_norm": "batch"}, "head_norm: expected 'group' or None, got 'batch'"),
        ("gfl_resnet18", {"anchor_scale": -1.0}, "anchor_scale: expected a number above 0, got -1"),
    ],
)
def test_options_without_a_meaning_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        build_detector(name, 2, **options)


MMDET = {"conventions": "mmdet", "neck_channels": 16, "width_mult": 0.25}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("retinanet", {"groups": "x"}, r"settings.groups: expected an integer of at least 1 or null, got 'x'"),
        ("retinanet", {"groups": 0}, r"settings.groups: expected an integer of at least 1 or null, got 0"),
        ("retinanet", {"octaves": 0}, r"settings.octaves: expected an integer of at least 1, like 3, got 0"),
        ("retinanet", {"ratios": []}, r"expected a list of numbers above 0, like \[0.5, 1.0, 2.0\], got \[\]"),
        ("faster_rcnn", {"ratios": ["a"]}, r"expected a list of numbers above 0"),
        ("faster_rcnn", {"fc_channels": 0}, r"settings.fc_channels: expected an integer of at least 1, like 1024"),
        ("fcos", {"score_threshold": float("nan")}, r"settings.score_threshold: expected a number like 0.05, got nan"),
        ("fcos", {"extra_relu": 1}, r"settings.extra_relu: expected a value like True, got 1"),
        ("fcos", {"style": "odd"}, r'settings \{"style": "odd"\}: style: expected pytorch or caffe, got \'odd\''),
        ("fcos", {"groups": 7}, r'cannot be built with the settings \{"groups": 7\}: num_channels .* divisible'),
    ],
)
def test_settings_without_a_meaning_are_refused(family, settings, message):
    with pytest.raises(UserError, match=message):
        build_detector(f"{family}_resnet18", 2, **MMDET, settings=settings)


def test_an_error_of_a_builder_that_no_setting_explains_is_not_hidden(monkeypatch):
    monkeypatch.setattr("understudy.detectors.build.plain_network", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        build_detector("fcos_resnet18", 2)


def test_all_faults_of_a_detector_at_once():
    with pytest.raises(UserError) as failure:
        build_detector("retinanet_resnet5O", 0, neck_channels=0, norm="bacth", frozen_stages=9)
    message = str(failure.value)
    for part in ("did you mean 'retinanet_resnet50'", "num_classes", "neck_channels", "norm", "frozen_stages"):
        assert part in message


@pytest.mark.parametrize(("width_mult", "channels"), [(0.5, (64, 128, 256)), (1.5, (192, 384, 768))])
def test_any_width(width_mult, channels):
    assert build_detector("fcos_resnet18", 2, neck_channels=16, width_mult=width_mult).spec.stage_channels == channels
