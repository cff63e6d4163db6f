"""Checkpoints of other libraries: read without executing anything, and computing the same numbers."""

import builtins
import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

import understudy
from understudy.checkpoints import load_checkpoint
from understudy.checkpoints.foreign import Choices, coco_categories, torchvision_categories
from understudy.checkpoints.importing import import_checkpoint
from understudy.checkpoints.mmdet_config import look_up, parse_config
from understudy.checkpoints.mmdet_keys import UNKNOWN, translate
from understudy.checkpoints.published import from_torchvision
from understudy.checkpoints.unpickle import read_foreign
from understudy.cli import main
from understudy.detectors import FAMILIES
from understudy.detectors.plain import PUBLISHED, build_network
from understudy.errors import UserError

LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])

# --- a detector as mmdet would save it: names written from mmdet's side, independently of the package's table ---------

LAYERS = {"retinanet": "retina", "gfl": "gfl", "fcos": "conv"}


def mmdet_name(key: str, family: str, levels: int) -> str:
    """What mmdet calls one of our parameters."""
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
    key = key.replace("head.classification_head.cls_logits.", f"bbox_head.{LAYERS[family]}_cls.")
    key = key.replace("head.regression_head.bbox_reg.", f"bbox_head.{LAYERS[family]}_reg.")
    return re.sub(r"^head\.\w+_head\.bbox_ctrness\.", "bbox_head.conv_centerness.", key)


def as_mmdet(network: nn.Module, family: str, bgr: bool = False) -> "OrderedDict[str, torch.Tensor]":
    """The state dict of one of our mmdet-style detectors as mmdet would save it."""
    levels = 4 if family == "faster_rcnn" else 3
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
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


def plain(family: str, backbone: str = "resnet18", classes: int = 3, **options) -> Any:
    """A tiny detector with mmdet's conventions, whose frozen statistics and scales are not the identity."""
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


def save(folder: Path, state, meta=None, zipped: bool = True, **more) -> Path:
    """A checkpoint as mmdet saves it."""
    file = folder / "model.pth"
    content = {"meta": meta or {}, "state_dict": state, **more}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


def records(detector, size: tuple[int, int] = (64, 96)) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = detector(torch.rand(1, 3, *size))
    return [*outputs.features, *outputs.class_logits, *outputs.box_raw, *outputs.anchors, *outputs.extra.values()]


# --- nothing is executed ----------------------------------------------------------------------------------------------


