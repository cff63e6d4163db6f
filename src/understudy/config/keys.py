"""The sections and keys of a config, each with its type, limits, default and description.

These models are the only list of keys. The checks, the error messages, ``understudy config`` and the table in
docs/config.md follow from them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from understudy.config.values import (
    FILLED_IN,
    Auto,
    FilePath,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Text,
    ThreeFractions,
    ThreePositive,
    false_as_off,
    number_as_text,
    one_as_list,
)

# ------------------------------------------------------------------------------------------------------------ sections


class Section(BaseModel):
    """A group of keys. A single value given for a section sets its first key: ``data=photos``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        values = cls.expand(values)
        return cls.filled(values) if isinstance(values, dict) else values

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn a single value into a dict with the section's first key; return anything else as it is."""
        return {next(iter(cls.model_fields)): value} if isinstance(value, str | int | float | Path) else value

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults that depend on other keys."""
        return values


class DataConfig(Section):
    """The images and how they are loaded."""

    path: FilePath | Annotated[list[FilePath], Field(min_length=1)] = Field(
        description="Data set: a folder in COCO, VOC or YOLO format (detected automatically), or a COCO JSON file; "
        "several are used as one.",
        examples=["path/to/photos"],
    )
    train: Text = Field("train", description="Training split, or several joined by +.")
    val: Text = Field("val", description="Validation split, or several joined by +.")
    shorter_side: Auto[Annotated[list[Pixels], Field(min_length=1), BeforeValidator(one_as_list)]] = Field(
        FILLED_IN,
        description="Shorter side of an image in pixels; with several sizes, each training image uses a random one "
        "and evaluation uses the last; null: that of the teacher on the same data, else by the images "
        "(docs/config.md).",
        examples=[[800]],
    )
    shorter_side_mode: Literal["choice", "range"] = Field(
        "choice",
        description="Sizes of training images: choice (one of `shorter_side`) or range (any integer from the smallest "
        "to the largest of them).",
    )
    longer_side: Auto[Pixels] = Field(
        FILLED_IN,
        description="Maximum length of an image's longer side in pixels; null: that of the teacher if `shorter_side` "
        "is its, else 5/3 of the largest `shorter_side`.",
        examples=[1333],
    )
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip of a training image.")
    colour: Auto[Fraction] = Field(
        FILLED_IN,
        description="Strength of random changes of brightness, contrast, saturation and hue of a training image; 1: as "
        "in SSD, 0: none; null: 0.5 for up to 2,000 training images in 24 epochs or more, else 0.",
        examples=[0.5],
    )
    scale: Auto[Annotated[float, Field(ge=1, le=8)]] = Field(
        FILLED_IN,
        description="Largest random enlargement of a training image, by a crop, and reduction, on grey; 1: none; null: "
        "1.5 for up to 2,000 training images in 24 epochs or more, else 1.",
        examples=[1.5],
    )
    variants: Literal["auto"] | PositiveInt | None = Field(
        "auto",
        description="Number of variants of each training image (flip, size, colour, scale), shown in turn by the "
        "epochs, so that `teacher_cache` can keep their outputs; null: new ones in each epoch; auto: a quarter of "
        "the epochs in a distilled run of 24 or more in one process whose images vary, if the cache has room, else "
        "null.",
    )
    group_by_aspect: Auto[bool | Literal["size"]] = Field(
        FILLED_IN,
        description="Which images a batch joins: true: only images that are higher than wide, or only others, as in "
        "mmdet; size: only images with the same padded size; false: any; null: by the padding that it saves.",
        examples=[False],
    )
    skip_empty: bool = Field(
        False, description="Whether to leave out training images without objects, as mmdet's `filter_empty_gt`."
    )
    limit: PositiveInt | None = Field(
        None,
        description="Number of training images to use: the first ones of a fixed random order, so that a smaller limit "
        "uses a part of the images of a larger one; `val` is not affected; null: all.",
    )
    workers: Auto[Annotated[int, Field(ge=0, le=256)]] = Field(
        FILLED_IN,
        description="Number of processes that load images; 0: load them in the training process; null: by the cores.",
        examples=[2],
    )
    max_pixels: PositiveInt = Field(
        100_000_000, description="Maximum number of pixels (width x height) of an image file; larger ones are refused."
    )
    allow_outside: bool = Field(
        False,
        description="Whether the data set may use files outside its folder: by links, or by paths in its files.",
    )
    aliases: dict[str, Text] = Field(
        {},
        description="Other names of classes, to match them with a teacher's or another data set's, as in `{moped: "
        "scooter}`; VOC's and COCO's names of one class match without it.",
    )
    unlabelled: FilePath | None = Field(
        None,
        description="Unlabelled images for the distillation losses and `pseudo_labels`: a folder of images, or a data "
        "set whose `train` split is used without its labels.",
    )
    unlabelled_batch: NonNegativeInt | None = Field(
        None,
        description="Unlabelled images per step and process, in addition to `batch_size` labelled ones; null: "
        "`batch_size`.",
    )


class DetectorConfig(Section):
    """The detector to train."""

    name: Text = Field("gfl_resnet50", description="Family and backbone; `understudy detectors` lists them.")
    neck_channels: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="Channels of the feature pyramid and of the heads."
    )
    width_mult: Annotated[float, Field(gt=0, le=8)] = Field(
        1.0, description="Width of the backbone, relative to the published one."
    )
    backbone_weights: Text | None = Field(
        "auto",
        description="Initial weights of the backbone: a torchvision name or a file; null: random initialisation; auto: "
        "torchvision's ImageNet weights, downloaded once, if it has them for this backbone and width, else null.",
    )
    norm: Literal["auto", "batch", "sync", "eval", "frozen"] = Field(
        "auto",
        description="Batch normalisation of the backbone: batch (trained), sync (trained, with statistics over all "
        "processes), eval (trained, with fixed statistics) or frozen; auto: batch, or frozen if `backbone_weights` is "
        "set and `batch_size` is below 4.",
    )
    head_norm: Literal["auto", "group"] | None = Field(
        "auto",
        description="Normalisation layers of the head: group (GroupNorm) or null: those of the published family, of "
        "which a RetinaNet has none; auto: group for a RetinaNet in torchvision's conventions, else null, but those of "
        "the checkpoint that the head starts with (`init`, `inherit`).",
    )
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = Field(
        0, description="Number of backbone stages, counted from the first, that are not trained."
    )
    anchor_scale: PositiveFloat | Literal["auto"] | None = Field(
        "auto",
        description="Side of a level's smallest anchor in strides of the level, lower for small objects; null: the "
        "family's default (RetinaNet 4, GFL and Faster R-CNN 8); auto: that of init or of a teacher, if they are of "
        "the same family (with the default methods unless it fits the boxes clearly worse than another one), else the "
        "default unless another one fits better.",
    )
    image_mean: ThreeFractions = Field(
        (0.485, 0.456, 0.406), description="Mean of red, green and blue (0 to 1), subtracted from each image."
    )
    image_std: ThreePositive = Field(
        (0.229, 0.224, 0.225),
        description="Standard deviation of red, green and blue (0 to 1) that each image is divided by.",
    )
    channel_order: Literal["rgb", "bgr"] = Field(
        "rgb",
        description="Order of the colours that `backbone_weights` expects: bgr for weights from Caffe, whose first "
        "convolution is rearranged, so that the detector takes RGB images in any case.",
    )
    conventions: Literal["torchvision", "mmdet"] = Field(
        "torchvision",
        description="Library whose implementation to match (anchors, coarse levels, heads, losses); mmdet for the "
        "papers' detectors.",
    )
    settings: dict[str, Any] = Field(
        {}, description="Family-specific settings; `understudy detectors NAME` lists them."
    )


class OptimizerConfig(Section):
    """The optimizer and its learning rate."""

    DEFAULTS: ClassVar[dict[str, dict[str, float]]] = {
        "sgd": {"weight_decay": 1e-4},  # the learning rate depends on the detector; see training/assembly.py
        "adamw": {"lr": 2e-3, "weight_decay": 0.05},
    }

    name: Literal["sgd", "adamw"] = Field("adamw", description="Optimizer.")
    lr: Auto[PositiveFloat] = Field(
        FILLED_IN,
        description="Learning rate for `reference_batch` images per step; null: sgd 0.01 (Faster R-CNN 0.02), adamw "
        "0.002.",
        examples=[0.01],
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of sgd.")
    weight_decay: Auto[NonNegativeFloat] = Field(FILLED_IN, description="Weight decay; null: sgd 0.0001, adamw 0.05.")
    bias_lr_mult: PositiveFloat = Field(
        1.0, description="Factor of the learning rate of biases, apart from those of normalisation layers."
    )
    bias_decay_mult: NonNegativeFloat = Field(
        1.0, description="Factor of the weight decay of biases, apart from those of normalisation layers."
    )
    scale_lr: bool = Field(
        True,
        description="Whether the learning rate follows the images per step over all processes, divided by "
        "`reference_batch`: multiplied by the quotient for sgd, by its square root for adamw.",
    )
    reference_batch: PositiveInt = Field(16, description="Images per step that `lr` refers to.")
    clip_norm: PositiveFloat | None = Field(
        10.0,
        description="Maximum norm of the gradient of all trained weights together, including those of the methods; "
        "null: no clipping.",
    )

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults that depend on the optimizer."""
        return _where_null(values, _of_name(cls.DEFAULTS, values.get("name", "adamw")))

    def lr_scale(self, images: int) -> float:
        """Return the factor of ``lr`` for a number of images per step.

        The linear rule of SGD (Goyal et al., 2017) and the square root rule of Adam (Malladi et al., NeurIPS 2022).
        """
        if not self.scale_lr:
            return 1.0
        ratio = images / self.reference_batch
        return ratio if self.name == "sgd" else math.sqrt(ratio)


