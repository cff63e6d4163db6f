"""Predictions: on a folder, an image and a data set; what is written; and every wrong input by one clear message."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.checkpoints import FORMAT, STUDENT, build_options, write_checkpoint
from understudy.config import TrainConfig
from understudy.data import open_data
from understudy.data.images import load_pixels
from understudy.errors import UserError
from understudy.evaluation import evaluate, score
from understudy.evaluation.drawing import draw_detections, place_labels
from understudy.evaluation.prediction import predict
from understudy.networks import build_network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained detector of two classes that is unsure of everything: every score is near a half."""
    config = TrainConfig(
        data={"path": "unused", "shorter_side": [64], "longer_side": 96},
        detector={"name": "retinanet_mobilenet_v2", "neck_channels": 8, "width_mult": 0.35, "norm": "batch"},
        run="unused",
    )
    torch.manual_seed(0)
    options = build_options(config, num_classes=2)
    network = build_network(**options)
    torch.nn.init.zeros_(network.head.classification_head.cls_logits.bias)
    torch.nn.init.normal_(network.head.classification_head.cls_logits.weight, std=0.3)
    meta = {
        "format": FORMAT,
        "build": options,
        "classes": ["cat", "dog"],
        "category_ids": [4, 8],
        "config": config.model_dump(mode="json"),
    }
    file = tmp_path_factory.mktemp("run") / "best.ckpt"
    weights = {STUDENT + name: value for name, value in network.state_dict().items()}
    write_checkpoint(file, {"understudy": meta, "state_dict": weights})
    return file


