"""Import FCOS as its authors' repository saves it (on maskrcnn-benchmark): names and facts in mmdet's terms."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from understudy.checkpoints.import_options import ImportedDetector, ImportOptions
from understudy.checkpoints.mmdet import from_mmdet

_NAMES = (
    (r"backbone\.body\.stem\.(.+)", r"backbone.\1"),
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"bbox_head.conv_cls.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"bbox_head.conv_reg.\1"),
    (r"rpn\.head\.centerness\.(\w+)", r"bbox_head.conv_centerness.\1"),
    (r"rpn\.head\.(scales\..+)", r"bbox_head.\1"),
    # The pyramid's blocks are numbered by the stages from C2 on, which it does not read.
    *((rf"backbone\.fpn\.fpn_inner{n + 2}\.(\w+)", rf"neck.lateral_convs.{n}.conv.\1") for n in range(3)),
    *((rf"backbone\.fpn\.fpn_layer{n + 2}\.(\w+)", rf"neck.fpn_convs.{n}.conv.\1") for n in range(3)),
    *((rf"backbone\.fpn\.top_blocks\.p{n + 6}\.(\w+)", rf"neck.fpn_convs.{n + 3}.conv.\1") for n in range(2)),
)
_TOWER = re.compile(r"rpn\.head\.(cls|bbox)_tower\.(\d+)\.(\w+)")

_IMPROVED = ("norm_on_bbox", "centerness_on_reg", "center_sampling")
_EPS = 1e-5
"""Added to the variance by the plain network's frozen normalisation; the authors' adds nothing."""


def is_by_fcos_authors(state: Mapping[str, Tensor]) -> bool:
    """Check whether these are the names of an FCOS' parameters in its authors' repository."""
    return "rpn.head.centerness.weight" in state and any(key.startswith("rpn.head.cls_tower.") for key in state)


def from_fcos_authors(state: Mapping[str, Tensor], options: ImportOptions) -> ImportedDetector:
    """Describe an FCOS of its authors by the names and options of this package.

    Its facts are the defaults of the repository's config. The file contains none.

    Args:
        state: its state dict, without a ``module.`` prefix.
        options: the user's options.

    Raises:
        UserError: as :func:`.from_mmdet`.
    """
    renamed = {_renamed(key): value for key, value in state.items()}
    grouped = renamed.get("backbone.layer1.0.conv2.weight")
    residual = grouped is not None and grouped.ndim == 4
    plain = residual and grouped.shape[0] == grouped.shape[1]
    if residual:
        renamed = {key: value - _EPS if key.endswith("running_var") else value for key, value in renamed.items()}
    found = from_mmdet(renamed, {}, options, _config("caffe" if plain else "pytorch"))
    assumptions = (
        [] if options.mean or options.std else ["the images are normalised as for Caffe's backbones (--mean, --std)"]
    )
    if residual and options.style is None:
        where = "first 1x1" if plain else "3x3"
        assumptions.append(f"bottlenecks stride in their {where} convolution (--style)")
    if "norm_on_bbox" not in options.settings:
        flags = " ".join(f"--set {name}=true" for name in _IMPROVED)
        assumptions.append(f"it has none of the improvements of the authors' later models, FCOS_imprv_* ({flags})")
    return replace(found, source="the FCOS authors' repository", assumptions=(*assumptions, *found.assumptions))


def _renamed(key: str) -> str:
    if found := _TOWER.fullmatch(key):
        tower, layer = {"cls": "cls", "bbox": "reg"}[found[1]], int(found[2])
        return f"bbox_head.{tower}_convs.{layer // 3}.{('conv', 'gn', 'relu')[layer % 3]}.{found[3]}"
    for pattern, name in _NAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key


def _config(style: str) -> dict[str, Any]:
    """Return the defaults of the repository as a config of mmdet."""
    return {
        "model": {
            "data_preprocessor": {"mean": [102.9801, 115.9465, 122.7717], "std": [1.0] * 3, "bgr_to_rgb": False},
            "backbone": {"style": style},
            "neck": {"add_extra_convs": "on_output", "relu_before_extra_convs": True},
            "test_cfg": {"score_thr": 0.05, "nms": {"iou_threshold": 0.6}, "nms_pre": 1000, "max_per_img": 100},
        },
        "test_pipeline": [{"type": "Resize", "scale": (1333, 800)}],
    }