class ScheduleConfig(Section):
    """The length of the run and the learning rate schedule."""

    DEFAULTS: ClassVar[dict[str, dict[str, int]]] = {
        "1x": {"epochs": 12},
        "2x": {"epochs": 24},  # that of cosine depends on the images; see training/defaults.py
    }

    name: Literal["1x", "2x", "cosine"] = Field(
        "cosine",
        description="Learning rate schedule: 1x and 2x divide the learning rate by 10 after 2/3 and 11/12 of the run "
        "(or at `drops`), cosine lowers it smoothly.",
    )
    epochs: Auto[PositiveInt] = Field(
        FILLED_IN,
        description="Passes over the training images; null: 1x 12, 2x 24, cosine 12 and as many as 24,000 images take.",
        examples=[12],
    )
    drops: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None,
        description="Points of the run, as fractions of it, at which 1x and 2x divide the learning rate by 10; null: "
        "2/3 and 11/12.",
    )
    warmup: Literal["linear", "constant"] = Field(
        "linear",
        description="Learning rate during the warm-up: linear increases it from `warmup_factor` to 1, constant keeps "
        "it at `warmup_factor`.",
    )
    warmup_steps: NonNegativeInt = Field(
        500, description="Steps of the warm-up of the learning rate, limited to a tenth of the run."
    )
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="Learning rate at the start of the warm-up, relative to the one after it."
    )
    patience: PositiveInt | None = Field(
        None,
        description="Number of evaluations without a higher AP on `data.val` after which the run stops; null: it never "
        "stops early.",
    )

    @classmethod
    def filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the number of epochs, which depends on the schedule."""
        return _where_null(values, _of_name(cls.DEFAULTS, values.get("name")))


class TrainConfig(Section):
    """The config of a training run."""

    run: FilePath = Field(description="Output folder of the run; must be new or empty.", examples=["runs/first"])
    data: DataConfig = Field(description="The images and how they are loaded.")
    detector: DetectorConfig = Field(default_factory=DetectorConfig, description="The detector to train.")
    init: FilePath | None = Field(
        None,
        description="Run folder or checkpoint whose weights the detector starts with, layer by layer where names and "
        "shapes agree; of other classes, those of the same name; null: none.",
    )
    optimizer: OptimizerConfig = Field(
        default_factory=OptimizerConfig, description="The optimizer and its learning rate."
    )
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig, description="The length of the run and the learning rate schedule."
    )
    class_balance: Auto[bool] = Field(
        FILLED_IN,
        description="Whether rare classes count more in a one-stage detector's own losses; null: if one dominates.",
        examples=[False],
    )
    ema: Annotated[Annotated[float, Field(gt=0, lt=1)] | Literal["off"], BeforeValidator(false_as_off)] = Field(
        0.9998,
        description="Decay of the moving average of the weights, which is what is evaluated and saved as the detector; "
        "step t uses at most (1 + t) / (10 + t), so that a short run has a short average; off: the weights themselves.",
    )
    batch_size: Auto[PositiveInt] = Field(
        FILLED_IN,
        description="Images per step and process; null: so that a step has 16, fewer if memory or images are few.",
        examples=[16],
    )
    precision: Annotated[Literal["32", "bf16", "16"], BeforeValidator(number_as_text)] = Field(
        "32",
        description="Precision of the arithmetic in bits: 32, or mixed precision with bf16 or 16, which is faster on "
        "hardware that supports it.",
    )
    compile: bool = Field(
        False,
        description="Whether to compile backbones and necks with `torch.compile`, which takes minutes at first; it may "
        "be faster on a GPU, but was not on a CPU.",
    )
    quantise: bool = Field(
        False,
        description="Whether to train the last part of the run with weights and inputs of layers rounded to INT8, for "
        "`understudy export --int8`; the best checkpoint is then of this part (docs/quantisation.md).",
    )
    quantise_from: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.75, description="Part of the run after which `quantise` begins."
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(
        0, description="Random seed of the initialisation, the order of images and the augmentation."
    )
    accelerator: Text = Field("auto", description="Type of device: auto, cpu, gpu or another Lightning accelerator.")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Threads of PyTorch on the CPU in each process; null: as many as there are cores."
    )
    devices: PositiveInt | Literal["auto"] = Field(1, description="Devices per machine, with one process each.")
    num_nodes: PositiveInt = Field(1, description="Number of machines.")
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = Field(
        "auto",
        description="How several devices share a run; with the last, steps may leave out parameters of methods.",
    )
    evaluate_every: Auto[PositiveInt] = Field(
        FILLED_IN,
        description="Epochs between two evaluations on `data.val`; null: so that a run has at most 20.",
        examples=[1],
    )
    log_every: PositiveInt = Field(10, description="Steps between two rows of losses.csv.")
    recipe: Text | None = Field(
        None, description="Recipe whose values the config starts from; `understudy recipes` lists them."
    )


def _of_name(defaults: Mapping[str, Mapping[str, Any]], name: Any) -> Mapping[str, Any]:
    """Return the defaults of a name; none for a value that is not one, which the check of types refuses."""
    return defaults.get(name, {}) if isinstance(name, str) else {}


def _where_null(values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Replace absent values and None by the defaults."""
    return values | {key: default for key, default in defaults.items() if values.get(key) is None}
