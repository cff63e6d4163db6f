"""The layout of mmdet's checkpoints and configs.

Each family has one :class:`MMDetLayout`, in ``mmdet_<family>.py``. This module has the parts that families share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from understudy.checkpoints.mmdet_sizes import BackboneSizes

Keys = tuple[tuple[str, str], ...]
"""Patterns of mmdet's parameter names, each with the name in the plain network."""


def _same(value: Any) -> Any:
    return value


def last_name(kind: Any) -> Any:
    """Return a type's name without its module; any other value is returned as it is.

    Examples:
        >>> last_name("mmdet.models.detectors.RetinaNet")
        'RetinaNet'
    """
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a plain network.

    Attributes:
        name: the builder's argument.
        path: dotted path in a config.
        usual: value in mmdet's own config of this family, by the builder's terms.
        default: mmdet's default if a config does not contain it; None: the usual value.
        convert: function from the config's value to the builder's.
        allowed: the builder's values, if there are only a few.
    """

    name: str
    path: str
    usual: Any
    default: Any = None
    convert: Callable[[Any], Any] = _same
    allowed: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MMDetLayout:
    """Layout of mmdet's checkpoints and configs of one family.

    Attributes:
        layers: patterns of the layers that identify the family. A file of this family has each of them.
        head: mmdet's name of the head that predicts classes.
        head_path: its dotted path in a config.
        settings: the settings that a config contains.
        expected: supported values by dotted path in a config. A config without the path has one of these.
        keys: names of the parameters.
        sizes: function that reads the number of classes and anchors, and other sizes of the builder's arguments, from
            the tensors.
        sizes_in_config: dotted paths in a config by names of these sizes, which must agree.
        rearrange: function that changes translated weights in place.
        head_norm: value of ``head_norm`` for a head with GroupNorm, if the builder needs it.
        usually_caffe: mmdet's own configs use Caffe's ResNets.
        caffe: mean, std and order of the colours of its Caffe backbones.
        with_bias: usual values, by setting, of heads whose towers have biases.
    """

    layers: tuple[str, ...]
    head: str
    head_path: str = "model.bbox_head"
    settings: tuple[Setting, ...]
    expected: Mapping[str, tuple[Any, ...]]
    keys: Keys
    sizes: Callable[["BackboneSizes"], dict[str, int]]
    sizes_in_config: Mapping[str, str] = field(default_factory=dict)
    rearrange: Callable[[dict[str, Tensor]], None] = lambda weights: None
    head_norm: str | None = None
    usually_caffe: bool = False
    caffe: Mapping[str, Any] = field(default_factory=lambda: CAFFE)
    with_bias: Mapping[str, Any] = field(default_factory=dict)


IMAGENET: dict[str, Any] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
REGNET: dict[str, Any] = {"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395], "bgr_to_rgb": False}
CAFFE: dict[str, Any] = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}


# --- settings ---------------------------------------------------------------------------------------------------------

ANCHORS = "model.bbox_head.anchor_generator"
CANDIDATES = Setting("candidates", "model.test_cfg.nms_pre", 1000)


def detection(nms_threshold: float, where: str = "model.test_cfg") -> tuple[Setting, ...]:
    """Return the settings of the postprocessing; ``where`` is their dotted path in a config."""
    return (
        Setting("score_threshold", f"{where}.score_thr", 0.05),
        Setting("nms_threshold", f"{where}.nms.iou_threshold", nms_threshold),
        Setting("detections", f"{where}.max_per_img", 100),
    )


def coarse_levels(source: str, relu: bool) -> tuple[Setting, ...]:
    """Return the settings of P6 and P7: the feature map that they are computed from, and a ReLU between the two."""
    sources = ("on_input", "on_output")
    return (
        Setting("extra_levels", "model.neck.add_extra_convs", source, False, _extra_levels, sources),
        Setting("extra_relu", "model.neck.relu_before_extra_convs", relu, False),
    )


def _extra_levels(value: Any) -> Any:
    return "on_input" if value is True else value


# --- supported configs ------------------------------------------------------------------------------------------------

_STRIDES = [8, 16, 32, 64, 128]
COMMON: dict[str, tuple[Any, ...]] = {
    "model.backbone.type": ("ResNet", "ResNeXt", "RegNet"),
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
ONE_STAGE: dict[str, tuple[Any, ...]] = COMMON | {
    "model.neck.start_level": (1,),
    "model.bbox_head.loss_cls.use_sigmoid": (True,),
    "model.bbox_head.strides": (_STRIDES,),
    "model.bbox_head.conv_cfg": (None,),
    f"{ANCHORS}.type": ("AnchorGenerator",),
    f"{ANCHORS}.strides": (_STRIDES,),
    f"{ANCHORS}.center_offset": (0,),
    f"{ANCHORS}.scales": (None,),
    "model.bbox_head.bbox_coder.target_means": ([0, 0, 0, 0],),
    "model.bbox_head.bbox_coder.target_stds": ([1, 1, 1, 1],),
}


# --- names of the parameters ------------------------------------------------------------------------------------------

COMMON_KEYS: Keys = (
    (r"backbone\.(conv1|bn1|layer\d.*)\.(\w+)", r"backbone.body.\1.\2"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", r"backbone.fpn.inner_blocks.\1.0.\2"),
)
_REGNET_BLOCK, _REGNET_PLAIN = r"backbone\.layer(\d)\.(\d+)\.", r"backbone.body.block\1.block\1-\2."
REGNET_KEYS: Keys = (
    (r"backbone\.conv1\.(\w+)", r"backbone.body.stem.0.\1"),
    (r"backbone\.bn1\.(\w+)", r"backbone.body.stem.1.\1"),
    (rf"{_REGNET_BLOCK}downsample\.(\d)\.(\w+)", rf"{_REGNET_PLAIN}proj.\3.\4"),
    *(
        (rf"{_REGNET_BLOCK}{kind}{number}\.(\w+)", rf"{_REGNET_PLAIN}f.{letter}.{place}.\3")
        for number, letter in enumerate("abc", start=1)
        for place, kind in enumerate(("conv", "bn"))
    ),
)
"""Names of a RegNet's parameters: mmdet has those of a ResNet."""

