"""The output of ``understudy detectors``: every detector with its size, or one in full.

The table is printed from stored sizes, so that it appears at once; see :mod:`.sizes`.
"""

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path

from understudy.errors import UserError
from understudy.listing.methods import plain
from understudy.text import as_yaml, listed, shell_lines, wrapped

STORED = Path(__file__).with_name("detectors.json")
"""Parameters and multiply-adds by family and backbone; ``python docs/generate.py`` computes them."""

WIDTH = 80
"""Columns of a line."""


def table() -> str:
    """Return all detectors: a row for each backbone, with the size of each family's detector on it."""
    sizes: dict[str, dict[str, list[int]]] = json.loads(STORED.read_text(encoding="utf-8"))
    families = list(sizes)
    backbones = list(sizes[families[0]])
    introduction = (
        f"Detectors are named FAMILY_BACKBONE, for example {families[0]}_{backbones[2]}. M: millions of parameters. "
        'G: billions of multiply-adds (the "FLOPs" of papers) for an image of 800 x 1344 pixels, 80 classes and a neck '
        "of 256 channels."
    )
    lines = [
        " " * 20 + "".join(f"{family:>15}" for family in families),
        f"{'backbone':20}" + f"{'M':>8}{'G':>7}" * len(families),
    ]
    for backbone in backbones:
        cells = [sizes[family][backbone] for family in families]
        lines.append(f"{backbone:20}" + "".join(f"{size[0] / 1e6:8.1f}{size[1] / 1e9:7.1f}" for size in cells))
    advice = "Other ResNeXts are available by name (resnext152_32x8d). `understudy detectors NAME` shows one in full."
    return "\n".join([wrapped(introduction, width=WIDTH), "", *lines, "", wrapped(advice, width=WIDTH)])


def explain(name: str, overrides: Sequence[str] = ()) -> str:
    """Describe one detector: its parts, its size, and its settings.

    Args:
        name: of a detector.
        overrides: ``key=value`` of the config's section ``detector``, with or without ``detector.``; and
            ``num_classes=K``.

    Raises:
        UserError: there is no such detector, or an option does not fit.
    """

    from understudy.checkpoints import build_options
    from understudy.config import TrainConfig, load_config
    from understudy.detectors import build_detector
    from understudy.detectors.families import FAMILIES
    from understudy.detectors.shapes import shapes_only
    from understudy.detectors.sizes import IMAGE, measure

    num_classes, options = _class_count([option.removeprefix("detector.") for option in overrides])
    keys = [option if option.startswith("-") else f"detector.{option}" for option in options]
    config = load_config(TrainConfig, None, ["run=RUN", "data=DATA", f"detector.name={name}", *keys])
    with shapes_only():
        detector = build_detector(**build_options(config, num_classes), frozen_stages=config.detector.frozen_stages)
    spec, size = detector.spec, measure(detector.network)
    family, backbone = FAMILIES[spec.family], name.removeprefix(f"{spec.family}_")
    library = type(detector.network).__module__.partition(".")[0]
    anchors = f"{spec.num_anchors} anchors" if spec.num_anchors > 1 else "1 anchor or point"
    facts = {
        "Family": f"{family.title}, as {library}'s {type(detector.network).__name__}",
        "Backbone": f"{backbone}, maps of {listed(spec.stage_channels)} channels at strides "
        f"{listed(spec.stage_strides)}",
        "Neck": f"{spec.channels[0]} channels at strides {listed(spec.strides)}; {anchors} per cell",
        "Size": f"{size.parameters / 1e6:.2f} M parameters, {size.multiply_adds / 1e9:.2f} G multiply-adds "
        f"({IMAGE[0]} x {IMAGE[1]} pixels, {num_classes} classes)",
        "ImageNet": _imagenet(backbone, config.detector.width_mult),
    }
    command = " ".join(["understudy train run=runs/teacher data=DATA", f"detector={name}", *keys])
    return "\n".join(
        [
            *(wrapped(fact, f"{f'{title}:':10}", hanging=10, width=WIDTH) for title, fact in facts.items()),
            *_settings(family.name),
            "",
            wrapped("Keys of every detector (neck_channels, width_mult, norm, ...): `understudy config`", width=WIDTH),
            "",
            "Example:",
            shell_lines(command, WIDTH),
        ]
    )


def _class_count(options: Sequence[str]) -> tuple[int, list[str]]:
    """Return the value of ``num_classes``, and the other options."""
    from understudy.detectors.sizes import CLASSES

    counts = [option.partition("=")[2] for option in options if option.startswith("num_classes=")]
    for count in counts:
        if not re.fullmatch(r"[1-9]\d*", count):
            raise UserError(f"num_classes: expected an integer above 0, got {count}")
    return int([CLASSES, *counts][-1]), [option for option in options if not option.startswith("num_classes=")]


def _imagenet(backbone: str, width_mult: float) -> str:
    """Return torchvision's weights of the backbone."""
    from understudy.detectors.backbone_weights import published_weights

    names = published_weights(backbone)
    if not names:
        return "torchvision has no weights of this backbone; set detector.backbone_weights to a file"
    if width_mult != 1:
        return "torchvision has weights for width_mult=1 only; set detector.backbone_weights to a file"
    return f"detector.backbone_weights={' or '.join(names)} (torchvision's)"


def _settings(family: str) -> list[str]:
    """Return the settings of one family with their meaning, by conventions."""
    settings = {conventions: _setting_lines(family, conventions) for conventions in ("torchvision", "mmdet")}
    if settings["torchvision"] == settings["mmdet"]:
        return ["", "Settings, with either conventions:", *settings["mmdet"]]
    return [
        line
        for conventions, lines in settings.items()
        for line in ("", f"Settings with detector.conventions={conventions}:", *lines)
    ]


def _setting_lines(family: str, conventions: str) -> list[str]:
    from understudy.detectors.build import builder_of, builder_settings

    document = plain(inspect.getdoc(builder_of(family, conventions)) or "")
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", document, flags=re.MULTILINE))
    lines = []
    for setting, default in builder_settings(family, conventions).items():
        lines.append(f"  detector.settings.{setting}={as_yaml(default)}")
        if meaning := meanings.get(setting, "").replace("None", "null").replace('"', ""):
            lines.append(wrapped(meaning, "      "))
    return lines or ["  none"]
