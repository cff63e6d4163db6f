"""Detectors of mmdet 2.x and 3.x: what they are is read from their tensors, how they are used from their config."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from understudy.checkpoints.foreign import SUPPORTED, Choices, Found, category_ids, fits, shown
from understudy.checkpoints.mmdet_config import find_all, look_up, parse_config
from understudy.checkpoints.mmdet_keys import translate
from understudy.checkpoints.mmdet_settings import EXPECTED, FCOS_WITH_BIAS, SETTINGS, Setting, last_name
from understudy.detectors.plain import BUILDERS
from understudy.detectors.plain.backbones import BLOCKS
from understudy.errors import UserError

_HEADS = {  # the layers by which a family is recognised, and its own name for its head
    "retinanet": (("bbox_head.retina_cls", "bbox_head.retina_reg"), "RetinaHead"),
    "gfl": (("bbox_head.gfl_cls", "bbox_head.gfl_reg"), "GFLHead"),
    "fcos": (("bbox_head.conv_cls", "bbox_head.conv_reg", "bbox_head.conv_centerness"), "FCOSHead"),
    "faster_rcnn": (("rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls"), "Shared2FCBBoxHead"),
}
_FOREIGN_PARTS = {  # what makes a detector another one, by its parameters' names
    r"roi_head\.mask_head\.|mask_head\.": "a mask head (Mask R-CNN and its kin)",
    r"roi_head\.bbox_head\.\d+\.": "several box heads in a row (Cascade R-CNN)",
    r"backbone\.stem\.": "a ResNet with a deep stem (ResNetV1d)",
    r".*\.conv\d?_offset\.": "deformable convolutions",
    r"backbone\.(stage\d|transition\d)\.": "an HRNet",
    r".*\.(query_embedding|sampling_offsets|in_proj_weight)|query_embedding\.|encoder\.": "a transformer (DETR)",
    r"backbone\.(dark|stem|stage)|bbox_head\.(multi_level|convs_pred)": "a YOLO",
    r"bbox_head\.atss_": "an ATSS head",
}
_IMAGENET: dict[str, Any] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
_CAFFE: dict[str, Any] = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}
_FCOS_CAFFE: dict[str, Any] = {"mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}


def is_mmdet(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of an mmdet detector's parameters."""
    return any(re.match(r"backbone\.(?!body\.|fpn\.)", key) for key in state) and any(
        key.startswith(("neck.", "bbox_head.", "rpn_head.", "roi_head.", "mask_head.", "panoptic")) for key in state
    )


def from_mmdet(state: Mapping[str, Tensor], meta: Any, choices: Choices) -> Found:
    """Describe an mmdet detector in understudy's terms.

    Args:
        state: its state dict.
        meta: what its checkpoint has under ``"meta"``.
        choices: of the caller.

    Raises:
        UserError: it is not one of the supported detectors, its tensors and its config disagree (all faults are
            listed), or something must be said by the caller.
    """
    meta = meta if isinstance(meta, Mapping) else {}
    config = parse_config(meta.get("cfg", meta.get("config")))
    if not isinstance(look_up(config, "model"), Mapping):
        config = None
    family = _family(state, config, choices.architecture)
    reading = _Reading(family, _Shapes(state, family), config, choices)
    build = reading.build()
    names = reading.class_names(meta)
    if reading.faults:
        raise UserError.listing(f"This {family} of mmdet cannot be imported as it is:", reading.faults)
    weights = translate(state, family, centerness_on_reg=build["settings"].get("centerness_on_reg", False))
    if not reading.rgb:
        stem = weights["backbone.body.conv1.weight"]
        weights["backbone.body.conv1.weight"] = stem[:, [2, 1, 0]]
    version = meta.get("mmdet_version")
    source = f"mmdet {version}" if isinstance(version, str) else "mmdet"
    return Found(source, build, weights, names, category_ids(names), tuple(reading.assumptions))


