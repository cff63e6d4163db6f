"""The keys of a distillation run, beyond those of a training run."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from understudy.config.keys import TrainConfig
from understudy.config.methods import DEFAULT_METHODS
from understudy.config.values import (
    FILLED_IN,
    Auto,
    FilePath,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    digit_as_number,
    false_as_off,
    names_as_options,
)


class DistillConfig(TrainConfig):
    """The config of a distillation run: a training run with a teacher and methods."""

    teacher: FilePath = Field(description="Teacher: a run folder or a checkpoint.", examples=["runs/teacher"])
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1), BeforeValidator(names_as_options)] = Field(
        DEFAULT_METHODS,
        description="Distillation methods, each with its options, which `understudy methods NAME` lists; the default "
        "is adapted to the pair, and is `frs` as published with `balance=off`.",
    )
    balance: Annotated[Annotated[float, Field(gt=0, lt=1)] | Literal["off"], BeforeValidator(false_as_off)] = Field(
        0.8,
        description="Share of the student's gradient that the distillation terms without a weight of their own have "
        "together; their weights follow from it; off: the papers' published weights.",
    )
    balance_end: Fraction = Field(
        1.0, description="Factor of the shares at the end of the run, reached linearly; 1: they stay."
    )
    balance_until: Fraction = Field(
        1.0, description="Part of the run after which the weights that follow from shares are no longer measured."
    )
    teacher_scale: Auto[Annotated[Literal[1, 2, 4], BeforeValidator(digit_as_number)]] = Field(
        FILLED_IN,
        description="How many times as large as the student's the teacher's images are; null: so that a teacher that "
        "was trained on the same data sees about its own size, else 1.",
        examples=[2],
    )
    teacher_check: NonNegativeInt = Field(
        100,
        description="Validation images on which the teacher is evaluated first, for at most a minute; 0: none.",
    )
    teacher_cache: Annotated[Literal["off", "auto", "memory"] | FilePath, BeforeValidator(false_as_off)] = Field(
        "auto",
        description="Where the teacher's outputs of images are kept for later epochs: in memory, in a folder (for "
        "other runs, too), or, with auto, in memory if methods, augmentation, `teacher_cache_gb` and a quarter of the "
        "machine's memory permit it.",
    )
    teacher_cache_gb: PositiveFloat = Field(4.0, description="Maximum size of the teacher cache in GiB.")
    pseudo_labels: Annotated[Fraction | Literal["off"], BeforeValidator(false_as_off)] = Field(
        "off",
        description="Lowest score of the teacher's detections on unlabelled images that are ground truth of the "
        "student, such as 0.5; off: none.",
    )
    inherit: bool = Field(
        False,
        description="Whether to initialise the student's neck and head with the teacher's weights, where the names and "
        "shapes of layers agree; works with any method.",
    )


def scale_of_teacher(config: TrainConfig) -> int:
    """Return how many times as large as the student's a teacher's images are; 1 if that is open, or without one."""
    return (config.teacher_scale or 1) if isinstance(config, DistillConfig) else 1
