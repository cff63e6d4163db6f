"""Import detectors of mmdet 2.x and 3.x: sizes from their tensors, settings from their config."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor

from understudy.checkpoints.class_names import category_ids
from understudy.checkpoints.import_options import ImportedDetector, ImportOptions, unsupported
from understudy.checkpoints.mmdet_config import look_up, parse_config
from understudy.checkpoints.mmdet_keys import translate
from understudy.checkpoints.mmdet_layout import MMDetLayout
from understudy.checkpoints.mmdet_reader import OptionsReader
from understudy.checkpoints.mmdet_sizes import BackboneSizes
from understudy.detectors.families import FAMILIES, Family
from understudy.errors import UserError

_OTHER_PARTS = {  # unsupported parts, by patterns of their parameters' names
    r"roi_head\.mask_head\.|mask_head\.": "a mask head (as in Mask R-CNN)",
    r"roi_head\.bbox_head\.\d+\.": "a cascade of box heads (as in Cascade R-CNN)",
    r"backbone\.stem\.": "a ResNet with a deep stem (ResNetV1d)",
    r".*\.conv\d?_offset\.": "deformable convolutions",
    r"backbone\.(stage\d|transition\d)\.": "an HRNet",
    r".*\.(query_embedding|sampling_offsets|in_proj_weight)|query_embedding\.|encoder\.": "a transformer (DETR)",
    r"backbone\.(dark|stem|stage)|bbox_head\.(multi_level|convs_pred)": "parts of a YOLO",
    r"bbox_head\.atss_": "an ATSS head",
}


def is_mmdet(state: Mapping[str, Tensor]) -> bool:
    """Check whether these are the names of an mmdet detector's parameters."""
    return any(re.match(r"backbone\.(?!body\.|fpn\.)", key) for key in state) and any(
        key.startswith(("neck.", "bbox_head.", "rpn_head.", "roi_head.", "mask_head.", "panoptic")) for key in state
    )


def layout_of(family: Family) -> MMDetLayout | None:
    """Return the layout of a family's mmdet checkpoints; None: they cannot be imported."""
    return import_module(family.mmdet).LAYOUT if family.mmdet else None


def from_mmdet(
    state: Mapping[str, Tensor], meta: Any, options: ImportOptions, config: Mapping[str, Any] | None = None
) -> ImportedDetector:
    """Describe an mmdet detector by the names and options of this package.

    Args:
        state: its state dict.
        meta: ``"meta"`` of its checkpoint.
        options: the user's options.
        config: its config, instead of the one in ``meta``.

    Raises:
        UserError: listing every fault: the detector is not supported, its tensors and its config disagree, or an
            option is missing.
    """
    meta = meta if isinstance(meta, Mapping) else {}
    config = config or parse_config(meta.get("cfg", meta.get("config")))
    if not isinstance(look_up(config, "model"), Mapping):
        config = None
    family, layout = _family(state, config, options.architecture)
    tensors = BackboneSizes(state)
    reader = OptionsReader(family, layout, tensors, config, options)
    build = reader.build()
    names = reader.class_names(meta)
    if reader.faults:
        raise UserError.listing(f"This {family.title} of mmdet cannot be imported:", reader.faults)
    centerness_on_reg = build["settings"].get("centerness_on_reg", False)
    weights = translate(state, layout, centerness_on_reg=centerness_on_reg, backbone=tensors.keys)
    if not reader.rgb:
        weights[tensors.stem] = weights[tensors.stem][:, [2, 1, 0]]
    version = meta.get("mmdet_version")
    source = f"mmdet {version}" if isinstance(version, str) else "mmdet"
    return ImportedDetector(source, build, weights, names, category_ids(names), tuple(reader.assumptions))


def _family(
    state: Mapping[str, Tensor], config: Mapping[str, Any] | None, asked: str | None
) -> tuple[Family, MMDetLayout]:
    layouts = {name: layout for name, family in FAMILIES.items() if (layout := layout_of(family))}
    found = [name for name, layout in layouts.items() if all(_has(state, layer) for layer in layout.layers)]
    other_parts = [part for pattern, part in _OTHER_PARTS.items() if any(re.match(pattern, key) for key in state)]
    if asked is not None and asked not in layouts:
        raise UserError(f"--architecture: expected one of {', '.join(layouts)} for a file of mmdet, got {asked!r}.")
    if other_parts or not (found or asked):
        paths = ("model.type", "model.bbox_head.type")
        facts = [f"its config has {path} = {kind}" for path in paths if (kind := look_up(config, path))]
        facts += [f"it has {part}" for part in other_parts]
        if not any(key.startswith(("bbox_head.", "roi_head.", "rpn_head.")) for key in state):
            facts.append("it has no head, so it is not a detector")
        raise unsupported("This detector of mmdet cannot be imported:", state, facts)
    name = asked or found[0]
    return FAMILIES[name], layouts[name]


def _has(state: Mapping[str, Tensor], layer: str) -> bool:
    return any(re.fullmatch(rf"{layer}\.weight", key) for key in state)
