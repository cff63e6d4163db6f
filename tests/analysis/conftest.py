"""Shared by the tests of the analyses: the records of small detectors for a batch, as a walk hands them on."""

import pytest
import torch
from small_detectors import IMAGES, NAMES, SIZES, TARGETS, small

from understudy.analysis.models import Model
from understudy.checkpoints import Checkpoint
from understudy.data import Batch, DetectionData, Record


@pytest.fixture
def batch() -> Batch:
    return Batch(IMAGES, TARGETS, SIZES, SIZES, [1, 2], [True, True])


@pytest.fixture
def data(tmp_path) -> DetectionData:
    """The images of the batch, with three classes."""
    records = tuple(
        Record(
            image_id,
            tmp_path / f"{image_id}.png",
            size[1],
            size[0],
            target["boxes"].double(),
            target["labels"],
            torch.zeros(len(target["labels"]), dtype=torch.bool),
            torch.ones(len(target["labels"]), dtype=torch.float64),
            torch.arange(len(target["labels"])),
        )
        for image_id, size, target in zip((1, 2), SIZES, TARGETS, strict=True)
    )
    return DetectionData(NAMES, (1, 2, 3), records, "coco", tmp_path / "set.json", "val")


@pytest.fixture
def model(tmp_path):
    """Makes a model of a small detector, without a file; `noise` changes its weights."""

    def model(name: str, family: str = "fcos", *, classes=NAMES, noise: float = 0.0, **options) -> Model:
        detector = small(family, len(classes), **options).eval()
        torch.manual_seed(1)
        for parameter in detector.parameters():
            parameter.data += noise * torch.randn_like(parameter)
        sizes = {"path": None, "val": "val", "shorter_side": [64], "longer_side": 96}
        return Model(name, Checkpoint(detector, tuple(classes), {"data": sizes}, {}, tmp_path / name))

    return model


@pytest.fixture
def records(batch):
    """Computes the records of some models for the batch, by name."""

    @torch.no_grad()
    def records(*models):
        return {each.name: each.detector(batch.images, batch.image_sizes) for each in models}

    return records
