"""Detectors of mmdet: sizes from tensors, settings from the config and from options, and refusals."""

import re
from typing import Any

import pytest
import torch
from foreign_files import (
    CONFIG_2,
    CONFIG_3,
    IMPROVED_FCOS,
    as_mmdet,
    filled,
    image_for_references,
    mmdet_state,
    plain,
    refusal,
    save,
)

from understudy.checkpoints import import_checkpoint

# --- sizes and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "backbone", "options", "zipped"),
    [
        ("retinanet", "resnet50", {"width_mult": 1 / 16}, True),
        ("retinanet", "resnet34", {"head_norm": "group", "neck_channels": 64}, False),
        ("fcos", "resnext50_8x16d", {"width_mult": 1 / 8}, True),
        ("gfl", "resnet101", {"width_mult": 1 / 16, "settings": {"reg_max": 7, "stacked_convs": 2}}, False),
        ("faster_rcnn", "resnext101_32x32d", {"width_mult": 1 / 16}, True),
    ],
)
def test_sizes_are_read_from_the_tensors(tmp_path, family, backbone, options, zipped):
    network = plain(family, backbone, classes=4, **options)
    file = save(tmp_path, as_mmdet(network, family), zipped=zipped)
    found = import_checkpoint(file, tmp_path / "out.ckpt", classes="a,b,c,d")
    build = found.meta["build"]
    assert build["name"] == f"{family}_{backbone}"
    assert build["width_mult"] == options.get("width_mult", 1 / 8)
    weights = found.detector.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert found.classes == ("a", "b", "c", "d")
    assert found.meta["category_ids"] == [1, 2, 3, 4]


FEATURES_ON_REGNETX_800MF = [949.961225, 1201.408367, 872.217089, 617.957283, 620.893034]
"""Mean absolute values of P3 to P7 in mmdet 3.3.0, for weights that depend on their names alone."""


def test_a_regnet_computes_mmdets_numbers(tmp_path):
    network = plain("retinanet", "regnet_x_800mf", width_mult=1.0, neck_channels=16)
    state = {name: filled(name, tuple(value.shape)) for name, value in as_mmdet(network, "retinanet").items()}
    found = import_checkpoint(save(tmp_path, state), tmp_path / "out.ckpt", classes="a,b,c")
    with torch.no_grad():
        features = found.detector(image_for_references()).features
    assert [float(level.double().abs().mean()) for level in features] == pytest.approx(
        FEATURES_ON_REGNETX_800MF, rel=1e-4
    )
    build = found.meta["build"]
    assert build["name"] == "retinanet_regnet_x_800mf"
    assert build["image_std"] == pytest.approx([58.395 / 255, 57.12 / 255, 57.375 / 255])  # red first
    assert not any("stride" in each for each in found.meta["imported"]["assumptions"])


def test_a_regnet_that_torchvision_does_not_have_is_refused(tmp_path):
    """The RegNetX-400MF of mmdet has 384 channels in its last stage, torchvision's has 400."""
    state = as_mmdet(plain("retinanet", "regnet_x_800mf", width_mult=1.0, neck_channels=16), "retinanet")
    state["backbone.layer4.0.conv3.weight"] = state["backbone.layer4.0.conv3.weight"][:640]
    message = refusal(save(tmp_path, state), tmp_path)
    assert "The RegNet of 1, 3, 7, 5 blocks and 64, 128, 288, 640 channels in its four stages" in message
    assert "expected one of regnet_x_400mf, regnet_x_800mf" in message