class Malicious:
    """Calls a function when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def attacks(proof: Path) -> list[Malicious]:
    return [
        Malicious(os.system, f"touch {proof}"),
        Malicious(builtins.exec, f"open({str(proof)!r}, 'w').close()"),
        Malicious(builtins.eval, f"open({str(proof)!r}, 'w').close()"),
    ]


@LEGACY
@pytest.mark.parametrize("where", ["top", "message_hub", "meta", "state_dict"])
@pytest.mark.parametrize("number", range(3))
def test_a_malicious_pickle_runs_nothing(tmp_path, zipped, where, number):
    proof = tmp_path / "proof"
    attack = attacks(proof)[number]
    state = {"weight": torch.ones(2)}
    content = {
        "top": attack,
        "message_hub": {"meta": {}, "state_dict": state, "message_hub": {"runtime_info": [{"deep": [attack]}]}},
        "meta": {"meta": attack, "state_dict": state},
        "state_dict": {"state_dict": {**state, "evil": attack}},
    }[where]
    file = tmp_path / "evil.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)

    skipped = read_foreign(file).skipped
    with pytest.raises(UserError):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert not proof.exists()
    assert skipped == (["posix.system", "__builtin__.exec", "__builtin__.eval"][number],)

    torch.load(file, weights_only=False)  # the attack itself works
    assert proof.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_plain_malicious_pickle_runs_nothing(tmp_path, protocol):
    proof = tmp_path / "proof"
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps(attacks(proof)[0], protocol=protocol))
    with pytest.raises(UserError, match="plain pickle" if protocol else "text file"):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert not proof.exists()
    pickle.loads(file.read_bytes())
    assert proof.exists()


def archive(file: Path, program: bytes, **members: bytes) -> Path:
    """A file of ``torch.save`` whose pickle is written by hand."""
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", program)
        for name, content in members.items():
            made.writestr(f"archive/data/{name}", content)
    return file


@pytest.mark.parametrize(
    "program",
    [
        # protocol 4: a global by two strings, whose name has dots, of a module that is otherwise known
        b"\x80\x04\x8c\x0bcollections\x8c\x23OrderedDict.__init__.__globals__.get\x93\x8c\x01x\x85R.",
        b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93)R.",
        # an attribute set on a global; on a stand-in for a function; on a class
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x0c__defaults__Nsb.",
        b"\x80\x04ccollections\nOrderedDict\n}\x8c\x08__init__Nsb.",
        b"\x80\x04cbuiltins\ngetattr\n}\x8c\x08__call__Nsb.",
        # an instance made by the opcodes for classes
        b"\x80\x02(S'x'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\nS'x'\n\x85\x81.",
        b"\x80\x02(cos\nsystem\nS'x'\no.",
    ],
)
def test_handwritten_pickles_reach_nothing(tmp_path, program, monkeypatch):
    def forbidden(*_):
        raise SystemExit("something was called")

    monkeypatch.setattr(os, "system", forbidden)
    rebuild, ordered = torch._utils._rebuild_tensor_v2.__defaults__, OrderedDict.__init__
    file = archive(tmp_path / "evil.pth", program)
    with pytest.raises(UserError):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == rebuild
    assert OrderedDict.__init__ is ordered
    # and what stands for these names is as it was
    torch.save({"state_dict": OrderedDict(a=torch.ones(2))}, tmp_path / "good.pth")
    assert torch.equal(read_foreign(tmp_path / "good.pth").value["state_dict"]["a"], torch.ones(2))


def test_a_tensor_larger_than_the_file_is_refused(tmp_path):
    def tensor(size: int, stride: int) -> bytes:
        storage = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x02tQ"
        return (
            b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + b"K\x00J"
            + struct.pack("<i", size)
            + b"\x85K"
            + bytes([stride])
            + b"\x85\x89}tR."
        )

    good = archive(tmp_path / "good.pth", tensor(2, 1), **{"0": struct.pack("<2f", 1, 2)})
    assert read_foreign(good).value.tolist() == [1, 2]
    for size, stride in ((2_000_000_000, 0), (3, 1), (-1, 1)):
        file = archive(tmp_path / "bad.pth", tensor(size, stride), **{"0": struct.pack("<2f", 1, 2)})
        with pytest.raises(UserError, match="damaged"):
            read_foreign(file)


@LEGACY
def test_tensors_are_read_as_torch_reads_them(tmp_path, zipped):
    whole = torch.arange(24.0).reshape(4, 6)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    content = {
        "state_dict": OrderedDict(whole=whole, view=whole[1:3, ::2].T, none=torch.zeros(0, 3), one=torch.tensor(5)),
        "dtypes": [whole.to(dtype) for dtype in dtypes],
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": (1, 2.5, "text", None, True, {"set"}, torch.Size([2, 3])),
    }
    file = tmp_path / "file.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found, expected = read_foreign(file), torch.load(file, weights_only=False)
    assert found.skipped == ()
    assert found.value["plain"] == expected["plain"]
    pairs = [(found.value["state_dict"][key], value) for key, value in expected["state_dict"].items()]
    pairs += zip(found.value["dtypes"], expected["dtypes"], strict=True)
    for ours, theirs in [*pairs, (found.value["parameter"], expected["parameter"])]:
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)


def test_objects_of_other_libraries_are_skipped_by_name(tmp_path, shared):
    content = read_foreign(shared / "reference/mmdet/gfl/checkpoint.pth")
    assert "mmengine.logging.history_buffer.HistoryBuffer" in content.skipped
    assert content.value["meta"]["mmdet_version"] == "3.3.0"


# --- the config -------------------------------------------------------------------------------------------------------


def test_a_config_is_parsed_and_not_executed(tmp_path):
    proof = tmp_path / "proof"
    config = parse_config(
        "import os\n"
        f"os.system('touch {proof}')\n"
        f"evil = open({str(proof)!r}, 'w')\n"
        "scale = (1333, 800)\n"
        "steps = [dict(type='Resize', scale=scale), dict(type='Flip')]\n"
        "model = dict(\n"
        "    type='GFL', bad=float('1'), numbers=[-1, 1e8], nested={'a': None, 'b': True}, **other)\n"
        "value = [1, unknown]\n"
    )
    assert not proof.exists()
    assert config == {
        "scale": (1333, 800),
        "steps": [{"type": "Resize", "scale": (1333, 800)}, {"type": "Flip"}],
        "model": {"type": "GFL", "numbers": [-1, 1e8], "nested": {"a": None, "b": True}},
    }
    assert look_up(config, "model.nested.b") is True
    assert look_up(config, "model.type.b", 3) == 3


@pytest.mark.parametrize("text", ["a = (", "(" * 5000, 5, None, "a\0b", b"a = 1"])
def test_what_is_no_config_is_unknown(text):
    assert parse_config(text) is None


# --- mmdet: names, sizes, settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_translation_is_the_inverse_of_mmdets_names(family):
    network = plain(family)
    expected = network.state_dict()
    found = translate(as_mmdet(network, family), family)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_unknown_keys_keep_their_names():
    assert list(translate({"bbox_head.novel.weight": torch.ones(1)}, "gfl")) == [UNKNOWN + "bbox_head.novel.weight"]


def test_one_box_for_all_classes_is_given_to_each():
    state = {"roi_head.bbox_head.fc_cls.bias": torch.arange(4.0), "roi_head.bbox_head.fc_reg.bias": torch.arange(4.0)}
    found = translate(state, "faster_rcnn")
    assert found["roi_heads.box_predictor.cls_score.bias"].tolist() == [3, 0, 1, 2]
    assert found["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + [0, 1, 2, 3] * 3


@pytest.mark.parametrize(
    ("family", "backbone", "options"),
    [
        ("retinanet", "resnet50", {"width_mult": 1 / 16}),
        ("retinanet", "resnet34", {"head_norm": "group", "neck_channels": 64}),
        ("fcos", "resnext50_8x16d", {"width_mult": 1 / 8}),
        ("gfl", "resnet101", {"width_mult": 1 / 16, "settings": {"reg_max": 7, "stacked_convs": 2}}),
        ("faster_rcnn", "resnext101_32x32d", {"width_mult": 1 / 16}),
    ],
)
@LEGACY
def test_sizes_are_read_from_the_tensors(tmp_path, family, backbone, options, zipped):
    network = plain(family, backbone, classes=4, **options)
    file = save(tmp_path, as_mmdet(network, family, bgr=family == "fcos" and "resnext" not in backbone), zipped=zipped)
    found = import_checkpoint(file, tmp_path / "out.ckpt", classes="a,b,c,d")
    build = found.meta["build"]
    assert build["name"] == f"{family}_{backbone}"
    assert build["width_mult"] == options.get("width_mult", 1 / 8)
    weights = found.detector.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert found.classes == ("a", "b", "c", "d")
    assert found.meta["category_ids"] == [1, 2, 3, 4]


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


def test_a_config_of_3x_says_the_rest(tmp_path):
    variant = {"norm_on_bbox": True, "centerness_on_reg": True, "conv_bias": True}
    network = plain("fcos", settings=variant)
    meta = {"cfg": CONFIG_3.format(style="caffe"), "dataset_meta": {"classes": ["x", "y", "z"]}, "mmdet_version": "3.1"}
    found = import_checkpoint(save(tmp_path, as_mmdet(network, "fcos", bgr=True), meta), tmp_path / "out.ckpt")
    build = found.meta["build"]
    assert found.meta["imported"]["assumptions"] == []
    assert found.meta["imported"]["source"] == "mmdet 3.1"
    assert found.classes == ("x", "y", "z")
    expected = variant | {"center_sampling": True, "box_loss": "giou", "score_threshold": 0.1, "nms_threshold": 0.6}
    expected |= {"detections": 50, "candidates": 500, "extra_levels": "on_output", "extra_relu": True}
    assert {name: build["settings"][name] for name in expected} == expected
    assert build["image_mean"] == pytest.approx([30 / 255, 20 / 255, 10 / 255])  # blue was first
    assert build["image_std"] == pytest.approx([4 / 255, 2 / 255, 1 / 255])
    assert (build["shorter_side"], build["longer_side"]) == (320, 640)
    weights = found.detector.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


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


def test_a_config_of_2x_says_the_rest(tmp_path):
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
    }
    expected |= {"score_threshold": 0.02, "nms_threshold": 0.3, "candidates": 200}
    assert {name: build["settings"][name] for name in expected} == expected
    assert build["anchor_scale"] == 5
    assert build["image_mean"] == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert (build["shorter_side"], build["longer_side"]) == (300, 400)


def test_flags_say_what_the_file_does_not(tmp_path):
    network = plain("fcos", "resnet50", width_mult=1 / 16)
    file = save(tmp_path, as_mmdet(network, "fcos"))
    found = import_checkpoint(
        file,
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
    said = "\n".join(found.meta["imported"]["assumptions"])
    assert "longer_side" in said
    assert "center_sampling is false (--set center_sampling=...)" in said
    assert not re.search("norm_on_bbox|shorter_side|mean|nms_threshold|bottleneck", said)


def test_towers_with_biases_are_taken_for_the_improved_fcos(tmp_path):
    network = plain("fcos", settings={"conv_bias": True, "centerness_on_reg": True})
    found = import_checkpoint(save(tmp_path, as_mmdet(network, "fcos")), tmp_path / "out.ckpt", classes="a,b,c")
    assert found.meta["build"]["settings"]["norm_on_bbox"]
    assert "norm_on_bbox is true (--set norm_on_bbox=...)" in found.meta["imported"]["assumptions"]


# --- mmdet: the same numbers ------------------------------------------------------------------------------------------


def assert_close(ours, theirs, what: str) -> None:
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert ours.shape == theirs.shape, what
    if theirs.size:
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), what


@pytest.mark.parametrize("family", FAMILIES)
def test_references_of_mmdet(tmp_path, shared, family):
    folder = shared / "reference" / "mmdet" / family
    found = import_checkpoint(folder / "checkpoint.pth", tmp_path / "out.ckpt")
    assert found.classes == tuple(f"class_{number}" for number in range(5))
    reference = np.load(folder / "outputs.npz")
    photos = [reference["image0"], reference["image1"]]
    batch = torch.zeros(2, 3, *reference["input"].shape[-2:])
    for image, photo in zip(batch, photos, strict=True):  # theirs are BGR
        image[:, : photo.shape[0], : photo.shape[1]] = torch.from_numpy(photo[..., ::-1] / 255).permute(2, 0, 1)
    sizes = [photo.shape[:2] for photo in photos]
    with torch.no_grad():
        outputs = found.detector(batch, sizes)
        detections = found.detector.detect(outputs, sizes)
    for level, feature in enumerate(outputs.features):
        assert_close(feature, reference[f"neck{level}"], f"neck {level}")
        for name, raw in (("cls", outputs.class_logits[level]), ("box", outputs.box_raw[level])):
            assert_close(raw.flatten(3).permute(0, 3, 1, 2), reference[f"{name}{level}"], f"{name} {level}")
    if family == "fcos":
        expected = [reference[f"extra{level}"].reshape(2, -1) for level in range(5)]
        assert_close(outputs.extra["centerness"], np.concatenate(expected, axis=1), "centre-ness")
    for number, one in enumerate(detections):
        for name in ("boxes", "scores"):
            assert_close(one[name], reference[f"det{number}_{name}"], f"{name} of image {number}")
        assert one["labels"].tolist() == reference[f"det{number}_labels"].tolist()


# --- torchvision ------------------------------------------------------------------------------------------------------


def published_state(name: str, outputs: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return get_model(name, weights=None, weights_backbone=None, num_classes=outputs).state_dict()


@pytest.mark.parametrize("name", [name.removeprefix("torchvision/") for name in PUBLISHED])
@pytest.mark.parametrize("outputs", [91, 4])
def test_torchvisions_detectors_are_recognised(name, outputs):
    two_stages = name.startswith("fasterrcnn")
    choices = Choices() if outputs == 91 else Choices(classes=("a", "b", "c") if two_stages else ("a", "b", "c", "d"))
    found = from_torchvision(published_state(name, outputs), choices, f"{name}_coco-0123abcd.pth")
    assert found.build["name"] == f"torchvision/{name}"
    if outputs == 91 and two_stages:
        assert len(found.classes) == 90
        assert found.classes[:2] == ("person", "bicycle")
        assert found.classes[11] == "n/a 12"
        assert found.category_ids == tuple(range(1, 91))
    elif outputs == 91:
        assert found.classes == tuple(coco_categories().values())
        assert found.category_ids == tuple(coco_categories())
    with torch.device("meta"):
        expected = build_network(**found.build).state_dict()
    assert {key: value.shape for key, value in expected.items()} == {
        key: value.shape for key, value in found.weights.items() if key in expected
    }
    assert all(key.endswith("num_batches_tracked") for key in found.weights.keys() - expected.keys())


def test_published_retinanet_computes_what_torchvision_computes(tmp_path):
    torch.manual_seed(0)
    name = "retinanet_resnet50_fpn"
    theirs: Any = get_model(name, weights=None, weights_backbone=None, num_classes=91).eval()
    nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.05)
    file = tmp_path / "retinanet.pth"
    torch.save(theirs.state_dict(), file, _use_new_zipfile_serialization=False)  # as the published ones
    found = import_checkpoint(file, tmp_path / "out.ckpt", settings={"norm_eps": 1e-5})
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = list(theirs.backbone(theirs.transform.normalize(images)).values())
        logits = theirs.head(features)["cls_logits"].unflatten(-1, (91,))
        outputs = found.detector(images)
    real = [number for number, name in enumerate(torchvision_categories()) if name not in ("__background__", "N/A")]
    ours = torch.cat([level.flatten(1, 3) for level in outputs.class_logits], dim=1)
    assert len(real) == 80
    torch.testing.assert_close(ours, logits[..., real], rtol=1e-4, atol=1e-5)
    assert found.classes == tuple(coco_categories().values())


def test_published_faster_rcnn_computes_what_torchvision_computes(tmp_path):
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


# --- using what was imported ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(scenes, tmp_path_factory) -> Path:
    """An imported FCOS that knows the classes of the drawn scenes."""
    folder = tmp_path_factory.mktemp("imported")
    classes = understudy.open_data(scenes).classes
    file = save(folder, as_mmdet(plain("fcos", classes=len(classes), neck_channels=64), "fcos", bgr=True))
    settings = {"shorter_side": 64, "longer_side": 64}
    return import_checkpoint(file, folder / "teacher.ckpt", classes=classes, settings=settings).path


def test_an_imported_detector_is_used_like_ours(teacher, scenes, tiny, tmp_path, capsys):
    from understudy.evaluation import evaluate
    from understudy.export import export
    from understudy.prediction import predict

    with pytest.raises(UserError, match=r"imported.*names no data set"):
        evaluate(teacher)
    assert evaluate(teacher, scenes, device="cpu").to_dict()
    predict(teacher, scenes, tmp_path / "predicted", device="cpu")
    assert (tmp_path / "predicted" / "detections.json").is_file()

    exported = export(teacher, tmp_path / "exported")
    again = import_checkpoint(exported, tmp_path / "again.ckpt")
    assert all(map(torch.equal, records(again.detector), records(load_checkpoint(teacher).detector)))
    assert again.classes == load_checkpoint(teacher).classes

    run = understudy.distill(tiny, teacher=teacher, run=tmp_path / "run", **{"schedule.epochs": 1})
    assert (run / "last.ckpt").is_file()


def test_ours_needs_no_import(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["import", str(teacher)])
    assert stop.value.code == 0
    assert "already" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_did(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path, as_mmdet(plain("gfl"), "gfl"), message_hub=Malicious(os.system, "true"))
    command = ["import", str(file), "--classes", "cat,dog,cow", "--set", "shorter_side=320", "--mean", "1,2,3"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert re.search(r"model.pth \(mmdet\): gfl_resnet18, 0\.\d M parameters\n3 classes: cat, dog, cow\n", said)
    assert "  - as in the family's own config: longer_side of images is 1333 pixels, extra_levels is" in said
    assert "(--set NAME=VALUE)" in said
    assert "shorter_side" not in said
    assert "Skipped, not executed: posix.system\n" in said
    assert said.endswith("Written: model.ckpt\nNext: understudy evaluate model.ckpt DATA\n")
    assert load_checkpoint(tmp_path / "model.ckpt").meta["build"]["shorter_side"] == 320

    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert "model.ckpt exists, and nothing is overwritten" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


def refusal(file: Path, tmp_path: Path, **options: Any) -> str:
    output = tmp_path / "refused.ckpt"
    options = {"classes": "a,b,c"} | options
    with pytest.raises(UserError) as error:
        import_checkpoint(file, output, **options)
    assert not output.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\xff\xd8\xff\xe0 photo", "a JPEG image"),
        (b"<!DOCTYPE html><html>not found", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (struct.pack("<Q", 60) + b'{"weight":{"dtype":"F32"}}' + bytes(60), "a safetensors file"),
        (pickle.dumps({"weight": 1}), "a plain pickle"),
        (pickle.dumps(nn.Linear(1, 1)), "a plain pickle of .*Linear"),
        (b"\x80\x02garbage", "damaged"),
        (b"PK\x03\x04 but no archive", "damaged"),
        (bytes(range(256)), "damaged"),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, message):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    assert re.search(message, refusal(file, tmp_path))


def test_an_archive_of_something_else(tmp_path):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zipped:
        zipped.writestr("photos/a.jpg", b"")
    file = tmp_path / "model.pth"
    file.write_bytes(made.getvalue())
    assert "a zip archive without weights" in refusal(file, tmp_path)


def test_no_file_and_a_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.pth", tmp_path)
    assert "a folder without detector.json" in refusal(tmp_path, tmp_path)


@LEGACY
def test_a_truncated_file(tmp_path, zipped):
    file = save(tmp_path, as_mmdet(plain("gfl"), "gfl"), zipped=zipped)
    whole = file.read_bytes()
    for part in (0.1, 0.5, 0.99):
        file.write_bytes(whole[: int(part * len(whole))])
        assert re.search("damaged.*Was it copied whole", refusal(file, tmp_path))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("roi_head.mask_head.conv_logits.weight", "a mask head"),
        ("backbone.stem.0.weight", "deep stem"),
        ("backbone.layer2.0.conv2_offset.weight", "deformable convolutions"),
        ("backbone.stage2.0.branches.0.0.conv1.weight", "HRNet"),
        ("bbox_head.atss_cls.weight", "an ATSS head"),
    ],
)
def test_other_architectures_are_named(tmp_path, extra, message):
    state = as_mmdet(plain("faster_rcnn"), "faster_rcnn") | {extra: torch.ones(1)}
    meta = {"cfg": "model = dict(type='SomethingElse')"}
    said = refusal(save(tmp_path, state, meta), tmp_path)
    assert message in said
    assert "SomethingElse" in said
    assert "RetinaNet, FCOS, GFL and Faster R-CNN" in said


def test_detectors_that_are_not_supported_are_described(tmp_path):
    detr = {"backbone.conv1.weight": torch.ones(1), "bbox_head.fc_cls.weight": torch.ones(1)}
    detr |= {"neck.convs.0.conv.weight": torch.ones(1), "query_embedding.weight": torch.ones(1)}
    said = refusal(save(tmp_path, detr), tmp_path)
    assert "a transformer (DETR)" in said
    assert "query_embedding.weight" in said
    yolo = {"model.0.conv.weight": torch.ones(1), "model.24.m.0.weight": torch.ones(1)}
    said = refusal(save(tmp_path, yolo), tmp_path)
    assert "its 2 parameters are below model.0, model.24" in said
    assert "Supported are" in said
    mask = published_state("maskrcnn_resnet50_fpn", 91)
    with pytest.raises(UserError, match=r"(?s)cannot be imported.*roi_heads\.mask_head.*retinanet_resnet50_fpn"):
        from_torchvision(mask, Choices())


def test_a_backbone_alone(tmp_path):
    state = {key: value for key, value in as_mmdet(plain("gfl"), "gfl").items() if key.startswith("backbone.")}
    assert "a backbone's alone" in refusal(save(tmp_path, state), tmp_path)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    assert "backbone_weights" in refusal(save(tmp_path, state), tmp_path)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    network = plain("gfl")
    state = as_mmdet(network, "gfl")
    del state["bbox_head.gfl_cls.bias"]
    state["bbox_head.novel.weight"] = torch.ones(1)
    file = save(tmp_path, state)
    said = refusal(file, tmp_path)
    assert "1 missing: head.classification_head.cls_logits.bias" in said
    assert "1 left over: bbox_head.novel.weight" in said
    assert "--partial" in said
    found = import_checkpoint(file, tmp_path / "partial.ckpt", classes="a,b,c", partial=True)
    assert found.meta["imported"]["faults"] == [line.removeprefix("  - ") for line in said.splitlines()[1:]]

    state["neck.fpn_convs.0.conv.weight"] = torch.ones(32, 16, 3, 3)
    said = refusal(save(tmp_path, state), tmp_path, partial=True)
    assert (
        "1 of another shape: backbone.fpn.layer_blocks.0.0.weight is (32, 16, 3, 3) in the file, (32, 32, 3, 3)" in said
    )
    assert "1 missing" in said
    assert "1 left over" in said


def test_long_lists_are_shortened(tmp_path):
    state = as_mmdet(plain("gfl"), "gfl") | {f"bbox_head.novel.{number}": torch.ones(1) for number in range(99)}
    said = refusal(save(tmp_path, state), tmp_path)
    assert "99 left over" in said
    assert "and 87 more" in said


def test_weights_that_are_not_finite(tmp_path):
    state = as_mmdet(plain("gfl"), "gfl")
    state["bbox_head.gfl_cls.bias"][1] = torch.nan
    assert "1 not finite: head.classification_head.cls_logits.bias" in refusal(save(tmp_path, state), tmp_path)


def test_tensors_that_disagree_with_the_config(tmp_path):
    settings = {"norm_on_bbox": True, "centerness_on_reg": True, "conv_bias": True}
    state = as_mmdet(plain("fcos", settings=settings), "fcos")
    text = CONFIG_3.format(style="odd").replace("depth=18", "depth=34").replace("num_classes=3", "num_classes=80")
    text = text.replace("num_outs=5", "num_outs=6").replace("score_thr=0.1", "score_thr='high'")
    said = refusal(
        save(tmp_path, state, {"cfg": text, "dataset_meta": {"classes": ("a", "b")}}), tmp_path, classes=None
    )
    for fault in (
        "its config has model.backbone.depth = 34, its tensors 18",
        "its config has model.bbox_head.num_classes = 80, its tensors 3",
        "its config has model.neck.num_outs = 6; supported: 5",
        "score_threshold is such as 0.05",
        "style of a ResNet is caffe or pytorch, got 'odd'",
        "the file names 2 classes, and its tensors have 3",
    ):
        assert fault in said


def test_classes_must_be_known_and_fit(tmp_path):
    file = save(tmp_path, as_mmdet(plain("retinanet"), "retinanet"))
    assert "does not name its 3 classes: give --classes" in refusal(file, tmp_path, classes=None)
    assert "--classes gives 80 classes, and its tensors have 3" in refusal(file, tmp_path, classes="coco")
    assert "named twice: a" in refusal(file, tmp_path, classes="a,a,b")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\ncow\n")
    assert import_checkpoint(file, tmp_path / "out.ckpt", classes=str(names)).classes == ("cat", "dog", "cow")
    large = save(tmp_path, as_mmdet(plain("retinanet", classes=80), "retinanet"))
    assert "--classes coco (its 80 classes)" in refusal(large, tmp_path, classes=None)
    assert import_checkpoint(large, tmp_path / "coco.ckpt", classes="coco").meta["category_ids"][-1] == 90


def test_the_number_of_anchors_must_fit(tmp_path):
    file = save(tmp_path, as_mmdet(plain("retinanet", settings={"octaves": 1}), "retinanet"))
    assert "3 anchors per cell" in refusal(file, tmp_path)
    assert import_checkpoint(file, tmp_path / "out.ckpt", classes="a,b,c", settings={"octaves": 1})


def test_flags_that_cannot_be(tmp_path):
    file = save(tmp_path, as_mmdet(plain("gfl"), "gfl"))
    said = refusal(file, tmp_path, style="odd", mean=(1, 2), std=(0, 1, 1))
    assert "--style" in said
    assert "--mean is three numbers" in said
    assert "--std cannot be zero" in said
    said = refusal(file, tmp_path, settings={"norm_on_bbox": True, "nms_threshold": "x", "shorter_side": -1})
    assert "--set norm_on_bbox: a gfl of mmdet has no such setting; it has anchor_scale" in said
    assert "nms_threshold is such as 0.6" in said
    assert "--set shorter_side: expected pixels, got -1" in said
    assert "--architecture: expected one of" in refusal(file, tmp_path, architecture="yolo")


def test_flags_that_torchvision_has_not():
    state = published_state("retinanet_resnet50_fpn", 91)
    with pytest.raises(UserError, match=r"(?s)--set ratios.*--style is for files of mmdet"):
        from_torchvision(state, Choices(style="caffe", settings={"ratios": [1.0]}))
    with pytest.raises(UserError, match="--architecture: expected one of retinanet_resnet50_fpn,"):
        from_torchvision(state, Choices(architecture="yolo"))
    with pytest.raises(UserError, match="--classes gives 2 names, and the file has 91 classes"):
        from_torchvision(state, Choices(classes=("a", "b")))
    assert (
        from_torchvision(state, Choices(architecture="torchvision/retinanet_resnet50_fpn")).build["num_classes"] == 80
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nonsense"], "'nonsense' is not KEY=VALUE"),
        (["--mean", "a,b,c"], "--mean is three numbers"),
        (["--std", "1,2"], "--std is three numbers"),
    ],
)
def test_flags_that_cannot_be_read(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "model.pth"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
