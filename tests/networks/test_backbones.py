"""Backbones at any width, their normalisation, and their feature pyramid."""

import pytest
import torch
from torchvision import models
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.regnet import BlockParams
from torchvision.ops import FrozenBatchNorm2d

import understudy
from understudy.detectors import BACKBONES, build_detector
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.networks import build_network
from understudy.networks.backbones import NORMS, build_body


def stage_maps(body, images: torch.Tensor) -> list[torch.Tensor]:
    """C2 to C5."""
    layers, maps = dict(body.module.named_children()), []
    for stage in body.stages:
        for layer in stage:
            images = layers[layer](images)
        maps.append(images)
    return maps


NARROWED = ("resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
NARROWED += ("regnet_x_400mf", "regnet_y_400mf")
"""One of each kind: what is built at another width, too."""


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stages_have_their_strides_and_channels_at_any_width_and_torchvisions_weights_fit(backbone, monkeypatch):
    from_init_params = BlockParams.from_init_params

    def on_the_cpu(**sizes):  # torchvision computes a RegNet's sizes with tensors, which the meta device does not hold
        with torch.device("cpu"):
            return from_init_params(**sizes)

    monkeypatch.setattr(BlockParams, "from_init_params", on_the_cpu)
    bodies = {}
    for width in (1.0, 0.3) if backbone in NARROWED else (1.0,):
        with shapes_only(), torch.no_grad():
            body = bodies[width] = build_body(backbone, width_mult=width)
            body.module.eval()
            maps = stage_maps(body, torch.empty(1, 3, 128, 128))
        assert [128 // each.shape[-1] for each in maps] == [4, 8, 16, 32]
        assert tuple(each.shape[1] for each in maps) == body.channels
        named = [layer for stage in body.stages for layer in stage]
        assert named == [name for name, _ in body.module.named_children()][: len(named)]
    if backbone in NARROWED:
        assert bodies[0.3].channels[-1] / bodies[1.0].channels[-1] == pytest.approx(0.3, rel=0.15)
    if backbone == "resnext101_32x4d":  # not in torchvision
        return
    with shapes_only():
        theirs = models.get_model(backbone).state_dict()
    shapes = {
        key.removeprefix("features.").removeprefix("trunk_output."): value.shape
        for key, value in theirs.items()
        if not key.startswith(("fc.", "classifier."))
    }
    assert {key: value.shape for key, value in bodies[1.0].module.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("backbone", "nodes"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("mobilenet_v2", ["features.3", "features.6", "features.13", "features.17"]),
        ("mobilenet_v3_small", ["features.1", "features.3", "features.8", "features.11"]),
        ("mobilenet_v3_large", ["features.3", "features.6", "features.12", "features.15"]),
        ("regnet_x_400mf", [f"trunk_output.block{stage}" for stage in (1, 2, 3, 4)]),
        ("regnet_y_400mf", [f"trunk_output.block{stage}" for stage in (1, 2, 3, 4)]),
    ],
)
def test_with_torchvisions_weights_the_maps_are_torchvisions(backbone, nodes, tmp_path):
    torch.manual_seed(0)
    theirs = models.get_model(backbone).eval()
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_mean", "running_var")):  # whatever is loaded must be used
            value.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    norm = "frozen" if backbone in ("mobilenet_v3_large", "regnet_y_400mf") else "batch"
    detector = build_detector(
        f"fcos_{backbone}", 3, neck_channels=16, norm=norm, backbone_weights=tmp_path / "weights.pt"
    ).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = create_feature_extractor(theirs, nodes)(images)
        found = detector.network.backbone.body(images)
    for ours, node in zip(found.values(), nodes[1:], strict=True):
        torch.testing.assert_close(ours, wanted[node], rtol=1e-4, atol=1e-5)


def test_the_pyramid_is_torchvisions():
    """Also the levels' names, so that torchvision's published detectors and ours have the same keys."""
    with shapes_only():
        theirs = _resnet_fpn_extractor(
            models.resnet50(), 5, [2, 3, 4], models.detection.retinanet.LastLevelP6P7(256, 256)
        )
        ours = build_network("retinanet_resnet50", 3).backbone
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


def test_other_resnexts_by_name():
    with torch.device("meta"):
        assert build_body("resnext152_32x8d").channels == (256, 512, 1024, 2048)
    for name in ("resnext18_32x4d", "resnet51"):
        with pytest.raises(ValueError, match=r"no residual network of depth .* expected a depth of 18, 34, 50"):
            build_body(name)
    for name in ("resnext", "vgg16"):
        with pytest.raises(ValueError, match=f"unknown backbone '{name}'; expected one of resnet18, resnet34"):
            build_body(name)


# --- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backbone", ["resnet18", "regnet_x_400mf"])
def test_what_a_normalisation_trains_and_keeps(norm, backbone):
    detector = build_detector(f"fcos_{backbone}", 3, neck_channels=16, width_mult=0.125, norm=norm, frozen_stages=1)
    body = detector.network.backbone.body
    first, last = (
        [module for name, module in body[stage].named_modules() if isinstance(module, NORMS[norm])][-1]
        for stage in (("layer1", "layer4") if backbone == "resnet18" else ("block1", "block4"))
    )
    for train in (lambda: None, detector.train):  # as it was built, and after a switch
        train()
        before = {key: value.clone() for key, value in body.state_dict().items()}
        detector(torch.rand(2, 3, 64, 64))
        moved = {key for key, value in body.state_dict().items() if not torch.equal(value, before[key])}
        assert bool(moved) == (norm in ("batch", "sync"))
        frozen = [name for name, _ in body.named_children()][: 5 if backbone == "resnet18" else 2]
        if train == detector.train:
            assert not {key for key in moved if key.split(".")[0] in frozen}
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in last.parameters())
    assert bool(list(last.parameters())) == (norm != "frozen")
    assert isinstance(last, FrozenBatchNorm2d) == (norm == "frozen")


def test_synchronised_on_one_process_is_plain_and_on_several_cpus_is_refused(tiny, tmp_path):
    run = {**tiny, "schedule.epochs": 1, "detector.norm": "sync"}
    assert (understudy.train(run, run=tmp_path / "one") / "best.ckpt").exists()
    with pytest.raises(UserError, match=r"detector.norm=sync needs GPUs.*Use detector.norm=batch"):
        understudy.train(run, run=tmp_path / "two", devices=2, strategy="ddp")
    assert not (tmp_path / "two").exists()
