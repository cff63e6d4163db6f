"""Imported detectors compute what mmdet 3.3.0 computes: features, predictions, detections and losses.

The references in ``mmdet_references/`` are outputs of mmdet itself; the README there says how they were made.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import understudy

REFERENCES = Path(__file__).with_name("mmdet_references")
TOLERANCE = 1e-4
"""Relative; of a map, to the mean size of its values."""

LOSS_NAMES = {  # of mmdet, and ours
    "retinanet": {"loss_cls": "classification", "loss_bbox": "bbox_regression"},
    "fcos": {"loss_cls": "classification", "loss_bbox": "bbox_regression", "loss_centerness": "bbox_ctrness"},
    "gfl": {"loss_cls": "classification", "loss_bbox": "bbox_regression", "loss_dfl": "distribution"},
    "faster_rcnn": {
        "loss_rpn_cls": "loss_objectness",
        "loss_rpn_bbox": "loss_rpn_box_reg",
        "loss_cls": "loss_classifier",
        "loss_bbox": "loss_box_reg",
    },
}


@pytest.fixture(scope="module", params=LOSS_NAMES)
def reference(request, tmp_path_factory) -> SimpleNamespace:
    """An imported detector, the batch of two images, and what mmdet computes for it."""
    folder = REFERENCES / request.param
    imported = understudy.import_checkpoint(
        folder / "checkpoint.pth", tmp_path_factory.mktemp(request.param) / "imported.ckpt"
    )
    checkpoint = understudy.load_checkpoint(imported.path)
    with np.load(folder / "outputs.npz") as file:
        wanted = {name: torch.from_numpy(file[name]) for name in file.files}
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    sizes = [tuple(size) for size in meta["image_sizes"]]
    batch = torch.full((2, 3, *(-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))), 0.3)
    for number, (height, width) in enumerate(sizes):  # mmdet's images are blue, green, red
        batch[number, :, :height, :width] = wanted[f"image{number}"].flip(-1).permute(2, 0, 1) / 255
    return SimpleNamespace(
        family=request.param, checkpoint=checkpoint, batch=batch, sizes=sizes, wanted=wanted, meta=meta
    )


def agree(found: Tensor, wanted: Tensor, what: str) -> None:
    size = wanted.abs().mean().item()
    torch.testing.assert_close(
        found, wanted, rtol=TOLERANCE, atol=TOLERANCE * size, msg=lambda message: f"{what}: {message}"
    )


def maps_of(outputs) -> Iterator[tuple[str, Tensor]]:
    """Every map of a record as (N, C, H, W), by the names that the references have."""
    first = 4 - len(outputs.stages)
    for number, stage in enumerate(outputs.stages):
        yield f"backbone{first + number}", stage
    centerness = outputs.extra.get("centerness")
    for level, feature in enumerate(outputs.features):
        yield f"neck{level}", feature
        yield f"cls{level}", outputs.class_logits[level].flatten(3).permute(0, 3, 1, 2)
        yield f"box{level}", outputs.box_raw[level].flatten(3).permute(0, 3, 1, 2)
        if centerness is not None:
            cells = feature.shape[-2:].numel()
            yield f"extra{level}", centerness[:, :cells].unflatten(1, (1, *feature.shape[-2:]))
            centerness = centerness[:, cells:]


def test_the_file_says_everything(reference):
    imported = reference.checkpoint.meta["imported"]
    assert imported["assumptions"] == imported["faults"] == []
    assert "mmengine.logging.history_buffer.HistoryBuffer" in imported["skipped"]
    assert list(reference.checkpoint.classes) == reference.meta["classes"]


@torch.no_grad()
def test_backbone_neck_and_head(reference):
    outputs = reference.checkpoint.detector.eval()(reference.batch, reference.sizes)
    compared = set()
    for name, found in maps_of(outputs):
        coarsened = name in reference.meta["coarsened"]
        agree(found[..., ::4, ::4] if coarsened else found, reference.wanted[name], name)
        compared.add(name)
    assert compared == {name for name, value in reference.wanted.items() if value.ndim == 4}


@torch.no_grad()
def test_detections(reference):
    detector = reference.checkpoint.detector.eval()
    found = detector.detect(detector(reference.batch, reference.sizes), reference.sizes)
    for number, detections in enumerate(found):
        wanted = {name: reference.wanted[f"det{number}_{name}"] for name in ("boxes", "scores", "labels")}
        assert len(wanted["labels"]) >= 10
        assert detections["labels"].tolist() == wanted["labels"].tolist()
        agree(detections["scores"], wanted["scores"], f"scores of image {number}")
        agree(detections["boxes"], wanted["boxes"], f"boxes of image {number}")


@pytest.mark.parametrize("objects", ["in both images", "in the first image alone"])
def test_losses(reference, objects):
    detector = reference.checkpoint.detector.train()
    targets = [{name: reference.wanted[f"gt{number}_{name}"] for name in ("boxes", "labels")} for number in range(2)]
    wanted = reference.meta["losses"]
    if objects == "in the first image alone":
        targets[1] = {name: value[:0] for name, value in targets[1].items()}
        wanted = reference.meta["losses_where_image_1_is_empty"]
    outputs = detector(reference.batch, reference.sizes)
    gt_index = detector.assign(outputs, targets)
    torch.manual_seed(0)  # as before mmdet's: the samplers of Faster R-CNN draw the same
    found = detector.loss(outputs, targets, gt_index)
    names = LOSS_NAMES[reference.family]
    assert set(found) == set(names.values())
    assert {name: found[ours].item() for name, ours in names.items()} == pytest.approx(wanted, rel=TOLERANCE)
