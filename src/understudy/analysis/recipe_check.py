"""Check recipes without data: build student, teacher and methods of each, without memory for their weights."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torchvision.models import get_model_weights

from understudy.checkpoints.native import build_options
from understudy.config import DetectorConfig, DistillConfig, TrainConfig, load_config
from understudy.detectors import Detector, build_detector
from understudy.detectors.families import family_of
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.inheritance import inherit
from understudy.methods.loading import build_methods
from understudy.pairing import pair
from understudy.recipes import Recipe, read_recipe, recipe_names, teachers


def check_recipes(names: Sequence[str] = ()) -> Iterator[tuple[str, str | None]]:
    """Yield each recipe with its fault, or with None if all of it can be built.

    Args:
        names: the recipes; none: all.

    Raises:
        UserError: there is no recipe of such a name.
    """
    for recipe in [read_recipe(name) for name in names or recipe_names()]:
        try:
            with shapes_only():
                _build(recipe)
        except UserError as error:
            yield recipe.name, str(error)
        else:
            yield recipe.name, None


def _build(recipe: Recipe) -> None:
    """Build the student of a recipe, and its teacher and methods if it has some, or raise a UserError."""
    values = {"recipe": recipe.name, "data": "data", "run": "run"}
    if recipe.teacher is None:
        config = load_config(TrainConfig, values)
        _check_weights(recipe, config.detector)
        _detector(_options(config, classes=80))
        return
    config = load_config(DistillConfig, values | {"teacher": "teacher"})
    _check_weights(recipe, config.detector)
    facts = teachers()[recipe.teacher]
    student = _detector(_options(config, facts.classes))
    of_teacher = {"detector": DetectorConfig.model_validate(facts.detector)}
    teacher = _detector(_options(config.model_copy(update=of_teacher), facts.classes))
    names = [str(label) for label in range(facts.classes)]
    pairing = pair(student.spec, teacher.spec, names, names)
    build_methods(config.methods, pairing.student, pairing.teacher)
    if config.inherit:
        inherit(student, teacher, pairing)


def _options(config: TrainConfig, classes: int) -> str:
    return json.dumps(build_options(config, classes), sort_keys=True)


@cache
def _detector(options: str) -> Detector:
    """Build a detector on the meta device; its anchors, whose places are compared, are those of a small one."""
    values = json.loads(options)
    detector = build_detector(**values)
    family = family_of(values["name"])
    small = {"name": f"{family.name}_resnet18", "neck_channels": 8, "width_mult": 0.125} if family else {}
    detector.spec = replace(detector.spec, first_anchors=_anchors(json.dumps(values | small, sort_keys=True)))
    return detector


@cache
def _anchors(options: str) -> tuple[Any, ...]:
    with torch.device("cpu"):
        return build_detector(**json.loads(options)).spec.first_anchors


def _check_weights(recipe: Recipe, detector: DetectorConfig) -> None:
    """Require weights of the backbone that torchvision has, or a file that the recipe lists."""
    family, weights = family_of(detector.name), detector.backbone_weights
    backbone = detector.name.removeprefix(f"{family.name}_" if family else "")
    if weights not in get_model_weights(backbone).__members__ and weights not in map(_file_name, recipe.needs):
        raise UserError(f"torchvision has no weights {weights} for {backbone}, and they are not among its files")


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]