def _family(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, asked: str | None) -> str:
    found = [family for family, (layers, _) in _HEADS.items() if all(_has(state, layer) for layer in layers)]
    parts = [what for pattern, what in _FOREIGN_PARTS.items() if any(re.match(pattern, key) for key in state)]
    if asked is not None and asked not in _HEADS:
        raise UserError(f"--architecture: expected one of {', '.join(_HEADS)} for a file of mmdet, got {asked!r}.")
    if parts or not (found or asked):
        prefixes = sorted({".".join(key.split(".")[:2]) for key in state})
        told = [f"the model is a {kind}"] if (kind := look_up(config, "model.type")) else []
        heads = [f"the head is a {kind}"] if (kind := look_up(config, "model.bbox_head.type")) else []
        told += heads + [f"it has {what}" for what in parts]
        told.append(f"its parameters are below {', '.join(shown(prefixes, 20))}")
        if not any(key.startswith(("bbox_head.", "roi_head.", "rpn_head.")) for key in state):
            told.append("it has no head, so it is no detector")
        raise UserError.listing(
            f"This mmdet file holds no detector that can be imported. Supported are {SUPPORTED}:", told
        )
    return asked or found[0]


def _has(state: Mapping[str, Tensor], layer: str) -> bool:
    return f"{layer}.weight" in state or f"{layer.replace('.conv_', '.fcos_')}.weight" in state


# --- from the tensors -------------------------------------------------------------------------------------------------


