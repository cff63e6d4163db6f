"""What mmdet's configs say about a detector: where, in which words, and what its own configs of each family have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _same(value: Any) -> Any:
    return value


def _extra_levels(value: Any) -> Any:
    return "on_input" if value is True else value


def _box_loss(value: Any) -> Any:
    return {"IoULoss": "iou", "GIoULoss": "giou"}.get(last_name(value), value)


def _only(values: Any) -> Any:
    """The one scale of an RPN's anchors."""
    return values[0] if isinstance(values, list | tuple) and len(values) == 1 else values


def last_name(kind: Any) -> Any:
    """``RetinaNet`` of ``mmdet.RetinaNet`` or ``mmdet.models.detectors.RetinaNet``, as newer configs have it."""
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a plain network.

    Attributes:
        name: of the builder's argument.
        path: where a config says it.
        usual: in mmdet's own config of this family.
        unsaid: mmdet's default where a config does not say it; None: the usual.
        convert: from the config's value to ours.
        allowed: the values, where there are but a few.
    """

    name: str
    path: str
    usual: Any
    unsaid: Any = None
    convert: Callable[[Any], Any] = _same
    allowed: tuple[Any, ...] = ()


def _detection(nms_threshold: float, where: str = "model.test_cfg") -> tuple[Setting, ...]:
    return (
        Setting("score_threshold", f"{where}.score_thr", 0.05),
        Setting("nms_threshold", f"{where}.nms.iou_threshold", nms_threshold),
        Setting("detections", f"{where}.max_per_img", 100),
    )


def _coarse(levels: str, relu: str, usual: tuple[str, bool]) -> tuple[Setting, ...]:
    sources = ("on_input", "on_output")
    return (
        Setting(levels, "model.neck.add_extra_convs", usual[0], False, _extra_levels, sources),
        Setting(relu, "model.neck.relu_before_extra_convs", usual[1], False),
    )


_CANDIDATES = Setting("candidates", "model.test_cfg.nms_pre", 1000)
_ANCHORS = "model.bbox_head.anchor_generator"
_FLAGS = ("norm_on_bbox", "centerness_on_reg", "center_sampling")
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "retinanet": (
        *_coarse("extra_levels", "extra_relu", ("on_input", False)),
        Setting("anchor_scale", f"{_ANCHORS}.octave_base_scale", 4.0),
        Setting("octaves", f"{_ANCHORS}.scales_per_octave", 3),
        Setting("ratios", f"{_ANCHORS}.ratios", [0.5, 1.0, 2.0]),
        *_detection(0.5),
        _CANDIDATES,
    ),
    "fcos": (
        *_coarse("extra_levels", "extra_relu", ("on_output", True)),
        *(Setting(flag, f"model.bbox_head.{flag}", False, False) for flag in _FLAGS),
        Setting("center_radius", "model.bbox_head.center_sample_radius", 1.5, 1.5),
        Setting("box_loss", "model.bbox_head.loss_bbox.type", "iou", "IoULoss", _box_loss, ("iou", "giou")),
        *_detection(0.5),
        _CANDIDATES,
    ),
    "gfl": (
        *_coarse("extra_levels", "extra_relu", ("on_output", False)),
        Setting("anchor_scale", f"{_ANCHORS}.octave_base_scale", 8.0),
        *_detection(0.6),
        _CANDIDATES,
    ),
    "faster_rcnn": (
        Setting("anchor_scale", "model.rpn_head.anchor_generator.scales", 8.0, convert=_only),
        Setting("ratios", "model.rpn_head.anchor_generator.ratios", [0.5, 1.0, 2.0]),
        *_detection(0.5, "model.test_cfg.rcnn"),
        Setting("proposals", "model.test_cfg.rpn.max_per_img", 1000),
        Setting("rpn_candidates", "model.test_cfg.rpn.nms_pre", 1000),
        Setting("rpn_nms_threshold", "model.test_cfg.rpn.nms.iou_threshold", 0.7),
    ),
}
"""By family; sizes that the tensors tell are not here."""

FCOS_WITH_BIAS = {
    "norm_on_bbox": True,
    "centerness_on_reg": True,
    "center_sampling": True,
    "box_loss": "giou",
    "nms_threshold": 0.6,
}
"""What is usual in an FCOS whose towers have biases: mmdet's own configs have these with each other only."""

_STRIDES = [8, 16, 32, 64, 128]
_COMMON: dict[str, tuple[Any, ...]] = {
    "model.backbone.type": ("ResNet", "ResNeXt"),
    "model.backbone.num_stages": (4,),
    "model.backbone.strides": ([1, 2, 2, 2],),
    "model.backbone.dilations": ([1, 1, 1, 1],),
    "model.backbone.dcn": (None,),
    "model.backbone.plugins": (None,),
    "model.backbone.conv_cfg": (None,),
    "model.backbone.deep_stem": (False,),
    "model.backbone.avg_down": (False,),
    "model.neck.type": ("FPN",),
    "model.neck.num_outs": (5,),
    "model.neck.end_level": (-1, 3),
}
_ONE_STAGE = _COMMON | {
    "model.neck.start_level": (1,),
    "model.bbox_head.loss_cls.use_sigmoid": (True,),
    "model.bbox_head.strides": (_STRIDES,),
    "model.bbox_head.conv_cfg": (None,),
    f"{_ANCHORS}.type": ("AnchorGenerator",),
    f"{_ANCHORS}.strides": (_STRIDES,),
    f"{_ANCHORS}.center_offset": (0,),
    f"{_ANCHORS}.scales": (None,),
    "model.bbox_head.bbox_coder.target_means": ([0, 0, 0, 0],),
    "model.bbox_head.bbox_coder.target_stds": ([1, 1, 1, 1],),
}
_RPN, _BOX_HEAD = "model.rpn_head", "model.roi_head.bbox_head"
_POOLING = "model.roi_head.bbox_roi_extractor"
EXPECTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "retinanet": _ONE_STAGE,
    "fcos": _ONE_STAGE
    | {
        "model.bbox_head.regress_ranges": ([[-1, 64], [64, 128], [128, 256], [256, 512], [512, 1e8]],),
        "model.bbox_head.cls_predictor_cfg": (None,),
    },
    "gfl": _ONE_STAGE | {f"{_ANCHORS}.ratios": ([1],), f"{_ANCHORS}.scales_per_octave": (1,)},
    "faster_rcnn": _COMMON
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
}
"""What the plain networks can do of what a config may ask for; where a config says nothing, mmdet does the same."""
