"""The table of detector families, with all differences between them.

No other module compares or lists the names of families. Code that depends on a difference reads a field of
:class:`Family` or of :class:`understudy.outputs.Spec`, into which :attr:`Family.facts` goes. Another package adds a
family by an entry point of the group ``understudy.detectors`` that names a :class:`Family`.

This module imports neither torch nor a family's code, which is named by its import path.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.plugins import load_plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of detector.

    Attributes:
        name: as it begins the names of its detectors, ``<name>_<backbone>``.
        title: as texts write it.
        networks: module of its plain networks; has ``BUILDERS``, a function of a ``Design`` by conventions.
        openers: module of its :class:`~understudy.detectors.Detector` classes; has ``OPENERS``, the detector class for
            each class of plain network, subclasses first.
        mmdet: module that reads its mmdet checkpoints; has ``LAYOUT``. None: these cannot be imported.
        backbones: names that may follow the family's name and are listed; None: every backbone of the package.
        refused: options of ``build_detector`` that have no meaning for it, each with the reason.
        plain_head: whether its head, as published, has convolutions without normalisation layers.
        sgd_lr: default learning rate with SGD, for 16 images per step.
        facts: fields of :class:`~understudy.outputs.Spec` that hold for each of its detectors.
        usual: the other fields that differ between families, of its detectors as they are usually built: ResNet-50,
            80 classes, a neck of 256 channels.
        weights: default weights that it brings along: by method, then by term. They take precedence over those of the
            method.
    """

    name: str
    title: str
    networks: str
    openers: str
    mmdet: str | None = None
    backbones: tuple[str, ...] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    plain_head: bool = False
    sgd_lr: float = 0.01
    facts: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


_PYRAMID = {"strides": (8, 16, 32, 64, 128), "stage_channels": (512, 1024, 2048), "stage_strides": (8, 16, 32)}
_TOWERS = {"tower_channels": (256,) * 4, "assigns_by_anchors": True}

FAMILIES: dict[str, Family] = {
    "retinanet": Family(
        name="retinanet",
        title="RetinaNet",
        networks="understudy.networks.retinanet",
        openers="understudy.detectors.retinanet",
        mmdet="understudy.checkpoints.mmdet_retinanet",
        plain_head=True,
        usual={**_PYRAMID, **_TOWERS, "num_anchors": 9},
    ),
    "fcos": Family(
        name="fcos",
        title="FCOS",
        networks="understudy.networks.fcos",
        openers="understudy.detectors.fcos",
        mmdet="understudy.checkpoints.mmdet_fcos",
        refused={"anchor_scale": "it scales anchors, and an FCOS predicts at points"},
        facts={"points": True, "centerness": True},
        usual={**_PYRAMID, **_TOWERS, "num_anchors": 1, "box_code": "distances in strides"},
    ),
    "gfl": Family(
        name="gfl",
        title="GFL",
        networks="understudy.networks.gfl",
        openers="understudy.detectors.gfl",
        mmdet="understudy.checkpoints.mmdet_gfl",
        usual={**_PYRAMID, **_TOWERS, "num_anchors": 1, "box_code": "distributions", "box_size": 4 * 17},
    ),
    "faster_rcnn": Family(
        name="faster_rcnn",
        title="Faster R-CNN",
        networks="understudy.networks.faster_rcnn",
        openers="understudy.detectors.faster_rcnn",
        mmdet="understudy.checkpoints.mmdet_faster_rcnn",
        refused={"head_norm": "it normalises heads of convolutions, and a Faster R-CNN has none"},
        sgd_lr=0.02,
        facts={"two_stage": True, "objectness": True},
        usual={
            "num_classes": 1,
            "strides": (4, 8, 16, 32, 64),
            "stage_channels": (256, 512, 1024, 2048),
            "stage_strides": (4, 8, 16, 32),
            "num_anchors": 3,
            "assigns_by_anchors": True,
        },
    ),
}
"""Every family by name: the package's own, then those of installed plugins."""

FAMILIES |= load_plugins("understudy.detectors", FAMILIES)


def family_of(detector: str) -> Family | None:
    """Return the family that a detector's name begins with, e.g. that of ``"faster_rcnn_resnet50"``; None: of none."""
    found = [family for name, family in FAMILIES.items() if detector.startswith(f"{name}_")]
    return max(found, key=lambda family: len(family.name), default=None)
