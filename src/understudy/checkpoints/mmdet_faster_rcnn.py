"""Faster R-CNN in mmdet's checkpoints."""

from typing import Any

import torch
from torch import Tensor

from understudy.checkpoints.mmdet_layout import COMMON, COMMON_KEYS, MMDetLayout, Setting, detection
from understudy.checkpoints.mmdet_sizes import BackboneSizes

_RPN, _BOX_HEAD = "model.rpn_head", "model.roi_head.bbox_head"
_POOLING = "model.roi_head.bbox_roi_extractor"


def _only(values: Any) -> Any:
    """Return the scale of an RPN's anchors, from a list of one."""
    return values[0] if isinstance(values, list | tuple) and len(values) == 1 else values


def _sizes(tensors: BackboneSizes) -> dict[str, int]:
    return {
        "anchors": tensors.shape("rpn_head.rpn_cls.weight", 4)[0],
        "num_classes": tensors.shape("roi_head.bbox_head.fc_cls.weight", 2)[0] - 1,
        "fc_channels": tensors.shape("roi_head.bbox_head.shared_fcs.0.weight", 2)[0],
    }


def _background_first(weights: dict[str, Tensor]) -> None:
    """Move the background from the last output to the first, and add its box deltas, which mmdet does not have."""
    for part in ("weight", "bias"):
        scores = weights.get(f"roi_heads.box_predictor.cls_score.{part}")
        if scores is None or not scores.ndim:
            continue
        weights[f"roi_heads.box_predictor.cls_score.{part}"] = scores.roll(1, dims=0)
        name = f"roi_heads.box_predictor.bbox_pred.{part}"
        if (deltas := weights.get(name)) is not None and deltas.ndim:
            if len(deltas) == 4:  # one box for all classes
                deltas = torch.cat([deltas] * (len(scores) - 1))
            weights[name] = torch.cat([torch.zeros_like(deltas[:4]), deltas])


LAYOUT = MMDetLayout(
    layers=(r"rpn_head\.rpn_cls", r"roi_head\.bbox_head\.fc_cls"),
    head="Shared2FCBBoxHead",
    head_path=_BOX_HEAD,
    settings=(
        Setting("anchor_scale", f"{_RPN}.anchor_generator.scales", 8.0, convert=_only),
        Setting("ratios", f"{_RPN}.anchor_generator.ratios", [0.5, 1.0, 2.0]),
        *detection(0.5, "model.test_cfg.rcnn"),
        Setting("proposals", "model.test_cfg.rpn.max_per_img", 1000),
        Setting("rpn_candidates", "model.test_cfg.rpn.nms_pre", 1000),
        Setting("rpn_nms_threshold", "model.test_cfg.rpn.nms.iou_threshold", 0.7),
    ),
    expected=COMMON
    | {
        "model.neck.start_level": (0,),
        f"{_RPN}.anchor_generator.type": ("AnchorGenerator",),
        f"{_RPN}.anchor_generator.strides": ([4, 8, 16, 32, 64],),
        f"{_RPN}.anchor_generator.center_offset": (0,),
        f"{_RPN}.bbox_coder.target_stds": ([1, 1, 1, 1],),
        f"{_RPN}.loss_cls.use_sigmoid": (True,),
        f"{_POOLING}.type": ("SingleRoIExtractor",),
        f"{_POOLING}.roi_layer.type": ("RoIAlign",),
        f"{_POOLING}.roi_layer.output_size": (7,),
        f"{_POOLING}.roi_layer.sampling_ratio": (0,),
        f"{_POOLING}.roi_layer.aligned": (True,),
        f"{_POOLING}.featmap_strides": ([4, 8, 16, 32],),
        f"{_POOLING}.finest_scale": (56,),
        f"{_BOX_HEAD}.bbox_coder.target_stds": ([0.1, 0.1, 0.2, 0.2],),
        f"{_BOX_HEAD}.loss_cls.use_sigmoid": (False,),
    },
    keys=(
        *COMMON_KEYS,
        (r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
        (r"rpn_head\.rpn_conv\.(\d+)\.conv\.(\w+)", r"rpn.head.conv.\1.0.\2"),
        (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.head.cls_logits.\1"),
        (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.head.bbox_pred.\1"),
        (r"roi_head\.bbox_head\.shared_fcs\.0\.(\w+)", r"roi_heads.box_head.fc6.\1"),
        (r"roi_head\.bbox_head\.shared_fcs\.1\.(\w+)", r"roi_heads.box_head.fc7.\1"),
        (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    ),
    sizes=_sizes,
    sizes_in_config={"fc_channels": f"{_BOX_HEAD}.fc_out_channels"},
    rearrange=_background_first,
)
