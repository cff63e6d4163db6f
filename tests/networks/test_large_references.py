"""Detectors of every family compute what mmdet computes, on larger references that are not in the repository."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.checkpoints.mmdet import layout_of
from understudy.checkpoints.mmdet_keys import translate
from understudy.checkpoints.unpickle import read_foreign
from understudy.detectors import build_detector
from understudy.detectors.families import FAMILIES

LAYOUTS = {name: layout_of(family) for name, family in FAMILIES.items()}

# --- GFL --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gfl(shared):
    """A detector with the weights that mmdet ran with, its images as a batch, and what mmdet computed."""
    folder: Path = shared / "reference/mmdet/gfl"
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "outputs.npz") as arrays:
        wanted = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    detector = build_detector(
        f"gfl_resnet{meta['depth']}",
        meta["num_classes"],
        neck_channels=meta["fpn_channels"],
        width_mult=meta["base_channels"] / 64,
        norm="frozen",
        conventions="mmdet",
        settings={"groups": 32},
        image_mean=[value / 255 for value in (123.675, 116.28, 103.53)],
        image_std=[value / 255 for value in (58.395, 57.12, 57.375)],
    ).eval()
    weights = read_foreign(folder / "checkpoint.pth").value["state_dict"]
    detector.network.load_state_dict(translate(weights, LAYOUTS["gfl"]))
    sizes = [tuple(size) for size in meta["image_sizes"]]
    batch = torch.rand(2, 3, *wanted["input"].shape[-2:])
    for number, (height, width) in enumerate(sizes):
        batch[number, :, :height, :width] = wanted[f"image{number}"].flip(-1).permute(2, 0, 1) / 255
    with torch.no_grad():
        outputs = detector(batch, sizes)
    return detector, outputs, sizes, wanted, meta["losses"]


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_gfls_backbone_neck_and_head_compute_what_mmdet_computes(gfl):
    _, outputs, _, wanted, _ = gfl
    for level, stage in enumerate(outputs.stages):
        assert_equal(stage, wanted[f"backbone{level + 1}"])
    for level in range(5):
        assert_equal(outputs.features[level], wanted[f"neck{level}"])
        assert_equal(outputs.class_logits[level].squeeze(3).permute(0, 3, 1, 2), wanted[f"cls{level}"])
        assert_equal(outputs.box_raw[level].squeeze(3).permute(0, 3, 1, 2), wanted[f"box{level}"])


def test_gfls_detections_are_mmdets(gfl):
    detector, outputs, sizes, wanted, _ = gfl
    for number, found in enumerate(detector.detect(outputs, sizes)):
        assert torch.equal(found["labels"], wanted[f"det{number}_labels"])
        assert_equal(found["boxes"], wanted[f"det{number}_boxes"])
        assert_equal(found["scores"], wanted[f"det{number}_scores"])


def test_gfls_losses_are_mmdets(gfl):
    detector, outputs, _, wanted, losses = gfl
    truth = [{"boxes": wanted[f"gt{number}_boxes"], "labels": wanted[f"gt{number}_labels"]} for number in range(2)]
    found = detector.loss(outputs, truth, detector.assign(outputs, truth))
    names = {"classification": "loss_cls", "bbox_regression": "loss_bbox", "distribution": "loss_dfl"}
    for ours, theirs in names.items():
        assert found[ours].item() == pytest.approx(losses[theirs], rel=1e-4)


# --- RetinaNet and FCOS -----------------------------------------------------------------------------------------------

TORCHVISION_PIXELS = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
CAFFE_PIXELS = ([122.7717, 115.9465, 102.9801], [1.0, 1.0, 1.0])


@pytest.fixture(scope="module", params=["retinanet", "fcos"])
def mmdet(request, shared):
    """A detector with mmdet's weights, its batch, and what mmdet computes."""
    family = request.param
    folder = shared / "reference" / "mmdet" / family
    meta, wanted = json.loads((folder / "meta.json").read_text()), dict(np.load(folder / "outputs.npz"))
    mean, std = CAFFE_PIXELS if family == "fcos" else TORCHVISION_PIXELS
    detector = build_detector(
        f"{family}_resnet{meta['depth']}",
        meta["num_classes"],
        neck_channels=meta["fpn_channels"],
        width_mult=meta["base_channels"] / 64,
        norm="frozen",
        image_mean=[value / 255 for value in mean],
        image_std=[value / 255 for value in std],
        conventions="mmdet",
        settings={"style": "caffe", "groups": 32} if family == "fcos" else {},
    )
    weights = translate(read_foreign(folder / "checkpoint.pth").value["state_dict"], LAYOUTS[family])
    if family == "fcos":  # its images are blue, green, red
        weights["backbone.body.conv1.weight"] = weights["backbone.body.conv1.weight"].flip(1)
    detector.network.load_state_dict(weights)
    sizes = [tuple(size) for size in meta["image_sizes"]]
    batch = torch.full(wanted["input"].shape, 0.3)
    for image, (height, width) in enumerate(sizes):
        pixels = torch.from_numpy(wanted[f"image{image}"][..., ::-1].copy())
        batch[image, :, :height, :width] = pixels.permute(2, 0, 1) / 255
    return detector, batch, sizes, wanted, meta["losses"]


