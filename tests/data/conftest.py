"""Images with labels and images without, for the tests of data sets and loading."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.data import DetectionData, open_data, open_unlabelled


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """Seven images of random pixels and different sizes, each with a box that stands over its border, and a crowd."""
    noise = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(7):
        width, height = 60 + 4 * i, 90 - 5 * i
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": width, "height": height})
        annotations.append({"id": 2 * i, "image_id": 100 + i, "category_id": 1, "bbox": [-5, 10, 25, 30]})
        annotations.append({"id": 2 * i + 1, "image_id": 100 + i, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return open_data(tmp_path)


@pytest.fixture
def more(tmp_path: Path) -> DetectionData:
    """Five images of no data set, two of them in a folder of their own; one is to be turned."""
    folder = tmp_path / "more"
    (folder / "deeper").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, name in enumerate(("a.png", "b.JPG", "deeper/c.png", "deeper/d.jpg")):
        Image.new("RGB", (40 + i, 60), (i, 2, 3)).save(folder / name)
    Image.new("RGB", (40, 60)).save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("no image")
    return open_unlabelled(folder)
