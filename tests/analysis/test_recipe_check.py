"""The check of the recipes: all pass, and a faulty one fails with its reason."""

import json

import pytest

from understudy.analysis import recipe_check
from understudy.config import TrainConfig, load_config
from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.recipes import read_recipe, recipe_names


def found(monkeypatch, name: str, **changes):
    """The fault of a changed recipe; config sections are replaced as a whole."""
    recipe = read_recipe(name)
    changed = recipe.model_copy(update={"config": recipe.config | changes.pop("config", {}), **changes})
    monkeypatch.setattr("understudy.config.merging.read_recipe", lambda _: changed)
    monkeypatch.setattr(recipe_check, "read_recipe", lambda _: changed)
    ((_, fault),) = recipe_check.check_recipes([name])
    return fault


@pytest.mark.slow
def test_recipes_can_be_built():
    """A tenth of them, for time; `understudy recipes check` builds all."""
    assert [fault for fault in recipe_check.check_recipes(recipe_names()[::10]) if fault[1]] == []


@pytest.mark.parametrize("name", ["dist2-fcos-mnv2-plain", "pkd-retinanet-r50-fcos"])
def test_one_recipe_can_be_built(name):
    assert list(recipe_check.check_recipes([name])) == [(name, None)]


def test_faults_are_found(monkeypatch):
    with pytest.raises(UserError, match="there is no recipe frs"):
        list(recipe_check.check_recipes(["frs"]))
    name = "pkd-retinanet-r50-fcos"
    assert "crosskd" in found(monkeypatch, name, config={"methods": {"crosskd": {"class_weight": 1.0}}})
    assert "bogus" in found(monkeypatch, name, config={"methods": {"pkd": {"bogus": 1}}})
    detector = read_recipe(name).config["detector"]
    assert "no weights IMAGENET9" in found(
        monkeypatch, name, config={"detector": detector | {"backbone_weights": "IMAGENET9"}}
    )
    narrow = {"inherit": True, "detector": detector | {"neck_channels": 8}, "methods": {"hint": {}}}
    assert "inherit=true: no layer" in found(monkeypatch, name, config=narrow)


def test_anchors_are_those_of_the_detector_itself():
    for recipe in ("dist2-fcos-mnv2-plain", "frs-gfl-r50"):
        config = load_config(TrainConfig, {"recipe": recipe, "data": "x", "run": "y", "detector": {"width_mult": 0.25}})
        options = recipe_check._options(config, 3)
        assert recipe_check._anchors(options) == build_detector(**json.loads(options)).spec.first_anchors