def agree(found: Tensor, wanted: np.ndarray) -> None:
    """Equal to 1e-4, relative to the size of the map's values."""
    wanted = torch.from_numpy(np.asarray(wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().mean().item())


@torch.no_grad()
def test_neck_and_head_compute_what_mmdet_computes(mmdet):
    detector, batch, sizes, wanted, _ = mmdet
    outputs = detector.eval()(batch, sizes)
    centerness = outputs.extra.get("centerness")
    for level, (height, width) in enumerate(outputs.level_sizes):
        agree(outputs.features[level], wanted[f"neck{level}"])
        agree(outputs.class_logits[level].flatten(3).permute(0, 3, 1, 2), wanted[f"cls{level}"])
        agree(outputs.box_raw[level].flatten(3).permute(0, 3, 1, 2), wanted[f"box{level}"])
        if centerness is not None:
            own, centerness = centerness.split([height * width, centerness.shape[1] - height * width], dim=1)
            agree(own.view(2, 1, height, width), wanted[f"extra{level}"])


@torch.no_grad()
def test_detections_are_mmdets(mmdet):
    detector, batch, sizes, wanted, _ = mmdet
    for image, found in enumerate(detector.eval().detect(detector(batch, sizes), sizes)):
        assert found["labels"].tolist() == wanted[f"det{image}_labels"].tolist()
        agree(found["scores"], wanted[f"det{image}_scores"])
        agree(found["boxes"], wanted[f"det{image}_boxes"])


def test_losses_are_mmdets(mmdet):
    detector, batch, sizes, wanted, losses = mmdet
    truth = [
        {name: torch.from_numpy(wanted[f"gt{image}_{name}"]) for name in ("boxes", "labels")} for image in range(2)
    ]
    outputs = detector.train()(batch, sizes)
    found = detector.loss(outputs, truth, detector.assign(outputs, truth))
    names = {"classification": "loss_cls", "bbox_regression": "loss_bbox", "bbox_ctrness": "loss_centerness"}
    assert {names[name]: value.item() for name, value in found.items()} == pytest.approx(losses, rel=1e-4)


# --- Faster R-CNN -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faster_rcnn(shared) -> SimpleNamespace:
    """What mmdet computes, and our network with its weights."""
    folder = shared / "reference/mmdet/faster_rcnn"
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "outputs.npz") as file:
        arrays = {name: torch.from_numpy(file[name].copy()) for name in file.files}
    detector = build_detector(
        f"faster_rcnn_resnet{meta['depth']}",
        meta["num_classes"],
        width_mult=meta["base_channels"] / 64,
        neck_channels=meta["fpn_channels"],
        norm="eval",
        conventions="mmdet",
        settings={"fc_channels": 64},
    )
    weights = translate(read_foreign(folder / "checkpoint.pth").value["state_dict"], LAYOUTS["faster_rcnn"])
    missing, unexpected = detector.network.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = [arrays[f"image{number}"].flip(-1).permute(2, 0, 1) / 255 for number in range(2)]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    batch = torch.zeros(arrays["input"].shape)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    truth = [{"boxes": arrays[f"gt{number}_boxes"], "labels": arrays[f"gt{number}_labels"]} for number in range(2)]
    losses = meta["losses"]
    return SimpleNamespace(
        detector=detector, arrays=arrays, images=images, sizes=sizes, batch=batch, truth=truth, losses=losses
    )


def test_faster_rcnns_record(faster_rcnn):
    with torch.no_grad():
        outputs = faster_rcnn.detector(faster_rcnn.batch, faster_rcnn.sizes)
    for level in range(5):
        found = {
            "neck": outputs.features[level],
            "cls": outputs.class_logits[level].squeeze(-1).permute(0, 3, 1, 2),
            "box": outputs.box_raw[level].permute(0, 3, 4, 1, 2).flatten(1, 2),
        }
        for name, value in found.items():
            torch.testing.assert_close(value, faster_rcnn.arrays[f"{name}{level}"], rtol=1e-4, atol=1e-5)


def test_faster_rcnns_detections(faster_rcnn):
    with torch.no_grad():
        outputs = faster_rcnn.detector(faster_rcnn.batch, faster_rcnn.sizes)
    found = faster_rcnn.detector.detect(outputs, faster_rcnn.sizes)
    for number, one in enumerate(found):
        wanted = {name: faster_rcnn.arrays[f"det{number}_{name}"] for name in ("boxes", "scores", "labels")}
        assert len(wanted["boxes"]) == 100
        torch.testing.assert_close(one["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one["scores"], wanted["scores"], rtol=1e-4, atol=1e-4)
        assert torch.equal(one["labels"], wanted["labels"])


def test_faster_rcnns_losses_under_the_same_seed(faster_rcnn):
    """Both stages draw at random; the same is drawn."""
    outputs = faster_rcnn.detector.train()(faster_rcnn.batch, faster_rcnn.sizes)
    torch.manual_seed(0)
    gt_index = faster_rcnn.detector.assign(outputs, faster_rcnn.truth)
    found = faster_rcnn.detector.loss(outputs, faster_rcnn.truth, gt_index)
    names = {"loss_rpn_cls": "loss_objectness", "loss_rpn_bbox": "loss_rpn_box_reg"}
    names |= {"loss_cls": "loss_classifier", "loss_bbox": "loss_box_reg"}
    for theirs, ours in names.items():
        assert float(found[ours].detach()) == pytest.approx(faster_rcnn.losses[theirs], rel=1e-4)
