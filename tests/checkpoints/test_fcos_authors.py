"""FCOS as its authors' repository saves it, compared with numbers that this repository's own network computed."""

import re

import pytest
import torch
from foreign_files import as_by_fcos_authors, filled, image_for_references, plain, refusal

from understudy.checkpoints import import_checkpoint

FEATURES = [11.693019, 8.434633, 3.99132, 4.34399, 3.146673]
LOGITS = [0.698064, 0.708364, 0.709251, 0.572658, 0.255071]
DISTANCES = [0.752909, 0.845121, 0.70115, 0.849921, 0.15454]
"""Mean absolute values of each level, of the distances' logarithms, in the authors' network (MNV2, c64, 3 classes)."""


def state(backbone: str = "mobilenet_v2", **options) -> dict[str, torch.Tensor]:
    shape = {"width_mult": 1.0, "neck_channels": 64, "settings": {"conv_bias": True}} | options
    names = as_by_fcos_authors(plain("fcos", backbone, **shape))
    return {name: filled(name, tuple(value.shape)) for name, value in names.items()}


def save(folder, content):
    torch.save({"model": content, "iteration": 90000}, folder / "fcos.pth")
    return folder / "fcos.pth"


def test_it_computes_the_authors_numbers(tmp_path):
    found = import_checkpoint(save(tmp_path, state()), tmp_path / "out.ckpt", classes="a,b,c")
    with torch.no_grad():
        outputs = found.detector(image_for_references())
    distances = [level.log() for level in outputs.box_raw]
    for levels, expected in ((outputs.features, FEATURES), (outputs.class_logits, LOGITS), (distances, DISTANCES)):
        assert [float(level.double().abs().mean()) for level in levels] == pytest.approx(expected, rel=1e-4)
    imported = found.meta["imported"]
    assert imported["source"] == "the FCOS authors' repository"
    assert [re.sub(r" \(.*", "", each) for each in imported["assumptions"]] == [
        "the images are normalised as for Caffe's backbones",
        "it has none of the improvements of the authors' later models, FCOS_imprv_*",
    ]
    build = found.meta["build"]
    assert build["name"] == "fcos_mobilenet_v2"
    assert build["image_mean"] == pytest.approx([122.7717 / 255, 115.9465 / 255, 102.9801 / 255])  # red first
    assert (build["settings"]["extra_levels"], build["settings"]["extra_relu"]) == ("on_output", True)
    assert (build["settings"]["nms_threshold"], build["settings"]["norm_on_bbox"]) == (0.6, False)


@pytest.mark.parametrize(
    ("backbone", "style"), [("resnet50", "caffe"), ("resnext50_8x16d", "pytorch")], ids=["plain", "grouped"]
)
def test_the_frozen_normalisation_of_a_residual_network_has_no_eps(backbone, style, tmp_path):
    content = state(backbone, width_mult=1 / 8)
    content = {re.sub(r"body\.(conv1|bn1)\.", r"body.stem.\1.", name): value for name, value in content.items()}
    options = {"norm_on_bbox": True, "centerness_on_reg": True}
    found = import_checkpoint(save(tmp_path, content), tmp_path / "out.ckpt", classes="a,b,c", settings=options)
    build, weights = found.meta["build"], found.detector.network.state_dict()
    assert (build["name"], build["settings"]["style"]) == (f"fcos_{backbone}", style)
    assert build["settings"]["centerness_on_reg"]
    assert "head.regression_head.bbox_ctrness.weight" in weights
    name = "layer2.0.bn2.running_var"
    variance = content[f"module.backbone.body.{name}"]
    torch.testing.assert_close(weights[f"backbone.body.{name}"] + 1e-5, variance)
    assert len(found.meta["imported"]["assumptions"]) == 2  # the normalisation and the style


def test_deformable_convolutions_are_refused(tmp_path):
    content = state()
    content["module.rpn.head.cls_tower.9.offset.weight"] = content.pop("module.rpn.head.cls_tower.9.weight")
    message = refusal(save(tmp_path, content), tmp_path)
    assert "bbox_head.cls_convs.3.conv.offset" in message or "cls_tower.9.offset" in message
    assert "do not fit" in message