class _Shapes:
    """Sizes of a detector, read from the shapes of its tensors.

    Raises:
        UserError: a tensor that is needed for this is not there, or they are those of no residual network.
    """

    def __init__(self, state: Mapping[str, Tensor], family: str):
        self.state = state
        fcos = "fcos" if "bbox_head.fcos_cls.weight" in state else "conv"
        layer = {"retinanet": "retina", "gfl": "gfl", "fcos": fcos}.get(family)
        self.backbone, self.width_mult, self.bottleneck, self.sizes = self._residual_network()
        self.neck_channels = self._shape("neck.lateral_convs.0.conv.weight", 4)[0]
        self.group_norm = "bbox_head.cls_convs.0.gn.weight" in state
        self.conv_bias = "bbox_head.cls_convs.0.conv.bias" in state
        self.stacked_convs = self._count(r"bbox_head\.cls_convs\.(\d+)\.conv\.weight")
        if family == "faster_rcnn":
            self.anchors = self._shape("rpn_head.rpn_cls.weight", 4)[0]
            self.num_classes = self._shape("roi_head.bbox_head.fc_cls.weight", 2)[0] - 1
            self.fc_channels = self._shape("roi_head.bbox_head.shared_fcs.0.weight", 2)[0]
            return
        classes = self._shape(f"bbox_head.{layer}_cls.weight", 4)[0]
        boxes = self._shape(f"bbox_head.{layer}_reg.weight", 4)[0]
        self.anchors = boxes // 4 if family == "retinanet" else 1
        self.reg_max = boxes // 4 - 1
        self.num_classes = classes // max(1, self.anchors)
        if boxes % 4 or classes % max(1, self.anchors) or not self.num_classes:
            raise UserError(f"A {family} cannot have {classes} class maps and {boxes} box maps.")

    def _residual_network(self) -> tuple[str, float, bool, dict[str, int]]:
        """Name, width, whether it has bottlenecks, and the sizes by the names that a config has for them."""
        base = self._shape("backbone.conv1.weight", 4)[0]
        blocks = tuple(self._count(rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight") for stage in range(1, 5))
        bottleneck = "backbone.layer1.0.conv3.weight" in self.state
        depths = [depth for depth, counts in BLOCKS.items() if counts == blocks and (depth >= 50) == bottleneck]
        if not depths or not base:
            raise UserError(
                f"The backbone has {blocks} {'bottlenecks' if bottleneck else 'basic blocks'} in its four stages: that "
                f"is no ResNet or ResNeXt of depth {', '.join(map(str, BLOCKS))}."
            )
        width_mult, sizes = base / 64, {"depth": depths[0], "base_channels": base}
        if not bottleneck:
            return f"resnet{depths[0]}", width_mult, False, sizes
        channels, per_group = self._shape("backbone.layer1.0.conv2.weight", 4)[:2]
        groups = channels // max(1, per_group)
        width = math.ceil(per_group * 64 / base)  # so that int(base * width / 64) is per_group
        if groups == 1 and width == 64:
            return f"resnet{depths[0]}", width_mult, True, sizes | {"groups": 1}
        return f"resnext{depths[0]}_{groups}x{width}d", width_mult, True, sizes | {"groups": groups}

    def _shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        if key not in self.state:
            raise UserError(f"The file has no {key}, without which the detector's sizes are not known.")
        shape = tuple(self.state[key].shape)
        if len(shape) != dimensions:
            raise UserError(f"{key} has the shape {shape}; expected {dimensions} dimensions.")
        return shape

    def _count(self, pattern: str) -> int:
        found = [re.fullmatch(pattern, key) for key in self.state]
        return 1 + max((int(match[1]) for match in found if match), default=-1)


# --- from the caller, the config, or mmdet's own configs --------------------------------------------------------------


class _Reading:
    """Gathers the options of the plain network, and notes what had to be assumed and what cannot be.

    Each value is the caller's, else the config's, else that of mmdet's own config of this family; the last is noted.

    Attributes:
        assumptions: what neither the caller nor the file says.
        faults: what cannot be built.
        caffe: the backbone and its images are those of Caffe's ResNets.
        rgb: the stem takes red first.
    """

    def __init__(self, family: str, shapes: _Shapes, config: Mapping[str, Any] | None, choices: Choices):
        self.family, self.shapes, self.choices = family, shapes, choices
        self.config = None if config is None else _modernised(config)
        self.assumptions: list[str] = []
        self.faults: list[str] = []
        self.caffe, self.rgb = False, True

    def build(self) -> dict[str, Any]:
        """Options of :func:`understudy.detectors.plain.build_network`."""
        self._check_config()
        shapes, given = self.shapes, dict(self.choices.settings)
        builder = BUILDERS[self.family, "mmdet"]
        known = {p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY}
        style = self._style(known)
        mean, std = self._preprocessing()
        sides = self._sides()
        from_tensors = {
            "style": style,
            "stacked_convs": shapes.stacked_convs,
            "conv_bias": shapes.conv_bias,
            "reg_max": getattr(shapes, "reg_max", None),
            "fc_channels": getattr(shapes, "fc_channels", None),
            "groups": look_up(self.config, "model.bbox_head.norm_cfg.num_groups", 32),
        }
        settings = {name: value for name, value in from_tensors.items() if name in known}
        options: dict[str, Any] = {}
        for setting in SETTINGS[self.family]:
            value = self._setting(setting, given)
            (settings if setting.name in known else options)[setting.name] = value
        for name in sides:
            sides[name] = given.pop(name, sides[name])
            if not fits(sides[name], 800):
                self.faults.append(f"--set {name}: expected pixels, got {sides[name]!r}")
        if "groups" in settings:
            settings["groups"] = given.pop("groups", settings["groups"])
        self._check_settings(given, [setting.name for setting in SETTINGS[self.family]])
        self._check_anchors(settings)
        return {
            "name": f"{self.family}_{shapes.backbone}",
            "num_classes": shapes.num_classes,
            "conventions": "mmdet",
            "settings": settings,
            "neck_channels": shapes.neck_channels,
            "width_mult": shapes.width_mult,
            "norm": "frozen",
            "head_norm": "group" if self.family == "retinanet" and shapes.group_norm else None,
            "image_mean": [value / 255 for value in mean],
            "image_std": [value / 255 for value in std],
            **sides,
            **options,
        }

    def class_names(self, meta: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the classes: the caller's, the checkpoint's or its config's."""
        count = self.shapes.num_classes
        names, whose = self.choices.classes, "--classes gives"
        if names is None:
            names, whose = _recorded_names(meta, self.config), "the file names"
        if names is None:
            hint = "coco (its 80 classes)" if count == 80 else "voc (its 20 classes)" if count == 20 else "cat,dog,..."
            self.faults.append(f"the file does not name its {count} classes: give --classes {hint} or a file of names")
        elif len(names) != count:
            self.faults.append(f"{whose} {len(names)} classes, and its tensors have {count}")
        return tuple(names or ())

    def _setting(self, setting: Setting, given: dict[str, Any]) -> Any:
        if setting.name in given:
            value = given.pop(setting.name)
        elif (said := look_up(self.config, setting.path)) is not None:
            value = setting.convert(said)
        elif self.config is not None and setting.unsaid is not None:
            value = setting.convert(setting.unsaid)
        else:
            value = setting.usual
            if self.family == "fcos" and self.shapes.conv_bias:
                value = FCOS_WITH_BIAS.get(setting.name, value)
            self._assume(f"{setting.name} is {_words(value)}", f"--set {setting.name}=...")
        if not fits(value, setting.usual) or (setting.allowed and value not in setting.allowed):
            like = f"one of {', '.join(setting.allowed)}" if setting.allowed else f"such as {_words(setting.usual)}"
            self.faults.append(f"{setting.name} is {like}; the file ({setting.path}) or --set has {value!r}")
        return list(value) if isinstance(value, tuple) else value

    def _style(self, known: set[str]) -> str:
        """Where bottlenecks stride; a network of basic blocks has no choice, but its images may be prepared so."""
        said = self.choices.style or last_name(look_up(self.config, "model.backbone.style"))
        if said is None and self.config is not None:
            said = "pytorch"  # mmdet's default
        if said is None:
            usually_caffe = self.family == "fcos" and "resnext" not in self.shapes.backbone
            said = "caffe" if usually_caffe else "pytorch"
            if self.shapes.bottleneck:
                where = {"caffe": "first 1x1", "pytorch": "3x3"}[said]
                self._assume(f"bottlenecks stride in their {where} convolution ({said} style)", "--style")
        self.caffe = said == "caffe"
        if said not in ("caffe", "pytorch"):
            self.faults.append(f"the style of a ResNet is caffe or pytorch, got {said!r}")
        elif said == "caffe" and self.shapes.bottleneck and "style" not in known:
            self.faults.append(f"a {self.family} with a caffe-style ResNet is not supported")
        return said if self.shapes.bottleneck else "pytorch"

    def _preprocessing(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of red, green and blue in 0..255; notes whether the stem takes red first."""
        said: dict[str, Any] | None = _normalisation(self.config)
        known = said is not None
        if said is None:
            said = self._usual_normalisation()
            order = "red, green, blue" if said["bgr_to_rgb"] else "blue, green, red"
            self._assume(f"the network takes the colours as {order}", "--style")
        self.rgb = said["bgr_to_rgb"]
        values = []
        for name in ("mean", "std"):
            value = getattr(self.choices, name)
            if value is None:
                value = said[name] if self.rgb else said[name][::-1]
                if not known:
                    self._assume(f"{name} of red, green and blue is {_words(value)}", f"--{name} R,G,B")
            values.append(list(value))
        return values[0], values[1]

    def _usual_normalisation(self) -> dict[str, Any]:
        if not self.caffe:
            return _IMAGENET
        return _FCOS_CAFFE if self.family == "fcos" and not self.shapes.conv_bias else _CAFFE

    def _sides(self) -> dict[str, int]:
        scale = _image_scale(self.config)
        if scale is None:
            scale = (800, 1333)
            for name, value in zip(("shorter_side", "longer_side"), scale, strict=True):
                if name not in self.choices.settings:
                    self._assume(f"{name} of images is {value} pixels", f"--set {name}=...")
        return {"shorter_side": scale[0], "longer_side": scale[1]}

    def _assume(self, what: str, flag: str) -> None:
        self.assumptions.append(f"{what} ({flag})")

    def _check_config(self) -> None:
        """Compare the config with what the plain networks can do, and with the sizes of the tensors."""
        if self.config is None:
            return
        for path, allowed in EXPECTED[self.family].items():
            said = look_up(self.config, path)
            if said is not None and not any(_plain(said) == value for value in allowed):
                supported = ", ".join(_words(value) for value in allowed)
                self.faults.append(f"its config has {path} = {_words(_plain(said))}; supported: {supported}")
        two_stages = self.family == "faster_rcnn"
        head = "model.roi_head.bbox_head" if two_stages else "model.bbox_head"
        sizes = {f"model.backbone.{name}": size for name, size in self.shapes.sizes.items()}
        sizes |= {"model.neck.out_channels": self.shapes.neck_channels, f"{head}.num_classes": self.shapes.num_classes}
        if self.family == "gfl":
            sizes["model.bbox_head.reg_max"] = self.shapes.reg_max
        if two_stages:
            sizes[f"{head}.fc_out_channels"] = self.shapes.fc_channels
        else:
            sizes["model.bbox_head.stacked_convs"] = self.shapes.stacked_convs
        for path, size in sizes.items():
            said = look_up(self.config, path)
            if isinstance(said, int) and said != size:
                self.faults.append(f"its config has {path} = {said}, its tensors {size}")
        kind = last_name(look_up(self.config, f"{head}.type"))
        if kind is not None and kind != _HEADS[self.family][1]:
            self._assume(f"its head, a {kind}, detects as a {_HEADS[self.family][1]} does", "train it again to be sure")
        if "soft" in str(nms := look_up(self.config, "model.test_cfg.rcnn.nms.type", "")):
            self._assume(f"{nms} is replaced by ordinary suppression", "--set nms_threshold=...")

    def _check_settings(self, unknown: Mapping[str, Any], known: Sequence[str]) -> None:
        names = ", ".join(sorted({*known, "shorter_side", "longer_side"} - {"style"}))
        self.faults += [
            f"--set {name}: a {self.family} of mmdet has no such setting; it has {names}" for name in unknown
        ]

    def _check_anchors(self, settings: Mapping[str, Any]) -> None:
        """The anchors of the settings must be as many as the head was trained for."""
        ratios, octaves = settings.get("ratios"), settings.get("octaves", 1)
        if not isinstance(ratios, list) or not isinstance(octaves, int):
            return
        if len(ratios) * octaves != self.shapes.anchors:
            names = "ratios and octaves (sizes)" if "octaves" in settings else "ratios"
            self.faults.append(
                f"its head has {self.shapes.anchors} anchors per cell, and {len(ratios)} ratios in {octaves} sizes are "
                f"{len(ratios) * octaves}: give {names} of its anchors by --set"
            )


def _modernised(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of any 2.x or 3.x in the words of 3.x, as far as they are read here."""
    model = dict(look_up(config, "model", {}))
    test: Any = model.get("test_cfg") or look_up(config, "test_cfg", {})
    test = {
        name: _modern_nms(part) if isinstance(part, Mapping) else part
        for name, part in (_modern_nms(test) if isinstance(test, Mapping) else {}).items()
    }
    neck = look_up(model, "neck", {})
    if isinstance(neck, Mapping) and neck.get("add_extra_convs") is True and neck.get("extra_convs_on_inputs") is False:
        model["neck"] = {**neck, "add_extra_convs": "on_output"}
    return {**config, "model": {**model, "test_cfg": test}}


def _modern_nms(part: Mapping[str, Any]) -> dict[str, Any]:
    part = dict(part)
    nms = part.get("nms")
    if isinstance(nms, Mapping) and "iou_thr" in nms:
        part["nms"] = {**nms, "iou_threshold": nms["iou_thr"]}
    if "nms_thr" in part:
        part["nms"] = {"iou_threshold": part["nms_thr"]}
    if "max_num" in part:
        part["max_per_img"] = part["max_num"]
    return part


def _normalisation(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Mean, std and whether they and the network take red first, wherever 2.x or 3.x say it."""
    places = [("bgr_to_rgb", False, look_up(config, "model.data_preprocessor"))]
    places += [("to_rgb", True, look_up(config, "img_norm_cfg"))]
    places += [("to_rgb", True, step) for step in _steps(config) if last_name(step.get("type")) == "Normalize"]
    for order, default, place in places:
        if isinstance(place, Mapping) and _three(place.get("mean")) and _three(place.get("std")):
            return {"mean": place["mean"], "std": place["std"], "bgr_to_rgb": bool(place.get(order, default))}
    return None


def _image_scale(config: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Shorter and longer side of a test image."""
    resizes = [step for step in _steps(config) if last_name(step.get("type")) == "Resize"]
    for scale in find_all(_steps(config), "img_scale") + find_all(resizes, "scale"):
        scale = scale[0] if isinstance(scale, list) and scale and isinstance(scale[0], list | tuple) else scale
        if isinstance(scale, list | tuple) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
            return min(scale), max(scale)
    return None


def _steps(config: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of the test pipeline, those inside of others included."""
    for path in ("test_dataloader.dataset.pipeline", "data.test.pipeline", "test_pipeline"):
        steps = look_up(config, path)
        if isinstance(steps, list):
            return _flattened(steps)
    return []


def _flattened(steps: Sequence[Any]) -> list[Mapping[str, Any]]:
    found = []
    for step in steps:
        if isinstance(step, Mapping):
            inner = step.get("transforms")
            found += [step, *(_flattened(inner) if isinstance(inner, list) else [])]
    return found


def _recorded_names(meta: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    dataset = meta.get("dataset_meta")
    places = [dataset.get("classes"), dataset.get("CLASSES")] if isinstance(dataset, Mapping) else []
    places += [meta.get("CLASSES")]
    places += [look_up(config, f"{where}.classes") for where in ("test_dataloader.dataset.metainfo", "data.test")]
    for names in places:
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _three(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(one, int | float) for one in value)


def _plain(value: Any) -> Any:
    """Tuples as lists, and types without their module, so that configs of all styles compare."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return last_name(value)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