def test_settings_are_read_from_a_config_of_3x(tmp_path):
    network = plain("fcos", settings=IMPROVED_FCOS)
    meta = {"cfg": CONFIG_3.format(style="caffe"), "dataset_meta": {"classes": ["x", "y", "z"]}, "mmdet_version": "3.1"}
    found = import_checkpoint(save(tmp_path, as_mmdet(network, "fcos", bgr=True), meta), tmp_path / "out.ckpt")
    build = found.meta["build"]
    assert found.meta["imported"]["assumptions"] == []
    assert found.meta["imported"]["source"] == "mmdet 3.1"
    assert found.classes == ("x", "y", "z")
    expected = IMPROVED_FCOS | {"center_sampling": True, "box_loss": "giou", "score_threshold": 0.1}
    expected |= {"nms_threshold": 0.6, "detections": 50, "candidates": 500, "extra_levels": "on_output"}
    expected |= {"extra_relu": True}
    assert {name: build["settings"][name] for name in expected} == expected
    assert build["image_mean"] == pytest.approx([30 / 255, 20 / 255, 10 / 255])  # blue was first
    assert build["image_std"] == pytest.approx([4 / 255, 2 / 255, 1 / 255])
    assert (build["shorter_side"], build["longer_side"]) == (320, 640)
    weights = found.detector.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_settings_are_read_from_a_config_of_2x(tmp_path):
    network = plain("retinanet", classes=2, settings={"extra_levels": "on_output", "octaves": 2, "ratios": [0.5, 2.0]})
    meta = {"config": CONFIG_2, "CLASSES": ("x", "y"), "mmdet_version": "2.4.0"}
    found = import_checkpoint(save(tmp_path, as_mmdet(network, "retinanet"), meta, False), tmp_path / "out.ckpt")
    build = found.meta["build"]
    assert found.meta["imported"]["assumptions"] == []
    expected: dict[str, Any] = {
        "extra_levels": "on_output",
        "extra_relu": False,
        "octaves": 2,
        "ratios": [0.5, 2.0],
        "detections": 7,
        "score_threshold": 0.02,
        "nms_threshold": 0.3,
        "candidates": 200,
    }
    assert {name: build["settings"][name] for name in expected} == expected
    assert build["anchor_scale"] == 5
    assert build["image_mean"] == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert (build["shorter_side"], build["longer_side"]) == (300, 400)


def test_options_replace_assumptions(tmp_path):
    network = plain("fcos", "resnet50", width_mult=1 / 16)
    found = import_checkpoint(
        save(tmp_path, as_mmdet(network, "fcos")),
        tmp_path / "out.ckpt",
        classes=["a", "b", "c"],
        style="pytorch",
        mean=(51, 102, 153),
        std=(51, 51, 51),
        settings={"norm_on_bbox": True, "shorter_side": 200, "nms_threshold": 0.4},
    )
    build = found.meta["build"]
    assert build["settings"]["norm_on_bbox"]
    assert build["settings"]["style"] == "pytorch"
    assert build["settings"]["nms_threshold"] == 0.4
    assert build["image_mean"] == pytest.approx([0.2, 0.4, 0.6])
    assert build["shorter_side"] == 200
    assumptions = "\n".join(found.meta["imported"]["assumptions"])
    assert "longer_side" in assumptions
    assert "center_sampling is false (--set center_sampling=...)" in assumptions
    assert not re.search("norm_on_bbox|shorter_side|mean|nms_threshold|bottleneck", assumptions)


def test_an_early_fcos_without_config_is_caffe_style_and_takes_blue_first(tmp_path):
    network = plain("fcos", "resnet50", width_mult=1 / 16)
    state = as_mmdet(network, "fcos", bgr=True)
    early = {key.replace("bbox_head.conv_", "bbox_head.fcos_"): value for key, value in state.items()}
    assert early.keys() != state.keys()
    found = import_checkpoint(save(tmp_path, early), tmp_path / "out.ckpt", classes="a,b,c")
    assert found.meta["build"]["settings"]["style"] == "caffe"
    assert found.meta["build"]["image_mean"] == pytest.approx([122.7717 / 255, 115.9465 / 255, 102.9801 / 255])
    weights = found.detector.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_towers_with_biases_are_those_of_the_improved_fcos(tmp_path):
    network = plain("fcos", settings={"conv_bias": True, "centerness_on_reg": True})
    found = import_checkpoint(save(tmp_path, as_mmdet(network, "fcos")), tmp_path / "out.ckpt", classes="a,b,c")
    assert found.meta["build"]["settings"]["norm_on_bbox"]
    assert "norm_on_bbox is true (--set norm_on_bbox=...)" in found.meta["imported"]["assumptions"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("roi_head.mask_head.conv_logits.weight", "it has a mask head"),
        ("backbone.stem.0.weight", "it has a ResNet with a deep stem"),
        ("backbone.layer2.0.conv2_offset.weight", "it has deformable convolutions"),
        ("backbone.stage2.0.branches.0.0.conv1.weight", "it has an HRNet"),
        ("bbox_head.atss_cls.weight", "it has an ATSS head"),
    ],
)
def test_parts_of_other_detectors_are_named(tmp_path, extra, message):
    state = mmdet_state("faster_rcnn") | {extra: torch.ones(1)}
    text = refusal(save(tmp_path, state, {"cfg": "model = dict(type='SomethingElse')"}), tmp_path)
    assert message in text
    assert "its config has model.type = SomethingElse" in text
    assert "supported: RetinaNet, FCOS, GFL, Faster R-CNN of mmdet 2.x and 3.x, on a ResNet, ResNeXt or RegNetX" in text


