"""Runs and data sets that the tests of training share."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import understudy


@pytest.fixture(scope="session")
def tiny(tiny) -> dict[str, Any]:
    """Keys of a run of 2 epochs of 4 steps; its AP grows with every epoch, so both write the best checkpoint."""
    return tiny | {"schedule.epochs": 2, "optimizer.name": "adamw", "optimizer.lr": 0.003}


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run; not to be changed."""
    return understudy.train(tiny, run=tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(scope="session")
def distilled(tiny, trained, tmp_path_factory) -> Path:
    """The folder of a finished run with a teacher; not to be changed."""
    return understudy.distill(tiny, teacher=trained, run=tmp_path_factory.mktemp("runs") / "distilled")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory) -> Path:
    """A folder of five drawn images, of another size than the labelled ones."""
    from understudy.data.scenes import make_scenes

    folder = make_scenes(tmp_path_factory.mktemp("data") / "more", train=4, val=1, size=48, seed=9)
    return folder / "images"


@pytest.fixture
def renamed(scenes, tmp_path) -> Callable[[list[str]], Path]:
    """Copies the scenes and gives their first classes other names."""

    def renamed(names: list[str]) -> Path:
        folder = shutil.copytree(scenes, tmp_path / "renamed")
        for file in folder.glob("instances_*.json"):
            content = json.loads(file.read_text())
            for category, name in zip(content["categories"], names, strict=False):
                category["name"] = name
            file.write_text(json.dumps(content))
        return folder

    return renamed
