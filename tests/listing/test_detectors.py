"""What `understudy detectors` says: sizes that are right, a table that fits, and one detector in full."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from understudy.detectors import BACKBONES, FAMILIES, build_detector
from understudy.detectors.shapes import shapes_only
from understudy.detectors.sizes import CLASSES, IMAGE, Size, detector_size, measure
from understudy.errors import UserError
from understudy.listing.detectors import STORED, explain, table
from understudy.listing.facts import usual_spec
from understudy.networks.backbones import build_body


class Small(nn.Module):
    """One 3x3 convolution to 8 channels at stride 2, and a head of one 1x1 convolution to 5, without biases."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.outputs = nn.Conv2d(8, 5, 1, bias=False)

    def backbone(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"0": self.body(images)}

    def head(self, levels: list[torch.Tensor]) -> Any:
        return [self.outputs(level) for level in levels]


def test_a_size_by_hand():
    cells = (IMAGE[0] // 2) * (IMAGE[1] // 2)
    weights = 3 * 8 * 9 + 8 * 5
    assert measure(Small().to("meta")) == Size(weights, cells * weights)


@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
def test_the_second_stage_is_counted_for_1000_proposals(conventions):
    narrow, wide = (
        detector_size(
            "faster_rcnn_resnet18",
            3,
            width_mult=0.25,
            neck_channels=16,
            conventions=conventions,
            settings={"fc_channels": channels},
        )
        for channels in (32, 64)
    )
    weights = 16 * 49 * 32 + (64**2 - 32**2) + 32 * (4 + 16)
    assert wide.multiply_adds - narrow.multiply_adds == 1000 * weights
    assert wide.parameters - narrow.parameters == weights + 2 * 32


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50",
        "fcos_mobilenet_v3_large",
        "gfl_resnext50_32x4d",
        "faster_rcnn_resnet18",
        "fcos_regnet_y_400mf",
    ],
)
def test_listed_sizes_are_not_stale(name):
    listed = json.loads(STORED.read_text())
    assert list(listed) == list(FAMILIES)
    assert all(list(backbones) == list(BACKBONES) for backbones in listed.values())
    family = next(family for family in FAMILIES if name.startswith(f"{family}_"))
    size = listed[family][name.removeprefix(f"{family}_")]
    assert tuple(size) == detector_size(name, CLASSES), "run `python docs/generate.py`"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [256, 128])
def test_the_usual_specs_of_the_listing_are_those_of_built_detectors(family, width):
    with shapes_only():
        built = build_detector(f"{family}_resnet50", 80, neck_channels=width)
    assert usual_spec(FAMILIES[family], f"{family}_resnet50", width) == built.spec


def test_resnet50_has_as_many_weights_and_operations_as_torchvision_says():
    """ResNet-50 alone, at 224 pixels, from torchvision's own table: 25.6 M with its classifier, 4.09 G."""
    published = models.ResNet50_Weights.IMAGENET1K_V1.meta
    with shapes_only():
        backbone = build_body("resnet50").module
    assert sum(weight.numel() for weight in backbone.parameters()) == published["num_params"] - 2049 * 1000
    network = Small()
    network.body, network.outputs = backbone, nn.Identity()
    at_224 = measure(network).multiply_adds * 224**2 / (IMAGE[0] * IMAGE[1])
    assert at_224 / 1e9 == pytest.approx(published["_ops"], abs=5e-3)


def test_the_table_has_every_detector_and_fits_80_columns():
    lines = table().splitlines()
    assert max(map(len, lines)) <= 80
    assert set(FAMILIES) <= set(" ".join(lines).split())
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0] in BACKBONES}
    assert set(rows) == set(BACKBONES)
    assert all(len(row) == 2 * len(FAMILIES) for row in rows.values())
    parameters, operations = detector_size("retinanet_resnet50")
    assert rows["resnet50"][:2] == [f"{parameters / 1e6:.1f}", f"{operations / 1e9:.1f}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_detector_is_explained(family):
    text = explain(f"{family}_resnet50", ["width_mult=0.5", "detector.neck_channels=128", "num_classes=20"])
    assert max(map(len, text.splitlines())) <= 80
    size = detector_size(f"{family}_resnet50", 20, width_mult=0.5, neck_channels=128)
    assert f"{size.parameters / 1e6:.2f} M parameters, {size.multiply_adds / 1e9:.2f} G" in text
    assert "512, 1024 channels" in text
    assert f"detector={family}_resnet50 " in text
    assert "detector.width_mult=0.5" in text


@pytest.fixture
def unmeasured(monkeypatch):
    """Without the sizes, which take most of the time of an explanation."""
    monkeypatch.setattr("understudy.detectors.sizes.measure", lambda network: Size(0, 0))


def test_which_imagenet_weights_there_are(unmeasured):
    assert "backbone_weights=IMAGENET1K_V1 or IMAGENET1K_V2" in explain("fcos_resnet50", ["neck_channels=16"])
    assert "no weights of this backbone" in explain("fcos_resnext101_32x4d", ["neck_channels=16"])
    assert "for width_mult=1 only" in explain("fcos_mobilenet_v2", ["width_mult=0.5"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gfl_resnet5O", [], "did you mean 'gfl_resnet50'"),
        ("gfl_resnet50", ["width=0.5"], r"detector.width: no such key; did you mean detector.width_mult\?"),
        ("gfl_resnet50", ["num_classes=0"], "num_classes: expected an integer above 0, got 0"),
        ("gfl_resnet50", ["--width=2"], '"--width=2": no such option'),
        (
            "gfl_resnet50",
            ["settings.reg_max=many", "settings.regmax=2"],
            "expected an integer of at least 1, like 16, got 'many'",
        ),
        ("gfl_resnet50", ["settings.reg_max=8", "settings.regmax=2"], "has no setting 'regmax'; available: style"),
    ],
)
def test_what_cannot_be_explained(name, options, message):
    with pytest.raises(UserError, match=message):
        explain(name, options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
def test_settings_that_are_explained_can_be_set(family, conventions, unmeasured):
    text = explain(f"{family}_resnet18", ["width_mult=0.125", "neck_channels=16", f"conventions={conventions}"])
    part = (
        text if "either conventions" in text else text.partition(f"conventions={conventions}:")[2].partition("\n\n")[0]
    )
    settings = [line.strip() for line in part.splitlines() if line.startswith("  detector.settings.")]
    explain(f"{family}_resnet18", ["width_mult=0.125", "neck_channels=16", f"conventions={conventions}", *settings])
