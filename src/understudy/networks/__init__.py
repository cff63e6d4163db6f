"""Detectors by name, built from torch and torchvision alone.

``understudy export`` copies this folder beside a student as ``detector/``. The student then runs without understudy::

    from detector import load
    model, classes = load("exported")
    detections = model([image])  # image: (3, H, W) float in 0..1; boxes are in pixels of this image

or, on the command line, ``python exported/detector photo.jpg``.

A family of detectors is a module here that has ``BUILDERS``: by conventions, a function of a :class:`Design` whose
keyword arguments are the family's settings. The module has the name with which the family's detectors begin.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from torch import nn

from .backbones import BACKBONES
from .design import Design
from .published import PUBLISHED, build_published

__all__ = ["BACKBONES", "PUBLISHED", "Design", "build_network", "load", "main", "split_name"]

Builders = Mapping[str, Callable[..., nn.Module]]
"""By conventions, a function that builds the networks of a family."""


def split_name(name: str) -> tuple[str, str]:
    """Split a detector's name ``<family>_<backbone>`` into family and backbone.

    Raises:
        ValueError: the name begins with no family of this folder.

    Examples:
        >>> split_name("faster_rcnn_resnet50")
        ('faster_rcnn', 'resnet50')
    """
    modules = sorted(module.name for module in iter_modules(__path__) if module.name != "__main__")
    parts = name.split("_")
    for count in range(len(parts) - 1, 0, -1):  # the longest name of a family that fits
        family = "_".join(parts[:count])
        if family in modules and _builders(family):
            return family, "_".join(parts[count:])
    families = [module for module in modules if _builders(module)]
    raise ValueError(f"unknown detector {name!r}; expected <family>_<backbone>, with a family of {', '.join(families)}")


def build_network(
    name: str,
    num_classes: int,
    *,
    conventions: str = "torchvision",
    settings: Mapping[str, Any] | None = None,
    builders: Builders | None = None,
    **options: Any,
) -> nn.Module:
    """Build a detector with random weights.

    Args:
        name: ``<family>_<backbone>``, for example ``"retinanet_resnet50"``, or one of ``PUBLISHED``.
        num_classes: classes K, without background.
        conventions: the library whose implementation to match, ``"torchvision"`` or ``"mmdet"``. The two differ in
            anchors, coarse levels, heads and losses. A family that torchvision does not have is the same in both.
        settings: settings of this family in these conventions, by name.
        builders: of a family that is not in this folder; then ``backbone`` must be given as an option.
        **options: the other fields of :class:`Design`, or arguments of :func:`.build_published`.

    Returns:
        A detector that is called as torchvision's are. Its labels are 0..K-1. Those of a Faster R-CNN are 1..K, with 0
        for the background.

    Raises:
        ValueError: there is no such detector, or an option or a setting has no valid value.

    Examples:
        >>> model = build_network("gfl_mobilenet_v2", 20, neck_channels=32, width_mult=0.35, norm="frozen").eval()
        >>> sorted(model([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'scores']
    """
    if name in PUBLISHED:
        return build_published(name, num_classes, **options)
    if builders is None:
        family, options["backbone"] = split_name(name)
        builders = _builders(family)
    if conventions not in builders:
        raise ValueError(f"conventions: expected one of {', '.join(builders)}, got {conventions!r}")
    return builders[conventions](Design(num_classes=num_classes, **options), **(settings or {}))


def load(folder: str | Path) -> tuple[nn.Module, list[str]]:
    """Load an exported student.

    Args:
        folder: the exported folder.

    Returns:
        The detector in ``eval()``, and the names of its labels.
    """
    description = json.loads((Path(folder) / "detector.json").read_text(encoding="utf-8"))
    model = build_network(**description["build"])
    model.load_state_dict(torch.load(Path(folder) / "weights.pt", map_location="cpu", weights_only=True))
    return model.eval(), description["labels"]


def main(folder: str | Path, images: Sequence[str]) -> None:
    """Print the detections of an exported student in image files."""
    from torchvision.io import ImageReadMode, decode_image

    model, names = load(folder)
    for image in images:
        with torch.no_grad():
            found = model([decode_image(image, ImageReadMode.RGB) / 255])[0]
        print(image)
        for box, label, score in zip(found["boxes"].tolist(), found["labels"], found["scores"], strict=True):
            print(f"  {names[label]:20} {score:.2f}  " + " ".join(f"{side:.1f}" for side in box))


def _builders(module: str) -> Builders:
    """Return the builders of a module in this folder, none if it is no family's."""
    return getattr(import_module(f".{module}", __name__), "BUILDERS", {})
