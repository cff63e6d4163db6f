"""A teacher that knows the scenes, a student for it, and copies of the teacher with a planted fault."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from understudy.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from understudy.data import Batch, open_data, training_loader
from understudy.demo import RECIPE, SIZE, STUDENT, take_teacher
from understudy.detectors import build_detector
from understudy.diagnosis.terms import Probe
from understudy.diagnosis.trial import Trial
from understudy.learner import Learner
from understudy.methods.loading import build_methods
from understudy.pairing import pair

HEALTHY = {"frs": {"feature_weight": 0.001}}
"""FRS with a tenth of its weight for the families of large pyramids; this pair's is narrow."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Twelve scenes to train on and twelve to validate on, of the size that the teacher knows."""
    from understudy.data.scenes import make_scenes

    return make_scenes(tmp_path_factory.mktemp("doctor") / "scenes", train=12, val=12, size=SIZE, seed=5)


@pytest.fixture(scope="session")
def teacher(pictures, tmp_path_factory) -> Path:
    """The run folder of the teacher that comes with the package."""
    run = tmp_path_factory.mktemp("doctor") / "teacher"
    take_teacher(run, pictures)
    return run


@pytest.fixture(scope="session")
def keys(pictures, teacher) -> dict[str, Any]:
    """The config of a healthy pair."""
    return {
        **RECIPE,
        "data": {**RECIPE["data"], "path": pictures},
        "detector": STUDENT,
        "schedule": {"name": "cosine", "epochs": 12},
        "teacher": teacher,
        "batch_size": 4,
        "methods": HEALTHY,
    }


@pytest.fixture(scope="session")
def content(teacher) -> dict[str, Any]:
    """What the teacher's checkpoint contains; not to be changed."""
    return read_checkpoint(teacher / "best.ckpt")


@pytest.fixture
def planted(content, tmp_path) -> Callable[..., Path]:
    """Writes a checkpoint of the teacher with a fault: other weights, or other metadata."""

    def planted(change: Callable[[dict[str, torch.Tensor]], None] | None = None, **meta: Any) -> Path:
        copied = copy.deepcopy(content)
        if change:
            change(copied["state_dict"])
        copied["understudy"].update(meta)
        file = tmp_path / "planted.ckpt"
        write_checkpoint(file, copied)
        return file

    return planted


@pytest.fixture(scope="session")
def grey_in_blue(pictures, tmp_path_factory) -> Path:
    """The scenes in shades of blue."""
    folder = tmp_path_factory.mktemp("doctor") / "blue"
    shutil.copytree(pictures, folder)
    for file in (file for file in folder.rglob("*") if file.suffix in (".png", ".jpg")):
        grey = Image.open(file).convert("L")
        dark = Image.new("L", grey.size, 110)
        Image.merge("RGB", (dark, dark, grey)).save(file)
    return folder


@pytest.fixture(scope="session")
def trial_of(pictures) -> Callable[..., Trial]:
    """Runs a checkpoint on the validation scenes."""

    def trial_of(checkpoint: Path, size: int = SIZE, data: Path = pictures) -> Trial:
        return Trial.of(load_checkpoint(checkpoint), open_data(data, "val"), (size, size), 12)

    return trial_of


@pytest.fixture(scope="session")
def good(trial_of, teacher) -> Trial:
    """The teacher without a fault on the validation scenes."""
    return trial_of(teacher)


@pytest.fixture(scope="session")
def batch(pictures) -> Batch:
    """Four training scenes."""
    data = open_data(pictures, "train")
    loader = training_loader(data, batch_size=4, shorter_side=[SIZE], longer_side=SIZE, flip=0.0, seed=0)
    return next(iter(loader))


@pytest.fixture
def probe_of(teacher) -> Callable[..., Probe]:
    """Makes an untrained student with methods and the teacher."""

    def probe_of(methods: dict[str, dict[str, Any]] = HEALTHY) -> Probe:
        torch.manual_seed(0)
        student, loaded = build_detector(num_classes=4, **STUDENT), load_checkpoint(teacher).detector
        loaded.requires_grad_(False)
        common = pair(student.spec, loaded.spec)
        built, weights = build_methods(methods, common.student, common.teacher)
        keys = {name: f"methods.{name}_weight" for name in weights}
        return Probe(Learner(student, built, common), weights, loaded, torch.device("cpu"), keys)

    return probe_of
