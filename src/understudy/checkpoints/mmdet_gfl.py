"""GFL in mmdet's checkpoints."""

from understudy.checkpoints.mmdet_layout import (
    ANCHORS,
    CANDIDATES,
    ONE_STAGE,
    MMDetLayout,
    Setting,
    coarse_levels,
    dense_keys,
    detection,
)
from understudy.checkpoints.mmdet_sizes import BackboneSizes


def _sizes(tensors: BackboneSizes) -> dict[str, int]:
    sizes = tensors.dense_head("gfl", "GFL")
    return sizes | {"reg_max": sizes["box_maps"] // 4 - 1}


LAYOUT = MMDetLayout(
    layers=(r"bbox_head\.gfl_cls", r"bbox_head\.gfl_reg"),
    head="GFLHead",
    settings=(
        *coarse_levels("on_output", relu=False),
        Setting("anchor_scale", f"{ANCHORS}.octave_base_scale", 8.0),
        *detection(0.6),
        CANDIDATES,
    ),
    expected=ONE_STAGE | {f"{ANCHORS}.ratios": ([1],), f"{ANCHORS}.scales_per_octave": (1,)},
    keys=dense_keys("gfl"),
    sizes=_sizes,
    sizes_in_config={
        "reg_max": "model.bbox_head.reg_max",
        "stacked_convs": "model.bbox_head.stacked_convs",
    },
)
