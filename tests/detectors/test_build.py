"""Every family, and a backbone of each kind: built, trained, evaluated, exported and loaded again."""

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy import Learner
from understudy.checkpoints import FORMAT, STUDENT, write_checkpoint
from understudy.detectors import FAMILIES, Detector, build_detector, open_detector
from understudy.errors import UserError
from understudy.export import export
from understudy.networks import build_network

SIZES = [(64, 64), (64, 48)]  # the second image is padded
CLASSES = ["cat", "dog", "hen"]
COMMON: dict[str, Any] = {"neck_channels": 16, "shorter_side": 64, "longer_side": 64}
WIDTH = {"mobilenet": 0.25, "regnet": 0.05}  # 0.125 for the others


def options(name: str, **more: Any) -> dict[str, Any]:
    width = next((width for kind, width in WIDTH.items() if kind in name), 0.125)
    settings = {"fc_channels": 32} if name.startswith("faster_rcnn") else {}
    return {"name": name, "num_classes": len(CLASSES), "width_mult": width, "settings": settings, **COMMON, **more}


def build(**build_options: Any) -> Detector:
    """An untrained detector that finds something, because its scores are around a half, also after training."""
    torch.manual_seed(0)
    detector = build_detector(**build_options)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the last step
    if hasattr(detector.network, "head"):
        torch.nn.init.zeros_(detector.network.head.classification_head.cls_logits.bias)
    return detector


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    images[1, :, :, 48:] = 0
    truth = [
        {"boxes": torch.tensor([[4.0, 6, 40, 50], [30, 30, 62, 60]]), "labels": torch.tensor([0, 2])},
        {"boxes": torch.tensor([[10.0, 8, 44, 40]]), "labels": torch.tensor([1])},
    ]
    return images, truth


def train_two_steps(detector: Detector, images, truth) -> None:
    learner = Learner(detector).train()
    weights = dict(detector.network.named_parameters())
    before = {name: value.detach().clone() for name, value in weights.items()}
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    for _ in range(2):
        losses = learner(images, truth, image_sizes=SIZES)
        assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert all(weight.grad is not None for weight in weights.values())
    parts = {
        ".".join(name.split(".")[:2]) for name in weights
    }  # backbone.body, backbone.fpn, head.regression_head, ...
    changed = {".".join(name.split(".")[:2]) for name in weights if not torch.equal(weights[name], before[name])}
    assert changed == parts
    assert all(value.isfinite().all() for value in detector.network.state_dict().values())


def export_it(detector: Detector, build_options: dict[str, Any], folder: Path) -> Path:
    """Write a checkpoint as a run does, and export it."""
    meta = {"format": FORMAT, "build": build_options, "classes": CLASSES, "category_ids": [1, 2, 3], "config": {}}
    weights = {STUDENT + key: value for key, value in detector.network.state_dict().items()}
    write_checkpoint(folder / "best.ckpt", {"understudy": meta, "state_dict": weights})
    return export(folder / "best.ckpt", folder / "exported")


def load_exported(folder: Path):
    """The exported network, by the code that lies beside it and nothing of the package."""
    name = f"exported_{id(folder)}"
    code = folder / "detector"
    spec = importlib.util.spec_from_file_location(name, code / "__init__.py", submodule_search_locations=[str(code)])
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.load(folder)
    finally:
        for loaded in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[loaded]


def round_trip(build_options: dict[str, Any], batch, folder: Path) -> None:
    images, truth = batch
    detector = build(**build_options)
    train_two_steps(detector, images, truth)
    with torch.no_grad():
        found = detector.eval().detect(detector(images, SIZES), SIZES)
    network, labels = load_exported(export_it(detector, build_options, folder))
    assert not type(network).__module__.startswith("understudy")
    with torch.no_grad():
        theirs = network([image[:, :height, :width] for image, (height, width) in zip(images, SIZES, strict=True)])
    for ours, other in zip(found, theirs, strict=True):
        assert len(ours["boxes"]) > 0
        names = [CLASSES[label] for label in ours["labels"]]
        assert names == [labels[label] for label in other["labels"]]
        torch.testing.assert_close(ours["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours["scores"], other["scores"], rtol=1e-4, atol=1e-5)


ONE_OF_EACH_KIND = (
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "regnet_x_400mf",
    "regnet_y_400mf",
)
ROUND_TRIPS = [
    *itertools.product(FAMILIES, ["resnet18"]),
    *zip(itertools.cycle(FAMILIES), ONE_OF_EACH_KIND, strict=False),  # no family's code depends on the backbone
]
"""Backbones of a kind differ in numbers alone, which ``networks/test_backbones.py`` compares with torchvision's."""


@pytest.mark.parametrize(("family", "backbone"), ROUND_TRIPS)
def test_build_train_evaluate_export_load(family, backbone, batch, tmp_path):
    round_trip(options(f"{family}_{backbone}"), batch, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_with_mmdets_conventions(family, batch, tmp_path):
    round_trip(options(f"{family}_resnet18", conventions="mmdet"), batch, tmp_path)


def test_a_published_detector_is_saved_loaded_and_exported(tmp_path):
    name = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"
    build_options = {"name": name, "num_classes": 3, "shorter_side": 64, "longer_side": 64, "norm_eps": 1e-3}
    torch.manual_seed(0)
    detector = open_detector(build_network(**build_options), name).eval()
    assert detector.spec.strides == (32, 32, 64)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        (found,) = detector.detect(detector(images), [(64, 64)])
        network, _ = load_exported(export_it(detector, build_options, tmp_path))
        (theirs,) = network(list(images))
    assert len(found["boxes"]) > 0
    torch.testing.assert_close(found["boxes"], theirs["boxes"])
    assert network.backbone.body["0"][1].eps == 1e-3
    with pytest.raises(UserError, match="is for torchvision's published weights"):
        build_detector(name, 3)
