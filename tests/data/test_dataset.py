"""Every layout reads as the same objects; splits, unlabelled images, and what is refused."""

import logging
import math
from pathlib import Path

import pytest
import torch
from data_sets import LAYOUTS, OBJECTS, SIZE, coco, make, message_of, write_coco, write_voc

from understudy.data import DetectionData, open_data, open_unlabelled, splits
from understudy.errors import UserError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_the_same_objects(layout: str, tmp_path: Path) -> None:
    path, split = make(layout, tmp_path / "data")
    data = open_data(path, split)
    assert data.format == layout.split()[0]
    assert data.classes == ("cat", "dog")
    assert [record.path.name for record in data.records] == list(OBJECTS)
    for record in data.records:
        assert record.path.is_file()
        assert (record.width, record.height) == SIZE
        expected = OBJECTS[record.path.name]
        assert [data.classes[label] for label in record.labels] == [name for name, _ in expected]
        torch.testing.assert_close(
            record.boxes, torch.tensor([box for _, box in expected], dtype=torch.float64).reshape(-1, 4)
        )


def test_split_names_have_short_forms(tmp_path: Path) -> None:
    write_coco(tmp_path / "a/annotations/instances_train2017.json", tmp_path / "a/train2017")
    write_coco(tmp_path / "a/annotations/instances_val2017.json", tmp_path / "a/val2017")
    assert splits(tmp_path / "a") == ["train", "val"]
    assert open_data(tmp_path / "a", "val2017").records[0].path.parent.name == "val2017"
    write_coco(tmp_path / "b/valid/_annotations.coco.json", tmp_path / "b/valid")
    assert splits(tmp_path / "b") == ["val"]
    assert len(open_data(tmp_path / "b", "valid")) == len(open_data(tmp_path / "b", "val")) == 3
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / "c/VOCdevkit" / year, {"train": ["a"], "val": ["b"]})
    assert splits(tmp_path / "c") == ["VOC2007/train", "VOC2007/val", "VOC2012/train", "VOC2012/val"]


def test_unusable_boxes_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = coco()
    boxes = [[5, 5, 0, 10], [math.nan, 0, 5, 5], [100, 0, 5, 5], [-3, -3, 200, 200]]
    content["annotations"] += [
        {"id": 100 + i, "image_id": 3, "category_id": 2, "bbox": box} for i, box in enumerate(boxes)
    ]
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", content)
    with caplog.at_level(logging.WARNING):
        data = open_data(tmp_path)
    assert data.records[2].annotation_ids.tolist() == [103]  # partly outside is usable, and kept as annotated
    assert data.records[2].boxes.tolist() == [[-3, -3, 197, 197]]
    (message,) = [record.getMessage() for record in caplog.records]
    for part in ("1 box empty", "1 box not finite", "1 box outside the image", "understudy check"):
        assert part in message


def test_a_data_set_without_annotations_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", coco() | {"annotations": []})
    assert "none of the 3 images has an annotated object" in message_of(tmp_path)


def test_paths_and_splits_that_do_not_exist(tmp_path: Path) -> None:
    path, _ = make("coco official", tmp_path / "birds")
    assert f"Did you mean {path}?" in message_of(tmp_path / "brids")
    assert 'has no split "trian". Available: train. Did you mean "train"?' in message_of(path, "trian")
    (tmp_path / "empty").mkdir()
    message = message_of(tmp_path / "empty")
    assert all(part in message for part in ("COCO: annotations/", "VOC: Annotations/", "YOLO: a .yaml"))
    (tmp_path / "note.md").touch()
    assert "none of the known formats" in message_of(tmp_path / "note.md")


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    rows = [{"id": i, "image_id": 1, "category_id": 99, "bbox": [0, 0, 5, 5]} for i in range(500)]
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", coco() | {"annotations": rows})
    message = message_of(tmp_path)
    assert "500 faults" in message
    assert "unknown category: 470 more" in message
    assert len(message.splitlines()) < 40


# --- images without labels --------------------------------------------------------------------------------------------


def test_a_folder_of_images_without_labels(more: DetectionData) -> None:
    assert [record.path.name for record in more.records] == ["a.png", "b.JPG", "c.png", "d.jpg", "turned.jpg"]
    assert [(record.width, record.height) for record in more.records][3:] == [(43, 60), (60, 40)]
    assert all(len(record.boxes) == len(record.labels) == 0 for record in more.records)


def test_of_a_data_set_the_training_images_are_taken_without_their_labels(data: DetectionData) -> None:
    found = open_unlabelled(data.source.parent)
    assert [record.path for record in found.records] == [record.path for record in data.records]
    assert all(len(record.labels) == 0 for record in found.records)


@pytest.mark.filterwarnings("error")
def test_unlabelled_images_that_cannot_be_used(data: DetectionData, more: DetectionData, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"No unlabelled images in .*empty: expected files that end in \.bmp, "):
        open_unlabelled(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no such file or folder. Did you mean .*more"):
        open_unlabelled(tmp_path / "mor")
    with pytest.raises(UserError, match=r"All 7 unlabelled images of .* belong to data.train or data.val"):
        open_unlabelled(data.source.parent, seen=[data])
    more.records[0].path.write_text("no image")
    more.records[2].path.write_text("")
    with pytest.raises(UserError, match=r"2 of the 5 unlabelled images(.|\n)*a\.png cannot(.|\n)*c\.png cannot"):
        open_unlabelled(more.source)


def test_labelled_images_among_the_unlabelled_are_left_out(data: DetectionData, more: DetectionData) -> None:
    (more.source / "link.png").symlink_to(data.records[0].path)
    assert len(open_unlabelled(more.source)) == 6
    assert len(open_unlabelled(more.source, seen=[data])) == 5


def test_a_run_folder_is_no_data_set(tmp_path):
    (tmp_path / "result.json").write_text('{"coco": {"AP": 0.5}, "images": 12}')
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{tmp_path} is a run folder, not a data set. Give the path of a data set"):
        open_data(tmp_path, "val")
