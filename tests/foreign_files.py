"""Checkpoints as other libraries write them. The names are written from mmdet's side, independently of the package."""

import math
import os
import re
import zlib
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from understudy.checkpoints import import_checkpoint
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.networks import build_network

MMDET_LAYERS = {"retinanet": "retina", "gfl": "gfl", "fcos": "conv"}
"""How mmdet's names of a head's last layers begin."""

IMPROVED_FCOS = {"norm_on_bbox": True, "centerness_on_reg": True, "conv_bias": True}

CONFIG_3 = """
model = dict(
    backbone=dict(depth=18, style='{style}', type='ResNet', base_channels=8),
    bbox_head=dict(
        center_sampling=True, centerness_on_reg=True, conv_bias=True, norm_on_bbox=True,
        loss_bbox=dict(loss_weight=1.0, type='GIoULoss'), num_classes=3, type='FCOSHead',
        strides=[8, 16, 32, 64, 128]),
    data_preprocessor=dict(
        bgr_to_rgb=False, mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 4.0], type='mmdet.DetDataPreprocessor'),
    neck=dict(add_extra_convs='on_output', num_outs=5, relu_before_extra_convs=True, start_level=1, type='FPN'),
    test_cfg=dict(max_per_img=50, nms=dict(iou_threshold=0.6, type='nms'), nms_pre=500, score_thr=0.1),
    type='FCOS')
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(keep_ratio=True, scale=(640, 320), type='Resize')]))
"""
"""A config of mmdet 3.x for an improved FCOS, with ``style`` left open."""

CONFIG_2 = """
dataset_type = 'CocoDataset'
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(400, 300), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='Normalize', **img_norm_cfg)])]
model = dict(
    type='RetinaNet', pretrained='torchvision://resnet18',
    backbone=dict(type='ResNet', depth=18, style='pytorch'),
    neck=dict(type='FPN', start_level=1, add_extra_convs=True, extra_convs_on_inputs=False, num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=2,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=5, scales_per_octave=2,
            ratios=[0.5, 2.0], strides=[8, 16, 32, 64, 128])))
train_cfg = dict(assigner=dict(type='MaxIoUAssigner'))
test_cfg = dict(nms_pre=200, score_thr=0.02, nms=dict(type='nms', iou_thr=0.3), max_per_img=7)
"""
"""A config of mmdet 2.x for a RetinaNet."""


