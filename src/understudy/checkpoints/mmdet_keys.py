"""Translate names and layouts of mmdet's parameters into those of the plain networks."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from understudy.checkpoints.mmdet_layout import BOXES, CLASSES, Keys, MMDetLayout

UNKNOWN = "mmdet:"
"""Prefix of untranslated names: parameters that the plain network does not have."""

_SCALE = re.compile(r"bbox_head\.scales\.(\d+)\.scale")
_CENTERNESS = re.compile(r"bbox_head\.(?:conv|fcos)_centerness\.(\w+)")
_FPN_CONV = re.compile(r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)")
_WITHOUT_MEANING = re.compile(r".*\.num_batches_tracked|bbox_head\.integral\.project")


def translate(
    state_dict: Mapping[str, Tensor], layout: MMDetLayout, *, centerness_on_reg: bool = False, backbone: Keys = ()
) -> dict[str, Tensor]:
    """Rename and rearrange the weights of an mmdet detector.

    The order of the stem's input channels does not change, because it is not in the state dict.

    Args:
        state_dict: state dict of mmdet 2.x or 3.x, without a ``module.`` prefix.
        layout: the family's layout.
        centerness_on_reg: centre-ness is computed from the box tower, not from the class tower.
        backbone: names of the backbone's parameters; empty: those of a ResNet.

    Returns:
        Weights by the plain network's names, without counters of batches. A parameter that no detector of this family
        has keeps its name after :data:`UNKNOWN`.
    """
    laterals = sum(re.fullmatch(r"neck\.lateral_convs\.\d+\.conv\.weight", key) is not None for key in state_dict)
    centerness = BOXES if centerness_on_reg else CLASSES
    weights: dict[str, Tensor] = {}
    scales: dict[int, Tensor] = {}
    for key, value in state_dict.items():
        if _WITHOUT_MEANING.fullmatch(key):
            continue
        if found := _SCALE.fullmatch(key):
            scales[int(found[1])] = value.reshape(())
        elif found := _CENTERNESS.fullmatch(key):
            weights[f"{centerness}.bbox_ctrness.{found[1]}"] = value
        elif found := _FPN_CONV.fullmatch(key):
            weights[_pyramid_name(int(found[1]), laterals) + found[2]] = value
        else:
            weights[_renamed(key, (*backbone, *layout.keys))] = value
    if scales:
        weights[f"{BOXES}.scales"] = torch.stack([scales[level] for level in sorted(scales)])
    layout.rearrange(weights)
    return weights


def _renamed(key: str, table: Keys) -> str:
    for pattern, name in table:
        if found := re.fullmatch(pattern, key):
            return found.expand(name)
    return UNKNOWN + key


def _pyramid_name(number: int, laterals: int) -> str:
    """Return the name of a pyramid convolution. mmdet numbers P6 and P7 after the levels with a lateral convolution."""
    if number < laterals:
        return f"backbone.fpn.layer_blocks.{number}.0."
    return f"backbone.fpn.extra_blocks.p{number - laterals + 6}."