_MOBILENET_BLOCK, _MOBILENET_PLAIN = r"backbone\.features\.(\d+)\.conv\.", r"backbone.body.\1.conv."
MOBILENET_KEYS: Keys = (
    (r"backbone\.features\.0\.(\w+\.\w+)", r"backbone.body.0.\1"),
    (r"backbone\.features\.1\.conv\.([01])\.(\w+)", r"backbone.body.1.conv.0.\1.\2"),
    (r"backbone\.features\.1\.conv\.3\.(\w+)", r"backbone.body.1.conv.1.\1"),
    (r"backbone\.features\.1\.conv\.4\.(\w+)", r"backbone.body.1.conv.2.\1"),
    (rf"{_MOBILENET_BLOCK}([01])\.(\w+)", rf"{_MOBILENET_PLAIN}0.\2.\3"),
    (rf"{_MOBILENET_BLOCK}3\.(\w+)", rf"{_MOBILENET_PLAIN}1.0.\2"),
    (rf"{_MOBILENET_BLOCK}4\.(\w+)", rf"{_MOBILENET_PLAIN}1.1.\2"),
    (rf"{_MOBILENET_BLOCK}6\.(\w+)", rf"{_MOBILENET_PLAIN}2.\2"),
    (rf"{_MOBILENET_BLOCK}7\.(\w+)", rf"{_MOBILENET_PLAIN}3.\2"),
)
"""Names of the parameters of a MobileNetV2 whose blocks list all layers, as the FCOS authors' own does."""

CLASSES, BOXES = "head.classification_head", "head.regression_head"


def dense_keys(*layers: str) -> Keys:
    """Return the names of a one-stage detector whose last layers are ``bbox_head.<layer>_cls`` and ``..._reg``."""
    named = "|".join(layers)
    return (
        *COMMON_KEYS,
        (r"bbox_head\.cls_convs\.(\d+)\.conv\.(\w+)", rf"{CLASSES}.conv.\1.0.\2"),
        (r"bbox_head\.cls_convs\.(\d+)\.gn\.(\w+)", rf"{CLASSES}.conv.\1.1.\2"),
        (r"bbox_head\.reg_convs\.(\d+)\.conv\.(\w+)", rf"{BOXES}.conv.\1.0.\2"),
        (r"bbox_head\.reg_convs\.(\d+)\.gn\.(\w+)", rf"{BOXES}.conv.\1.1.\2"),
        (rf"bbox_head\.(?:{named})_cls\.(\w+)", rf"{CLASSES}.cls_logits.\1"),
        (rf"bbox_head\.(?:{named})_reg\.(\w+)", rf"{BOXES}.bbox_reg.\1"),
    )
