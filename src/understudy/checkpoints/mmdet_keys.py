"""Parameter names and layouts of mmdet, in ours; what every parameter is called is written here and nowhere else."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

UNKNOWN = "mmdet:"
"""Prefix of what is returned untranslated, because no supported detector has it."""

_COMMON = (
    (r"backbone\.(conv1|bn1|layer\d.*)\.(\w+)", r"backbone.body.\1.\2"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", r"backbone.fpn.inner_blocks.\1.0.\2"),
)
_CLASSES, _BOXES = "head.classification_head", "head.regression_head"
_DENSE_HEAD = (
    *_COMMON,
    (r"bbox_head\.cls_convs\.(\d+)\.conv\.(\w+)", rf"{_CLASSES}.conv.\1.0.\2"),
    (r"bbox_head\.cls_convs\.(\d+)\.gn\.(\w+)", rf"{_CLASSES}.conv.\1.1.\2"),
    (r"bbox_head\.reg_convs\.(\d+)\.conv\.(\w+)", rf"{_BOXES}.conv.\1.0.\2"),
    (r"bbox_head\.reg_convs\.(\d+)\.gn\.(\w+)", rf"{_BOXES}.conv.\1.1.\2"),
    (r"bbox_head\.(?:retina|conv|fcos|gfl)_cls\.(\w+)", rf"{_CLASSES}.cls_logits.\1"),
    (r"bbox_head\.(?:retina|conv|fcos|gfl)_reg\.(\w+)", rf"{_BOXES}.bbox_reg.\1"),
)
_TWO_STAGES = (
    *_COMMON,
    (r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"rpn_head\.rpn_conv\.(\d+)\.conv\.(\w+)", r"rpn.head.conv.\1.0.\2"),
    (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"roi_head\.bbox_head\.shared_fcs\.0\.(\w+)", r"roi_heads.box_head.fc6.\1"),
    (r"roi_head\.bbox_head\.shared_fcs\.1\.(\w+)", r"roi_heads.box_head.fc7.\1"),
    (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
)
_SCALE = re.compile(r"bbox_head\.scales\.(\d+)\.scale")
_CENTERNESS = re.compile(r"bbox_head\.(?:conv|fcos)_centerness\.(\w+)")
_FPN_CONV = re.compile(r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)")
_WITHOUT_MEANING = re.compile(r".*\.num_batches_tracked|bbox_head\.integral\.project")


def translate(state_dict: Mapping[str, Tensor], family: str, *, centerness_on_reg: bool = False) -> dict[str, Tensor]:
    """Rename and lay out the weights of an mmdet detector as ours.

    The order of the stem's input channels is left as it is: mmdet's state dict does not say whether it is RGB or BGR.

    Args:
        state_dict: of mmdet 2.x or 3.x, without a ``module.`` prefix.
        family: ``"retinanet"``, ``"fcos"``, ``"gfl"`` or ``"faster_rcnn"``.
        centerness_on_reg: FCOS computes centre-ness from the boxes' branch, not from the classes'.

    Returns:
        Our names, for batch normalisation that does not count its batches. A key that no detector of this family has
        keeps its name after :data:`UNKNOWN`.
    """
    table = _TWO_STAGES if family == "faster_rcnn" else _DENSE_HEAD
    laterals = sum(re.fullmatch(r"neck\.lateral_convs\.\d+\.conv\.weight", key) is not None for key in state_dict)
    centerness = _BOXES if centerness_on_reg else _CLASSES
    ours: dict[str, Tensor] = {}
    scales: dict[int, Tensor] = {}
    for key, value in state_dict.items():
        if _WITHOUT_MEANING.fullmatch(key):
            continue
        if found := _SCALE.fullmatch(key):
            scales[int(found[1])] = value.reshape(())
        elif found := _CENTERNESS.fullmatch(key):
            ours[f"{centerness}.bbox_ctrness.{found[1]}"] = value
        elif found := _FPN_CONV.fullmatch(key):
            ours[_pyramid_name(int(found[1]), laterals) + found[2]] = value
        else:
            ours[_renamed(key, table)] = value
    if scales:
        ours[f"{_BOXES}.scales"] = torch.stack([scales[level] for level in sorted(scales)])
    if family == "faster_rcnn":
        _background_first(ours)
    return ours


def _renamed(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in table:
        if found := re.fullmatch(pattern, key):
            return found.expand(name)
    return UNKNOWN + key


def _pyramid_name(number: int, laterals: int) -> str:
    """Name a pyramid convolution: mmdet counts those of P6 and P7 on after those of the levels that have a lateral."""
    if number < laterals:
        return f"backbone.fpn.layer_blocks.{number}.0."
    return f"backbone.fpn.extra_blocks.p{number - laterals + 6}."


def _background_first(ours: dict[str, Tensor]) -> None:
    """Move the background from the last class to the first, and give it the box deltas that mmdet has not."""
    for part in ("weight", "bias"):
        scores = ours.get(f"roi_heads.box_predictor.cls_score.{part}")
        if scores is None or not scores.ndim:
            continue
        ours[f"roi_heads.box_predictor.cls_score.{part}"] = scores.roll(1, dims=0)
        name = f"roi_heads.box_predictor.bbox_pred.{part}"
        if (deltas := ours.get(name)) is not None and deltas.ndim:
            if len(deltas) == 4:  # one box for all classes
                deltas = torch.cat([deltas] * (len(scores) - 1))
            ours[name] = torch.cat([torch.zeros_like(deltas[:4]), deltas])
