"""What ``understudy detectors`` prints: every detector with its size, or one in full."""

import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from understudy import detectors
from understudy.checkpoints import build_options
from understudy.config import TrainConfig, load_config
from understudy.detectors import BACKBONES, FAMILIES, build_detector
from understudy.detectors.plain import BUILDERS, build_network, split_name
from understudy.detectors.zoo import builder_settings
from understudy.errors import UserError

SIZES = Path(detectors.__file__).with_name("sizes.json")
"""Sizes of all detectors; `benchmarks/sizes.py` computes them anew."""

IMAGE = (800, 1344)
"""Height and width in pixels of the image that sizes are computed for: 800 x 1333, padded to multiples of 32."""

CLASSES = 80
"""Classes of the detectors in the table; COCO has as many."""


class Size(NamedTuple):
    """How big a detector is.

    Attributes:
        parameters: all weights that training may change.
        multiply_adds: of one image's forward pass; papers print these as "FLOPs".
    """

    parameters: int
    multiply_adds: int


def detector_size(name: str, num_classes: int = CLASSES, **options: Any) -> Size:
    """Compute the size of a detector by name; nothing of its size is allocated. See :func:`measure`."""
    with torch.device("meta"):
        return measure(build_network(name, num_classes, **options))


def measure(network: Any) -> Size:
    """Count parameters, and multiply-adds of one image.

    Convolutions and matrix products are counted, as is usual; normalisation, activations, pooling, and choosing boxes
    are not. The second stage of a Faster R-CNN is counted for as many proposals as it evaluates.

    Args:
        network: a plain detector on the meta device.
    """
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = list(network.backbone(torch.empty(1, 3, *IMAGE, device="meta")).values())
        if hasattr(network, "rpn"):
            network.rpn.head(features)
            cells = 7, 7  # of a pooled proposal, in every Faster R-CNN built here
            proposals = torch.empty(network.rpn.post_nms_top_n(), features[0].shape[1], *cells, device="meta")
            network.roi_heads.box_predictor(network.roi_heads.box_head(proposals))
        else:
            network.head(features)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Size(parameters, counter.get_total_flops() // 2)  # an operation is a multiplication or an addition


def table() -> str:
    """All detectors, one row a backbone, with the size of each family's detector on it."""
    sizes = {name: Size(*size) for name, size in json.loads(SIZES.read_text()).items()}
    introduction = (
        f"A detector is called FAMILY_BACKBONE, for example {FAMILIES[0]}_{BACKBONES[2]}. M: millions of parameters. "
        f'G: billions of multiply-adds (the "FLOPs" of papers) for an image of {IMAGE[0]} x {IMAGE[1]} pixels, '
        f"{CLASSES} classes and a neck of 256 channels."
    )
    lines = [
        " " * 20 + "".join(f"{family:>15}" for family in FAMILIES),
        f"{'backbone':20}" + f"{'M':>8}{'G':>7}" * len(FAMILIES),
    ]
    for backbone in BACKBONES:
        cells = [sizes[f"{family}_{backbone}"] for family in FAMILIES]
        lines.append(f"{backbone:20}" + "".join(f"{size[0] / 1e6:8.1f}{size[1] / 1e9:7.1f}" for size in cells))
    advice = "Other ResNeXts go by their names too (resnext152_32x8d). `understudy detectors NAME` explains one."
    return "\n".join([_wrapped(introduction), "", *lines, "", _wrapped(advice)])


def explain(name: str, overrides: Sequence[str] = ()) -> str:
    """What one detector consists of, how big it is, and what can be set.

    Args:
        name: of a detector.
        overrides: ``key=value`` of the config's section ``detector``, with or without ``detector.``; and
            ``num_classes=K``.

    Raises:
        UserError: there is no such detector, or an option does not fit.
    """
    num_classes, options = _class_count([option.removeprefix("detector.") for option in overrides])
    keys = [option if option.startswith("-") else f"detector.{option}" for option in options]
    config = load_config(TrainConfig, None, ["run=RUN", "data=DATA", f"detector.name={name}", *keys])
    with torch.device("meta"):
        detector = build_detector(**build_options(config, num_classes), frozen_stages=config.detector.frozen_stages)
    spec, size = detector.spec, measure(detector.network)
    family, backbone = split_name(name)
    library = type(detector.network).__module__.partition(".")[0]
    anchors = f"{spec.num_anchors} anchors" if spec.num_anchors > 1 else "1 anchor or point"
    facts = {
        "Family": f"{family}, as {library}'s {type(detector.network).__name__}",
        "Backbone": f"{backbone}, maps of {_listed(spec.stage_channels)} channels at strides "
        f"{_listed(spec.stage_strides)}",
        "Neck": f"{spec.channels[0]} channels at strides {_listed(spec.strides)}; {anchors} per cell",
        "Size": f"{size.parameters / 1e6:.2f} M parameters, {size.multiply_adds / 1e9:.2f} G multiply-adds "
        f"({IMAGE[0]} x {IMAGE[1]} pixels, {num_classes} classes)",
        "ImageNet": _imagenet(backbone, config.detector.width_mult),
    }
    command = textwrap.wrap(
        " ".join(["understudy train run=runs/teacher data=DATA", f"detector={name}", *keys]),
        76,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(
        [
            *(_wrapped(f"{f'{title}:':10}{fact}", hanging=10) for title, fact in facts.items()),
            *_settings(family),
            "",
            _wrapped(
                "What every detector has (neck_channels, width_mult, norm, ...) is explained by `understudy config`."
            ),
            "",
            "Example:",
            " \\\n".join(f"  {line}" for line in command),
        ]
    )


def _class_count(options: Sequence[str]) -> tuple[int, list[str]]:
    """The value of ``num_classes``, and the other options."""
    counts = [option.partition("=")[2] for option in options if option.startswith("num_classes=")]
    for count in counts:
        if not re.fullmatch(r"[1-9]\d*", count):
            raise UserError(f"num_classes: expected a whole number above 0, got {count}")
    return int([CLASSES, *counts][-1]), [option for option in options if not option.startswith("num_classes=")]


def _imagenet(backbone: str, width_mult: float) -> str:
    """Which weights of the backbone torchvision has."""
    try:
        names = [name for name in get_model_weights(backbone).__members__ if name != "DEFAULT"]
    except ValueError:
        return "torchvision has no weights of this backbone; detector.backbone_weights takes a file"
    if width_mult != 1:
        return "torchvision has weights for width_mult=1 only; detector.backbone_weights takes a file"
    return f"detector.backbone_weights={' or '.join(names)} (torchvision's)"


def _settings(family: str) -> list[str]:
    """The settings that only this family has, with their meaning, by conventions."""
    builders = {conventions: BUILDERS[family, conventions] for conventions in ("torchvision", "mmdet")}
    if builders["torchvision"] is builders["mmdet"]:
        return ["", "Settings, in either conventions:", *_setting_lines(family, "torchvision")]
    return [
        line
        for conventions in builders
        for line in ("", f"Settings with detector.conventions={conventions}:", *_setting_lines(family, conventions))
    ]


def _setting_lines(family: str, conventions: str) -> list[str]:
    document = re.sub(r":\w+:`|`", "", inspect.getdoc(BUILDERS[family, conventions]) or "")
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", document, flags=re.MULTILINE))
    lines = []
    for setting, default in builder_settings(family, conventions).items():
        written = default if isinstance(default, str) else json.dumps(default)
        lines.append(f"  detector.settings.{setting}={written}")
        if meaning := meanings.get(setting, "").replace("None", "null").replace('"', ""):
            lines.append(_wrapped(f"      {' '.join(meaning.split())}", hanging=6))
    return lines or ["  none"]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _wrapped(text: str, hanging: int = 0) -> str:
    return textwrap.fill(text, 80, subsequent_indent=" " * hanging, break_on_hyphens=False)
