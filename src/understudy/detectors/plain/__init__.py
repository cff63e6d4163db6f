"""Builds plain detectors from their options; needs torch and torchvision alone.

understudy copies this folder beside every student it exports, so that the student runs without understudy::

    from detector import load
    model, classes = load("exported")
    detections = model([image])  # image: (3, H, W) float in 0..1; boxes come back in pixels of that image

or, on the command line, ``python exported/detector photo.jpg``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import gfl, library, mmdet, mmdet_rcnn
from .backbones import BACKBONES, build_body

__all__ = ["BACKBONES", "BUILDERS", "FAMILIES", "PUBLISHED", "Design", "build_network", "load", "split_name"]

FAMILIES = ("retinanet", "fcos", "gfl", "faster_rcnn")

PUBLISHED = library.PUBLISHED
"""Detectors for which torchvision publishes weights: its own builders, named ``torchvision/<builder>``."""


@dataclass(frozen=True)
class Design:
    """What every builder of a family is given; see :func:`build_network`."""

    backbone: str
    num_classes: int
    neck_channels: int = 256
    width_mult: float = 1.0
    norm: str = "batch"
    head_norm: str | None = None
    anchor_scale: float | None = None
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)
    shorter_side: int = 800
    longer_side: int = 1333

    @property
    def transform(self) -> dict[str, Any]:
        """How torchvision's detectors take normalisation and size."""
        return {
            "min_size": self.shorter_side,
            "max_size": self.longer_side,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    def body(self, style: str = "pytorch"):
        """The backbone; see :func:`.backbones.build_body`."""
        return build_body(self.backbone, width_mult=self.width_mult, norm=self.norm, style=style)


BUILDERS: dict[tuple[str, str], Callable[..., nn.Module]] = {
    ("retinanet", "torchvision"): library.retinanet,
    ("fcos", "torchvision"): library.fcos,
    ("faster_rcnn", "torchvision"): library.faster_rcnn,
    ("gfl", "torchvision"): gfl.build,
    ("retinanet", "mmdet"): mmdet.retinanet,
    ("fcos", "mmdet"): mmdet.fcos,
    ("faster_rcnn", "mmdet"): mmdet_rcnn.faster_rcnn,
    ("gfl", "mmdet"): gfl.build,
}
"""By family and conventions: a function of a :class:`Design` and of its own settings, which are keyword-only."""


def split_name(name: str) -> tuple[str, str]:
    """Family and backbone of ``<family>_<backbone>``, e.g. ``faster_rcnn_resnet50``.

    Raises:
        ValueError: the name begins with no family.
    """
    for family in FAMILIES:
        if name.startswith(f"{family}_"):
            return family, name.removeprefix(f"{family}_")
    raise ValueError(f"{name!r} is not <family>_<backbone>, where family is one of {', '.join(FAMILIES)}")


def build_network(
    name: str,
    num_classes: int,
    *,
    conventions: str = "torchvision",
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a detector with random weights.

    Args:
        name: ``<family>_<backbone>``, e.g. ``"retinanet_resnet50"`` (see ``FAMILIES`` and ``BACKBONES``), or one of
            ``PUBLISHED``.
        num_classes: classes K, without background.
        conventions: whose details the detector follows, ``"torchvision"`` or ``"mmdet"``: anchors, coarse levels,
            heads and losses differ between the two libraries. A GFL, which torchvision does not have, is the same in
            both.
        settings: what only this family in these conventions has: the keyword arguments of its builder.
        **options: the other fields of :class:`Design`. ``neck_channels`` are those of the feature pyramid and of the
            head; ``width_mult`` is the width of the backbone; ``norm`` its normalisation (``"batch"`` trained,
            ``"sync"`` over all processes, ``"eval"`` with fixed statistics, ``"frozen"``); ``head_norm="group"`` puts
            GroupNorm into RetinaNet's head, which has none by default (FCOS' and GFL's always have it);
            ``anchor_scale`` is the side of the smallest square anchor in cells (None: 4 for RetinaNet, 8 for GFL and
            Faster R-CNN; FCOS has none); ``image_mean`` and ``image_std`` are per channel of images in 0..1; an image
            is resized to ``shorter_side`` pixels unless its longer side would exceed ``longer_side``.

    Returns:
        A torchvision ``RetinaNet``, ``FCOS`` or ``FasterRCNN``, a subclass of one, or a ``GFL`` in their style. The
        labels it returns are 0..K-1; those of a Faster R-CNN are 1..K, with 0 for the background.
    """
    if name in PUBLISHED:
        return library.published(name, num_classes, **options)
    family, backbone = split_name(name)
    design = Design(backbone, num_classes, **options)
    return BUILDERS[family, conventions](design, **(settings or {}))


def load(folder: str | Path) -> tuple[nn.Module, list[str]]:
    """Read an exported student: the detector in ``eval()``, and the names of its labels."""
    description = json.loads((Path(folder) / "detector.json").read_text())
    model = build_network(**description["build"])
    model.load_state_dict(torch.load(Path(folder) / "weights.pt", map_location="cpu", weights_only=True))
    return model.eval(), description["labels"]


def main(folder: str | Path, images: Sequence[str]) -> None:
    """Print what an exported student finds in image files."""
    from torchvision.io import ImageReadMode, decode_image

    model, names = load(folder)
    for image in images:
        with torch.no_grad():
            found = model([decode_image(image, ImageReadMode.RGB) / 255])[0]
        print(image)
        for box, label, score in zip(found["boxes"].tolist(), found["labels"], found["scores"], strict=True):
            print(f"  {names[label]:20} {score:.2f}  " + " ".join(f"{side:.1f}" for side in box))