def test_a_detector_of_another_kind_is_described(tmp_path):
    detr = {"backbone.conv1.weight": torch.ones(1), "bbox_head.fc_cls.weight": torch.ones(1)}
    detr |= {"neck.convs.0.conv.weight": torch.ones(1), "query_embedding.weight": torch.ones(1)}
    text = refusal(save(tmp_path, detr), tmp_path)
    assert "it has a transformer (DETR)" in text
    assert "query_embedding.weight" in text


def test_tensors_that_disagree_with_the_config(tmp_path):
    state = as_mmdet(plain("fcos", settings=IMPROVED_FCOS), "fcos")
    text = CONFIG_3.format(style="odd").replace("depth=18", "depth=34").replace("num_classes=3", "num_classes=80")
    text = text.replace("num_outs=5", "num_outs=6").replace("score_thr=0.1", "score_thr='high'")
    meta = {"cfg": text, "dataset_meta": {"classes": ("a", "b")}}
    message = refusal(save(tmp_path, state, meta), tmp_path, classes=None)
    for fault in (
        "This FCOS of mmdet cannot be imported:",
        "its config has model.backbone.depth = 34, its tensors 18",
        "its config has model.bbox_head.num_classes = 80, its tensors 3",
        "its config has model.neck.num_outs = 6; supported: 5",
        "score_threshold: expected a value like 0.05, got 'high' (from --set or model.test_cfg.score_thr)",
        "--style: expected caffe or pytorch, got 'odd'",
        "the file has names of 2 classes, its tensors have 3",
    ):
        assert fault in message


def test_classes_must_be_given_and_fit(tmp_path):
    file = save(tmp_path, mmdet_state("retinanet"))
    message = refusal(file, tmp_path, classes=None)
    assert "the file does not contain the names of its 3 classes: add --classes cat,dog,... or" in message
    assert "--classes has 80 classes, its tensors have 3" in refusal(file, tmp_path, classes="coco")
    large = save(tmp_path, as_mmdet(plain("retinanet", classes=80), "retinanet"))
    assert "--classes coco (its 80 classes)" in refusal(large, tmp_path, classes=None)
    assert import_checkpoint(large, tmp_path / "coco.ckpt", classes="coco").meta["category_ids"][-1] == 90


def test_the_number_of_anchors_must_fit(tmp_path):
    file = save(tmp_path, as_mmdet(plain("retinanet", settings={"octaves": 1}), "retinanet"))
    message = refusal(file, tmp_path)
    assert "its head has 3 anchors per cell, but 3 ratios in 3 sizes are 9: set the ratios and octaves" in message
    assert import_checkpoint(file, tmp_path / "out.ckpt", classes="a,b,c", settings={"octaves": 1})


def test_options_that_do_not_fit_the_file(tmp_path):
    file = save(tmp_path, mmdet_state("gfl"))
    message = refusal(file, tmp_path, settings={"norm_on_bbox": True, "nms_threshold": "x", "shorter_side": -1})
    assert "--set norm_on_bbox: GFL of mmdet has no such setting; available: anchor_scale" in message
    assert "nms_threshold: expected a value like 0.6, got 'x'" in message
    assert "--set shorter_side: expected pixels, got -1" in message
    assert "--architecture: expected one of retinanet, fcos," in refusal(file, tmp_path, architecture="yolo")


@pytest.mark.parametrize("nms", ["soft_nms", "SoftNMS"])
def test_soft_nms_of_a_one_stage_detector_is_replaced_and_said(tmp_path, nms):
    text = CONFIG_3.format(style="pytorch").replace("type='nms'", f"type={nms!r}")
    meta = {"cfg": text, "dataset_meta": {"classes": ("a", "b", "c")}}
    state = as_mmdet(plain("fcos", settings=IMPROVED_FCOS), "fcos")
    found = import_checkpoint(save(tmp_path, state, meta), tmp_path / "out.ckpt")
    assert f"{nms} is replaced by ordinary NMS (--set nms_threshold=VALUE)" in found.meta["imported"]["assumptions"]
