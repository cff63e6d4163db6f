"""Detectors of torchvision: identified by their tensors, with the classes of COCO or of the user."""

from typing import Any

import pytest
import torch
from foreign_files import torchvision_state
from torch import nn
from torchvision.models import get_model

from understudy.checkpoints import import_checkpoint
from understudy.checkpoints.class_names import NO_CLASS, coco_categories, torchvision_categories
from understudy.checkpoints.import_options import ImportOptions
from understudy.checkpoints.torchvision import from_torchvision
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.networks import PUBLISHED, build_network


@pytest.mark.parametrize("name", [name.removeprefix("torchvision/") for name in PUBLISHED])
@pytest.mark.parametrize("outputs", [91, 4])
def test_published_detectors_are_identified(name, outputs):
    two_stages = name.startswith("fasterrcnn")
    names = ("a", "b", "c") if two_stages else ("a", "b", "c", "d")
    options = ImportOptions(classes=None if outputs == 91 else names)
    found = from_torchvision(torchvision_state(name, outputs), options, f"{name}_coco-0123abcd.pth")
    assert found.build["name"] == f"torchvision/{name}"
    if outputs == 91 and two_stages:
        assert len(found.classes) == 90
        assert found.classes[:2] == ("person", "bicycle")
        assert found.classes[11] == "n/a 12"
        assert found.category_ids == tuple(range(1, 91))
    elif outputs == 91:
        assert found.classes == tuple(coco_categories().values())
        assert found.category_ids == tuple(coco_categories())
    else:
        assert found.classes == names
        assert found.category_ids == tuple(range(1, len(names) + 1))
    with shapes_only():
        expected = build_network(**found.build).state_dict()
    assert {key: value.shape for key, value in expected.items()} == {
        key: value.shape for key, value in found.weights.items() if key in expected
    }
    assert all(key.endswith("num_batches_tracked") for key in found.weights.keys() - expected.keys())


def test_published_retinanet_computes_the_logits_of_torchvision(tmp_path):
    torch.manual_seed(0)
    theirs: Any = get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None, num_classes=91).eval()
    nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.05)
    file = tmp_path / "retinanet.pth"
    torch.save(theirs.state_dict(), file, _use_new_zipfile_serialization=False)  # as the published ones
    found = import_checkpoint(file, tmp_path / "out.ckpt", settings={"norm_eps": 1e-5})
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = list(theirs.backbone(theirs.transform.normalize(images)).values())
        logits = theirs.head(features)["cls_logits"].unflatten(-1, (91,))
        outputs = found.detector(images)
    real = [number for number, name in enumerate(torchvision_categories()) if name not in NO_CLASS]
    ours = torch.cat([level.flatten(1, 3) for level in outputs.class_logits], dim=1)
    assert len(real) == 80
    torch.testing.assert_close(ours, logits[..., real], rtol=1e-4, atol=1e-5)
    assert found.classes == tuple(coco_categories().values())


def test_published_faster_rcnn_detects_as_torchvision(tmp_path):
    torch.manual_seed(0)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    theirs: Any = get_model(name, weights=None, weights_backbone=None, num_classes=3, box_score_thresh=0.05).eval()
    file = tmp_path / "model_320_fpn.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 25}, file)
    found = import_checkpoint(file, tmp_path / "out.ckpt", classes="__background__,cat,dog")
    assert found.classes == ("cat", "dog")
    assert name in found.meta["imported"]["assumptions"][0]
    image = torch.rand(3, 64, 96)
    with torch.no_grad():
        expected, ours = theirs([image])[0], found.detector.network.eval()([image])[0]
    assert len(expected["boxes"])
    torch.testing.assert_close(ours["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    assert ours["labels"].tolist() == expected["labels"].tolist()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_another_detector_of_torchvision():
    mask = torchvision_state("maskrcnn_resnet50_fpn", 91)
    with pytest.raises(UserError, match=r"(?s)cannot be imported.*none of torchvision's.*roi_heads\.mask_head"):
        from_torchvision(mask, ImportOptions())


def test_options_that_do_not_fit_the_file():
    state = torchvision_state("retinanet_resnet50_fpn", 91)
    with pytest.raises(UserError, match=r"(?s)--set ratios: .*available: norm_eps, .*--style: not available"):
        from_torchvision(state, ImportOptions(style="caffe", settings={"ratios": [1.0]}))
    with pytest.raises(UserError, match="--architecture: expected one of retinanet_resnet50_fpn,"):
        from_torchvision(state, ImportOptions(architecture="yolo"))
    with pytest.raises(UserError, match="--classes has 2 names, the file has 91 classes"):
        from_torchvision(state, ImportOptions(classes=("a", "b")))
    found = from_torchvision(state, ImportOptions(architecture="torchvision/retinanet_resnet50_fpn"))
    assert found.build["num_classes"] == 80