def save_image(path, size=(70, 50), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(map(ord, path.name))).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture
def folder(tmp_path):
    """Images of several kinds, one of them a photo that lies on its side, and a file that is no image."""
    save_image(tmp_path / "photos" / "a.jpg")
    Image.new("L", (40, 60), 128).save(tmp_path / "photos" / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    save_image(tmp_path / "photos" / "c.jpeg", exif=turned)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def data_set(tmp_path):
    """A COCO data set whose classes stand in another order, under other ids, than in the checkpoint."""
    save_image(tmp_path / "set" / "images" / "x.jpg")
    save_image(tmp_path / "set" / "images" / "more" / "x.jpg")
    names = ["x.jpg", "more/x.jpg"]
    content = {
        "images": [{"id": i, "file_name": name, "width": 70, "height": 50} for i, name in enumerate(names)],
        "categories": [{"id": 20, "name": "dog"}, {"id": 30, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 20, "bbox": [5, 5, 40, 30], "area": 1200, "iscrowd": 0}
        ],
    }
    (tmp_path / "set" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path / "set"


def test_a_folder_of_images(checkpoint, folder, tmp_path):
    rows = predict(checkpoint, folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == rows
    assert {(row["image_id"], row["file_name"]) for row in rows} == {(1, "a.jpg"), (2, "b.png"), (3, "c.jpeg")}
    assert {(row["category_id"], row["category"]) for row in rows} == {(4, "cat"), (8, "dog")}
    for image_id, width, height in [(1, 70, 50), (2, 40, 60), (3, 50, 70)]:
        corners = torch.tensor([row["bbox"] for row in rows if row["image_id"] == image_id])
        corners[:, 2:] += corners[:, :2]
        assert len(corners) > 0
        assert (corners >= 0).all()
        assert (corners <= torch.tensor([width, height, width, height]) + 1e-3).all()
    drawn = {file.name: pixels_of(file).shape[:2] for file in (tmp_path / "out" / "images").iterdir()}
    assert drawn == {"a.jpg": (50, 70), "b.png": (60, 40), "c.jpeg": (70, 50)}


def test_one_image_and_the_threshold_of_the_drawing(checkpoint, folder, tmp_path):
    many = predict(checkpoint, folder / "b.png", tmp_path / "many", score_threshold=0.0)
    none = predict(checkpoint, folder / "b.png", tmp_path / "none", score_threshold=1.0)
    assert many == none != []  # the file holds all of them, however unsure
    original = pixels_of(folder / "b.png")
    assert np.array_equal(pixels_of(tmp_path / "none" / "images" / "b.png"), original)
    assert not np.array_equal(pixels_of(tmp_path / "many" / "images" / "b.png"), original)


def test_a_photo_is_turned_as_viewers_show_it(checkpoint, tmp_path):
    """By half, so that its size does not tell; and as a file that is stored upright."""
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=upside_down)
    Image.fromarray(noise[::-1, ::-1]).save(tmp_path / "upright.png")
    turned, upright = (predict(checkpoint, tmp_path / f"{name}.png", tmp_path / name) for name in ("turned", "upright"))
    assert [(row["bbox"], row["score"]) for row in turned] == [(row["bbox"], row["score"]) for row in upright] != []


def test_several_sources(checkpoint, folder, data_set, tmp_path):
    """A folder, an image in it, and an image of another folder: each image once, below their common folder."""
    other = save_image(tmp_path / "others" / "a.jpg")
    rows = predict(checkpoint, [folder / "c.jpeg", folder, other], tmp_path / "out", workers=0)
    files = ["photos/c.jpeg", "photos/a.jpg", "photos/b.png", "others/a.jpg"]
    assert list(dict.fromkeys((row["image_id"], row["file_name"]) for row in rows)) == list(enumerate(files, start=1))
    assert all((tmp_path / "out" / "images" / name).is_file() for name in files)
    alone = predict(checkpoint, other, tmp_path / "alone", workers=0)
    assert [row["bbox"] for row in rows if row["image_id"] == 4] == [row["bbox"] for row in alone]
    with pytest.raises(UserError, match=r"(?s)Several sources must be images or folders.*set\n.*absent") as caught:
        predict(checkpoint, [folder, data_set, tmp_path / "absent"], tmp_path / "none")
    assert "photos" not in str(caught.value).partition(":")[2]


def test_labels_do_not_cover_each_other():
    """Sixty boxes in a crowd; the labels fit into the picture with room to spare."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 250, (60, 2))
    boxes = np.hstack([corners, rng.uniform(10, 90, (60, 2))]).tolist()
    placed = np.array(place_labels(boxes, [(50, 10)] * 60, (320, 320)))
    assert placed.min() >= 0
    assert placed.max() <= 320
    sides = np.minimum(placed[:, None, 2:], placed[:, 2:]) - np.maximum(placed[:, None, :2], placed[:, :2])
    assert (np.triu(sides.clip(0).prod(2), 1) == 0).all()
    alone = place_labels([(100, 100, 50, 50)], [(30, 10)], (320, 320))
    assert alone == [(100, 90, 130, 100)]  # above the box


def test_where_there_is_no_room_labels_cover_the_least():
    placed = place_labels([(0, 0, 20, 20)] * 5, [(20, 10)] * 5, (20, 20))
    assert len(set(placed)) == 2  # both halves of the picture


def test_a_data_set_keeps_its_ids_folders_and_class_order(checkpoint, data_set, tmp_path):
    rows = predict(checkpoint, data_set, tmp_path / "out")
    assert {row["file_name"] for row in rows} == {"x.jpg", "more/x.jpg"}
    assert {(row["category_id"], row["category"]) for row in rows} == {(20, "dog"), (30, "cat")}
    assert (tmp_path / "out" / "images" / "more" / "x.jpg").is_file()
    result = score(open_data(data_set, "val"), rows)
    assert result.coco == evaluate(checkpoint, data_set, split="val", device="cpu").coco


def test_drawn_boxes_have_the_colour_of_their_class_and_end_at_the_border():
    image = torch.zeros(3, 100, 120)
    inside = {"category_id": 1, "bbox": [20, 40, 60, 40], "score": 0.9}
    outside = {"category_id": 2, "bbox": [-50, -50, 500, 500], "score": 0.8}
    picture = np.array(draw_detections(image, [inside, outside], {1: "cat", 2: "dog"}))
    assert picture.shape == (100, 120, 3)
    assert tuple(picture[79, 50]) == (0xE6, 0x19, 0x4B)
    assert picture[90, 50].sum() == 0
    assert not np.array(draw_detections(image, [inside], {1: "cat"}, score_threshold=0.95)).any()


def test_all_unreadable_images_are_named_before_anything_is_written(checkpoint, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"not an image")
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 of 5 images(.|\n)*broken\.png(.|\n)*cut\.jpg"):
        predict(checkpoint, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once(checkpoint, folder, tmp_path, monkeypatch, workers):
    decoded = []

    def counting(path, *arguments):
        decoded.append(path.name)
        return load_pixels(path, *arguments)

    monkeypatch.setattr("understudy.data.records.load_pixels", counting)
    monkeypatch.setattr("understudy.evaluation.pictures._AHEAD", 1)
    rows = predict(checkpoint, folder, tmp_path / "out", batch_size=1, workers=workers)
    assert sorted(decoded) == ["a.jpg", "b.png", "c.jpeg"]
    together = predict(checkpoint, folder, tmp_path / "together", batch_size=3)
    assert [(row["file_name"], row["category"]) for row in together] == [
        (row["file_name"], row["category"]) for row in rows
    ]


def test_a_failure_leaves_the_output_folder_as_it_was(checkpoint, folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("understudy.evaluation.prediction.json.dumps", full)
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(OSError, match="No space"):
            predict(checkpoint, folder, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]
    assert not any((tmp_path / "empty").iterdir())


def test_unreadable_images_of_a_data_set(checkpoint, data_set, tmp_path):
    (data_set / "images" / "x.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images(.|\n)*x\.jpg does not exist"):
        predict(checkpoint, data_set, tmp_path / "out")


def test_nothing_to_predict_on(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(UserError, match=rf"No images to predict on: .*{source.name}"):
            predict(checkpoint, source, tmp_path / "out")


def test_a_used_output_folder_is_left_alone(checkpoint, folder, tmp_path):
    with pytest.raises(UserError, match="not an empty folder"):
        predict(checkpoint, folder, folder)
    with pytest.raises(UserError, match="not an empty folder"):
        predict(checkpoint, folder, folder / "a.jpg")


def test_a_threshold_out_of_range(checkpoint, folder, tmp_path):
    with pytest.raises(UserError, match="from 0 to 1, got 30"):
        predict(checkpoint, folder, tmp_path / "out", score_threshold=30)


def test_other_classes_are_listed(checkpoint, data_set, tmp_path):
    file = data_set / "instances_val.json"
    file.write_text(file.read_text().replace('"cat"', '"cow"').replace('"dog"', '"ox"'))
    for use in (lambda: predict(checkpoint, data_set, tmp_path / "out"), lambda: evaluate(checkpoint, data_set)):
        with pytest.raises(UserError, match=r"no class of the same name: the detector has cat, dog; .* has ox, cow"):
            use()


def test_classes_that_the_data_lack_are_left_out_and_named(checkpoint, data_set, tmp_path, caplog):
    file = data_set / "instances_val.json"
    file.write_text(file.read_text().replace('"dog"', '"ox"'))
    rows = predict(checkpoint, data_set, tmp_path / "out")
    assert {row["category"] for row in rows} == {"cat"}
    assert "lacks these classes of the detector; they are left out: dog" in caplog.text
