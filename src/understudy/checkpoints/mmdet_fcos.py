"""FCOS in mmdet's checkpoints."""

from typing import Any

from understudy.checkpoints.mmdet_layout import (
    CANDIDATES,
    ONE_STAGE,
    MMDetLayout,
    Setting,
    coarse_levels,
    dense_keys,
    detection,
    last_name,
)
from understudy.checkpoints.mmdet_sizes import BackboneSizes


def _box_loss(value: Any) -> Any:
    return {"IoULoss": "iou", "GIoULoss": "giou"}.get(last_name(value), value)


def _sizes(tensors: BackboneSizes) -> dict[str, int]:
    layer = "fcos" if "bbox_head.fcos_cls.weight" in tensors.state else "conv"  # fcos: in early 2.x
    return tensors.dense_head(layer, "FCOS")


_FLAGS = ("norm_on_bbox", "centerness_on_reg", "center_sampling")

LAYOUT = MMDetLayout(
    layers=tuple(rf"bbox_head\.(conv|fcos)_{layer}" for layer in ("cls", "reg", "centerness")),
    head="FCOSHead",
    settings=(
        *coarse_levels("on_output", relu=True),
        *(Setting(flag, f"model.bbox_head.{flag}", False, False) for flag in _FLAGS),
        Setting("center_radius", "model.bbox_head.center_sample_radius", 1.5, 1.5),
        Setting("box_loss", "model.bbox_head.loss_bbox.type", "iou", "IoULoss", _box_loss, ("iou", "giou")),
        *detection(0.5),
        CANDIDATES,
    ),
    expected=ONE_STAGE
    | {
        "model.bbox_head.regress_ranges": ([[-1, 64], [64, 128], [128, 256], [256, 512], [512, 1e8]],),
        "model.bbox_head.cls_predictor_cfg": (None,),
    },
    keys=dense_keys("conv", "fcos"),
    sizes=_sizes,
    sizes_in_config={"stacked_convs": "model.bbox_head.stacked_convs"},
    usually_caffe=True,
    caffe={"mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False},
    # mmdet's own configs set these together, and only for heads whose towers have biases.
    with_bias={
        "norm_on_bbox": True,
        "centerness_on_reg": True,
        "center_sampling": True,
        "box_loss": "giou",
        "nms_threshold": 0.6,
    },
)
