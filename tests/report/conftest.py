"""Shared by the tests of the report: runs without folders, and data with a fake detector."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from understudy.analysis.richness import RichnessView
from understudy.data import open_data
from understudy.data.scenes import SCENE_CLASSES, make_scenes
from understudy.outputs import Outputs, Spec
from understudy.report import analyses
from understudy.report.views import RunView


@pytest.fixture
def run_view():
    """Makes a run without a folder."""

    def run_view(name, role, ap=None, group=None, **others):
        result = {"per_class": {"cat": ap, "dog": 0.2, "owl": None}, "epoch": 3, "train_seconds": 75.4}
        return RunView(name, group or name, role, Path(name), result=result, config={"seed": 0}, **others)

    return run_view


@pytest.fixture
def richness_view():
    fine, coarse = np.zeros((6, 8)), np.full((3, 4), 0.1)
    fine[1, 1], fine[1, 6] = 0.9, 0.3
    boxes, unlabelled = np.array([[8.0, 8, 16, 16]]), np.array([[48.0, 8, 56, 16]])
    return RichnessView(np.full((48, 64, 3), 120, dtype=np.uint8), boxes, unlabelled, (fine, coarse), (8, 16))


class FakeDetector(torch.nn.Module):
    """Detects one box, a quarter of the image, twice; its only level is rich in the upper left cell of every image."""

    spec = Spec(channels=(1,), strides=(16,), num_anchors=1, num_classes=5)

    def forward(self, images, image_sizes):
        count, _, height, width = images.shape
        logits = torch.full((count, height // 16, width // 16, 1, 5), -20.0)
        logits[:, 0, 0, 0, 2] = 20.0
        anchors = torch.zeros(height // 16, width // 16, 1, 4)
        return Outputs([], [torch.zeros(count, 1, height // 16, width // 16)], [logits], [], [anchors])

    def assign(self, outputs, targets):
        """Give the first object the first two anchors."""
        gt_index = torch.full((len(targets), outputs.class_logits[0][0].shape[:3].numel()), -1)
        gt_index[:, :2] = 0
        return gt_index

    def detect(self, outputs, image_sizes):
        height, width = image_sizes[0]
        box = torch.tensor([0, 0, width / 2, height / 2])
        scores, labels = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
        return [{"boxes": box.repeat(3, 1), "scores": scores, "labels": labels}]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Data of 72 pixels, and checkpoints that are evaluated at 72 pixels, or at 144 where the run is called large."""

    def load(folder):
        side = 144 if folder.name == "large" else 72
        config = {"data": {"shorter_side": [32, side], "longer_side": 200}}
        return SimpleNamespace(detector=FakeDetector(), classes=SCENE_CLASSES, config=config)

    monkeypatch.setattr(analyses, "load_checkpoint", load)
    return open_data(make_scenes(tmp_path / "scenes", train=1, val=8, size=72, seed=0), "val")
