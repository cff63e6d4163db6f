"""The generated scenes: the same for a seed, labelled tightly, look-alikes unlabelled."""

import json

import numpy as np
import pytest
from PIL import Image

from understudy.data.scenes import LOOKALIKE_CLASSES, SCENE_CLASSES, draw_scene, make_scenes
from understudy.errors import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes") / "set", train=40, val=12, size=96, seed=3)


def read(folder, split):
    return json.loads((folder / f"instances_{split}.json").read_text())


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    first, second, other = (
        content(make_scenes(tmp_path / name, train=3, val=2, size=64, seed=seed))
        for name, seed in (("first", 7), ("second", 7), ("other", 8))
    )
    assert first == second
    assert not set(first.values()) & set(other.values())


def test_a_larger_set_contains_the_smaller_one(tmp_path):
    small, large = (content(make_scenes(tmp_path / str(n), train=n, val=1, size=64, seed=0)) for n in (2, 4))
    images = {path for path in small if path.suffix == ".jpg"}
    assert len(images) == 3
    assert all(small[path] == large[path] for path in images)


def test_no_image_is_in_both_splits(scenes):
    images = [path.read_bytes() for path in (scenes / "images").iterdir()]
    assert len(set(images)) == 52


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_describe_the_files(scenes, split):
    found = read(scenes, split)
    assert [category["name"] for category in found["categories"]] == list(SCENE_CLASSES)
    assert len(found["images"]) == {"train": 40, "val": 12}[split]
    for image in found["images"]:
        with Image.open(scenes / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) == (96, 96)
            assert opened.mode == "RGB"
    assert len({annotation["id"] for annotation in found["annotations"]}) == len(found["annotations"])
    for annotation in found["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 96
        assert min(width, height) >= 3
        assert annotation["area"] == width * height


def test_every_image_has_one_to_four_objects_and_every_class_and_size_occurs(scenes):
    found = read(scenes, "train")
    counts = [sum(a["image_id"] == image["id"] for a in found["annotations"]) for image in found["images"]]
    assert min(counts) >= 1
    assert max(counts) == 4
    assert {annotation["category_id"] for annotation in found["annotations"]} == set(range(1, len(SCENE_CLASSES) + 1))
    sides = [annotation["area"] ** 0.5 / 96 for annotation in found["annotations"]]
    assert min(sides) < 0.2
    assert max(sides) > 0.45


def test_lookalikes_are_in_the_image_and_not_among_the_labels(scenes):
    found = read(scenes, "train")
    assert {entry["name"] for entry in found["unlabelled"]} == set(LOOKALIKE_CLASSES)
    assert not set(LOOKALIKE_CLASSES) & set(SCENE_CLASSES)
    assert len(found["unlabelled"]) > 20


def test_boxes_are_tight(monkeypatch):
    """Painted white on black without noise, what is not black lies in the boxes and touches their sides."""
    black = np.zeros((96, 96, 3), dtype=np.float32)
    monkeypatch.setattr("understudy.data.scenes._background", lambda rng, size: black.copy())

    def paint(rng, canvas, mask):
        canvas[:] = np.where(mask[..., None] > 0.5, 255, canvas)

    class Silent:
        """A generator whose pixel noise is zero."""

        def __init__(self, seed):
            self.inner = np.random.default_rng(seed)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def normal(self, mean, spread, shape):
            return np.zeros(shape, dtype=np.float32)

    monkeypatch.setattr("understudy.data.scenes._paint", paint)
    for seed in range(10):
        pixels, objects = draw_scene(Silent(seed), 96)
        lit = pixels[..., 0] > 0
        covered = np.zeros_like(lit)
        for _, (x, y, width, height) in objects:
            inside = lit[y : y + height, x : x + width]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            covered[y : y + height, x : x + width] = True
        assert not (lit & ~covered).any()


def test_all_faults_are_named_at_once_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError) as caught:
        make_scenes(tmp_path, train=0, val=1, size=8, seed=-1)
    message = str(caught.value)
    assert all(word in message for word in ("train", "size", "seed", "new or empty"))
    assert "val:" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