class Malicious:
    """An object that calls a function when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


HARMLESS = Malicious(os.system, "true")


def mmdet_name(key: str, family: str, levels: int) -> str:
    """Return mmdet's name of one of our parameters."""
    key = re.sub(r"^backbone\.body\.stem\.0\.", "backbone.conv1.", key)  # a RegNet's
    key = re.sub(r"^backbone\.body\.stem\.1\.", "backbone.bn1.", key)
    for number, letter in enumerate("abc", start=1):
        for place, kind in enumerate(("conv", "bn")):
            block = rf"^backbone\.body\.block(\d)\.block\1-(\d+)\.f\.{letter}\.{place}\."
            key = re.sub(block, rf"backbone.layer\1.\2.{kind}{number}.", key)
    key = re.sub(r"^backbone\.body\.block(\d)\.block\1-(\d+)\.proj\.", r"backbone.layer\1.\2.downsample.", key)
    key = re.sub(r"^backbone\.body\.", "backbone.", key)
    key = re.sub(r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv.", key)
    key = re.sub(r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv.", key)
    for number, name in enumerate(("p6", "p7")):
        key = key.replace(f"backbone.fpn.extra_blocks.{name}.", f"neck.fpn_convs.{levels + number}.conv.")
    if family == "faster_rcnn":
        for ours, theirs in (
            ("rpn.head.conv.0.0.", "rpn_head.rpn_conv."),
            ("rpn.head.cls_logits.", "rpn_head.rpn_cls."),
            ("rpn.head.bbox_pred.", "rpn_head.rpn_reg."),
            ("roi_heads.box_head.fc6.", "roi_head.bbox_head.shared_fcs.0."),
            ("roi_heads.box_head.fc7.", "roi_head.bbox_head.shared_fcs.1."),
            ("roi_heads.box_predictor.cls_score.", "roi_head.bbox_head.fc_cls."),
            ("roi_heads.box_predictor.bbox_pred.", "roi_head.bbox_head.fc_reg."),
        ):
            key = key.replace(ours, theirs)
        return key
    for ours, theirs in (("classification", "cls"), ("regression", "reg")):
        key = re.sub(rf"^head\.{ours}_head\.conv\.(\d)\.0\.", rf"bbox_head.{theirs}_convs.\1.conv.", key)
        key = re.sub(rf"^head\.{ours}_head\.conv\.(\d)\.1\.", rf"bbox_head.{theirs}_convs.\1.gn.", key)
    key = key.replace("head.classification_head.cls_logits.", f"bbox_head.{MMDET_LAYERS[family]}_cls.")
    key = key.replace("head.regression_head.bbox_reg.", f"bbox_head.{MMDET_LAYERS[family]}_reg.")
    return re.sub(r"^head\.\w+_head\.bbox_ctrness\.", "bbox_head.conv_centerness.", key)


def as_mmdet(network: nn.Module, family: str, bgr: bool = False) -> OrderedDict[str, Tensor]:
    """Return the state dict of one of our mmdet-style detectors as mmdet saves it."""
    levels = 4 if family == "faster_rcnn" else 3
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in network.state_dict().items():
        value = value.clone()
        if key == "backbone.body.conv1.weight" and bgr:
            value = value.flip(1)
        if key.endswith("regression_head.scales"):
            state |= {f"bbox_head.scales.{level}.scale": scale for level, scale in enumerate(value)}
            continue
        if ".box_predictor.cls_score." in key:
            value = torch.cat([value[1:], value[:1]])
        if ".box_predictor.bbox_pred." in key:
            value = value[4:]
        state[mmdet_name(key, family, levels)] = value
        if key.endswith("running_var"):
            state[mmdet_name(key, family, levels).replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    if family == "gfl":
        state["bbox_head.integral.project"] = torch.linspace(0, 16, 17)
    return state


def as_by_fcos_authors(network: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the state dict of an FCOS on a MobileNetV2 as its authors' repository saves it, in colours of BGR."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in network.state_dict().items():
        if key.endswith("regression_head.scales"):
            state |= {f"module.rpn.head.scales.{level}.scale": scale.view(1) for level, scale in enumerate(value)}
            continue
        key = re.sub(r"^backbone\.body\.0\.", "backbone.body.features.0.", key)
        for ours, theirs in (("0.0", 0), ("0.1", 1), ("1", 3), ("2", 4)):
            key = key.replace(f"backbone.body.1.conv.{ours}.", f"backbone.body.features.1.conv.{theirs}.")
        for ours, theirs in (("0.0", 0), ("0.1", 1), ("1.0", 3), ("1.1", 4), ("2", 6), ("3", 7)):
            block = rf"^backbone\.body\.(\d+)\.conv\.{re.escape(ours)}\."
            key = re.sub(block, rf"backbone.body.features.\1.conv.{theirs}.", key)
        for level in range(3):
            key = key.replace(f"fpn.inner_blocks.{level}.0.", f"fpn.fpn_inner{level + 2}.")
            key = key.replace(f"fpn.layer_blocks.{level}.0.", f"fpn.fpn_layer{level + 2}.")
        key = key.replace("fpn.extra_blocks.", "fpn.top_blocks.")
        for ours, theirs in (("classification", "cls"), ("regression", "bbox")):
            for convolution in range(4):
                for place in range(2):
                    tower = f"rpn.head.{theirs}_tower.{3 * convolution + place}."
                    key = key.replace(f"head.{ours}_head.conv.{convolution}.{place}.", tower)
        key = key.replace("head.classification_head.cls_logits.", "rpn.head.cls_logits.")
        key = key.replace("head.regression_head.bbox_reg.", "rpn.head.bbox_pred.")
        key = re.sub(r"^head\.\w+_head\.bbox_ctrness\.", "rpn.head.centerness.", key)
        state[f"module.{key}"] = value
    return state


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return values for a parameter that depend on its name alone, so that another library can be given the same."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return (2 * values - 1) * math.sqrt(6 / math.prod(shape[1:]))
    if name.endswith(("weight", "running_var", "scale")):
        return 0.8 + 0.4 * values
    return 0.2 * values - 0.1


def image_for_references() -> Tensor:
    """Return the image (1, 3, 96, 128) on which other libraries' numbers were computed."""
    return torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def plain(family: str, backbone: str = "resnet18", classes: int = 3, **options) -> Any:
    """Build a tiny detector in mmdet's conventions, with random frozen statistics and scales."""
    torch.manual_seed(3)
    settings = {"fc_channels": 16} if family == "faster_rcnn" else {"groups": 32}
    settings |= options.pop("settings", {})
    shape: dict[str, Any] = {"neck_channels": 32, "width_mult": 1 / 8, "norm": "frozen", "settings": settings} | options
    network: Any = build_network(f"{family}_{backbone}", classes, conventions="mmdet", **shape).eval()
    for name, value in network.state_dict().items():
        if "running_" in name or name.endswith("scales"):
            value.uniform_(0.8, 1.2)
    if family == "faster_rcnn":
        predictor = network.roi_heads.box_predictor.bbox_pred
        predictor.weight.data[:4] = predictor.bias.data[:4] = 0  # mmdet has no box for the background
    return network


@cache
def _plain_state(family: str) -> OrderedDict[str, Tensor]:
    return as_mmdet(plain(family), family)


def mmdet_state(family: str) -> OrderedDict[str, Tensor]:
    """Return a new copy of the weights of a tiny ResNet-18 detector with three classes, as mmdet saves them."""
    return OrderedDict((key, value.clone()) for key, value in _plain_state(family).items())


def torchvision_state(name: str, outputs: int) -> dict[str, Tensor]:
    """Return the state dict of one of torchvision's detectors, on the meta device."""
    with shapes_only():
        return get_model(name, weights=None, weights_backbone=None, num_classes=outputs).state_dict()


def save(folder: Path, state, meta=None, zipped: bool = True, **more) -> Path:
    """Write ``model.pth`` as mmdet does."""
    file = folder / "model.pth"
    content = {"meta": meta or {}, "state_dict": state, **more}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


def refusal(file: Path, folder: Path, **options: Any) -> str:
    """Import a file that must be refused; return the message."""
    output = folder / "refused.ckpt"
    options = {"classes": "a,b,c"} | options
    with pytest.raises(UserError) as error:
        import_checkpoint(file, output, **options)
    assert not output.exists()
    return str(error.value)
