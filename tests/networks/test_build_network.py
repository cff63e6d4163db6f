"""Detectors by name, and the folder that an export copies: it needs torch and torchvision alone."""

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from understudy import networks
from understudy.networks import Design, build_network, split_name

OPTIONS = {"neck_channels": 16, "width_mult": 0.25, "shorter_side": 64, "longer_side": 128}
IMAGES = [torch.rand(3, 50, 60), torch.rand(3, 64, 40)]
FAMILY = """
def build(design, *, depth=1):
    return __name__, design, depth

BUILDERS = {"torchvision": build, "mmdet": build}
"""


@pytest.fixture
def alone(tmp_path, monkeypatch) -> ModuleType:
    """A copy of the folder, imported where understudy cannot be; two families were added to it."""
    folder = tmp_path / "detector_alone"
    shutil.copytree(Path(networks.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for family in ("tiny", "tiny_two"):
        (folder / f"{family}.py").write_text(FAMILY)
    for name in [name for name in sys.modules if name.partition(".")[0] == "understudy"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("detector_alone")
    for name in [name for name in sys.modules if name.partition(".")[0] == "detector_alone"]:
        del sys.modules[name]


def test_the_name_begins_with_a_family_of_the_folder():
    assert split_name("retinanet_resnet50") == ("retinanet", "resnet50")
    assert split_name("faster_rcnn_resnext50_32x4d") == ("faster_rcnn", "resnext50_32x4d")
    for name in ("yolo_resnet50", "gfl", "backbones_resnet50", "__main___resnet50", "faster_resnet50"):
        with pytest.raises(ValueError, match=f"unknown detector '{name}'.* of faster_rcnn, fcos, gfl, retinanet$"):
            split_name(name)


def test_the_family_is_the_longest_name_that_fits_and_interprets_the_rest(alone):
    assert alone.split_name("tiny_two_d33_w25") == ("tiny_two", "d33_w25")
    assert alone.split_name("tiny_d33_w25") == ("tiny", "d33_w25")
    module, design, depth = alone.build_network(
        "tiny_two_d33_w25", 3, conventions="mmdet", settings={"depth": 2}, neck_channels=8
    )
    assert (module, depth) == ("detector_alone.tiny_two", 2)
    assert (design.backbone, design.num_classes, design.neck_channels) == ("d33_w25", 3, 8)


def test_builders_of_another_package():
    def build(design: Design, *, depth: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(design.num_classes, int(design.backbone)) for _ in range(depth)))

    network = build_network("far_9", 4, builders={"torchvision": build}, backbone="9", settings={"depth": 2})
    assert [layer.weight.shape for layer in network] == [(9, 4)] * 2
    with pytest.raises(ValueError, match="conventions: expected one of torchvision, got 'mmdet'"):
        build_network("far_9", 4, builders={"torchvision": build}, backbone="9", conventions="mmdet")


@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
@pytest.mark.parametrize("name", ["retinanet_resnet18", "fcos_mobilenet_v2", "gfl_resnet18", "faster_rcnn_resnet18"])
def test_every_family_is_built_without_understudy(alone, name, conventions):
    settings = {"fc_channels": 16} if name.startswith("faster_rcnn") else {}
    model = alone.build_network(name, 3, conventions=conventions, settings=settings, **OPTIONS)
    assert not [module for module in sys.modules if module.startswith("understudy") and sys.modules[module]]
    truth = [{"boxes": torch.tensor([[5.0, 5, 40, 45]]), "labels": torch.tensor([2])} for _ in IMAGES]
    losses = model.train()([image.clone() for image in IMAGES], truth)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        assert [set(found) for found in model.eval()(IMAGES)] == [{"boxes", "scores", "labels"}] * 2


def test_a_gfl_on_torchvisions_own_backbone_without_understudy(alone):
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    gfl = importlib.import_module("detector_alone.gfl")
    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, **levels)
    model = gfl.GFL(backbone, num_classes=3, min_size=64, max_size=128)
    truth = [
        {"boxes": torch.tensor([[5.0, 5, 40, 45], [1, 1, 10, 9]]), "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    losses = model.train()(IMAGES, truth)
    assert set(losses) == {"classification", "bbox_regression", "distribution"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)

    nn.init.constant_(model.head.classification_head.cls_logits.bias, -1.0)
    with torch.no_grad():
        detections = model.eval()(IMAGES)
    for found, image in zip(detections, IMAGES, strict=True):
        height, width = image.shape[-2:]
        assert 0 < len(found["boxes"]) <= 100
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2) + 1e-4).all()
        assert found["labels"].max() < 3
    with torch.no_grad():
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -9.0)
        assert [len(found["boxes"]) for found in model(IMAGES)] == [0, 0]
