"""Speed, measured in turns on tiny detectors; a table without weights or images has none."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import TEACHER, make_run

from understudy.checkpoints import FORMAT, build_options, write_checkpoint
from understudy.checkpoints import STUDENT as PREFIX
from understudy.compare import speed
from understudy.compare.table import summarise
from understudy.config import TrainConfig
from understudy.networks import build_network


def test_without_weights_or_photos_the_table_still_holds(three):
    table = summarise(three)
    assert table.speed is None
    assert any(note.startswith("Speed was not measured: ") for note in table.notes)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(3)]
    for image in images:
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "set" / "images" / image["file_name"])
    annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "set" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path / "set"


def add_weights(folder, config: TrainConfig):
    options = build_options(config, num_classes=1)
    torch.manual_seed(0)
    meta = {
        "format": FORMAT,
        "build": options,
        "classes": ["cat"],
        "category_ids": [1],
        "config": config.model_dump(mode="json"),
    }
    weights = {PREFIX + name: value for name, value in build_network(**options).state_dict().items()}
    write_checkpoint(folder / "best.ckpt", {"understudy": meta, "state_dict": weights})


def test_speed_is_measured_in_turns_and_compared_with_the_teacher(tmp_path, photos, printed, monkeypatch):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER | {"neck_channels": 128}, data=photos)
    plain = make_run(tmp_path / "plain", 0.3, data=photos)
    frs = make_run(tmp_path / "frs", 0.4, data=photos, teacher=teacher)
    runs = [teacher, plain, frs]
    rows = summarise(runs, measure_speed=False).rows
    for row in rows:
        add_weights(row.runs[0].folder, row.config)
    monkeypatch.setattr(speed, "race", functools.partial(speed.race, rounds=3))
    table = summarise(runs, device="cpu")
    rates = [row.images_per_second for row in table.rows]
    assert all(rate > 0 for rate in rates)
    assert [row.speed_ratio for row in table.rows] == [pytest.approx(rate / rates[0]) for rate in rates]
    assert table.rows[0].speed_ratio == 1
    assert table.rows[1].speed_ratio > 1.2  # a network of a twentieth of the arithmetic
    assert "one image at a time (85x64 pixels)" in table.speed
    for width in (80, 120):
        text = printed(table, width)
        assert max(map(len, text.splitlines())) <= width
        assert "1.00 x" in text
