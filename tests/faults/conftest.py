"""Prepared folders for the fault suite: small data sets in every format, and two tiny finished runs."""

import shutil
from pathlib import Path

import pytest
from data_sets import make, write_image


@pytest.fixture(scope="session")
def data_bases(tmp_path_factory) -> dict[str, Path]:
    """A COCO, a VOC and a YOLO data set by name, and a folder of images; each has the splits train and val."""
    root = tmp_path_factory.mktemp("bases")
    for name, layout in {"coco": "coco roboflow", "voc": "voc roboflow", "yolo": "yolo folders"}.items():
        make(layout, root / name)
    for name in ("coco", "voc"):
        shutil.copytree(root / name / "train", root / name / "val")
    for kind in ("images", "labels"):
        shutil.copytree(root / "yolo" / kind / "train", root / "yolo" / kind / "val")
    write_image(root / "photos" / "a.jpg")
    return {name: root / name for name in ("coco", "voc", "yolo", "photos")}


@pytest.fixture(scope="session")
def bases(data_bases, trained, distilled, scenes) -> dict[str, Path]:
    """The data sets, the finished runs `trained` and `distilled`, and the scenes that they were trained on."""
    return {**data_bases, "trained": trained, "distilled": distilled, "scenes": scenes}
