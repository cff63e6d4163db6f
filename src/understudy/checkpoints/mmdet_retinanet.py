"""RetinaNet in mmdet's checkpoints."""

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

LAYOUT = MMDetLayout(
    layers=(r"bbox_head\.retina_cls", r"bbox_head\.retina_reg"),
    head="RetinaHead",
    settings=(
        *coarse_levels("on_input", relu=False),
        Setting("anchor_scale", f"{ANCHORS}.octave_base_scale", 4.0),
        Setting("octaves", f"{ANCHORS}.scales_per_octave", 3),
        Setting("ratios", f"{ANCHORS}.ratios", [0.5, 1.0, 2.0]),
        *detection(0.5),
        CANDIDATES,
    ),
    expected=ONE_STAGE,
    keys=dense_keys("retina"),
    sizes=lambda tensors: tensors.dense_head("retina", "RetinaNet", anchors=None),
    sizes_in_config={"stacked_convs": "model.bbox_head.stacked_convs"},
    head_norm="group",
)
