"""YOLO: polygons, missing names, and all faults at once."""

from pathlib import Path

import pytest
import torch
from data_sets import message_of, write_yolo

from understudy.data import check_data, open_data


def test_yolo_polygons_and_missing_names(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "labels/train/c.txt").write_text("3 0.1 0.5 0.3 0.25 0.2 0.75\n")
    data = open_data(tmp_path)
    assert data.classes == ("0", "1", "2", "3")
    torch.testing.assert_close(data.records[2].boxes, torch.tensor([[10.0, 20.0, 30.0, 60.0]], dtype=torch.float64))


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    """Windows' editors write it at the start of a file in UTF-8."""
    mark = b"\xef\xbb\xbf"
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "classes.txt").write_bytes(mark + b"cat\r\ndog\r\ncow\r\nhen\r\n")
    (tmp_path / "labels/train/c.txt").write_bytes(mark + b"3 0.5 0.5 0.1 0.1\n")
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog", "cow", "hen")
    assert data.records[2].labels.tolist() == [3]
    (tmp_path / "data.yaml").write_bytes(mark + b"names: [cat, dog, cow, hen]\ntrain: train.txt\n")
    (tmp_path / "train.txt").write_bytes(mark + b"images/train/c.jpg\n")
    data = open_data(tmp_path / "data.yaml")
    assert (data.classes[0], len(data)) == ("cat", 1)


def test_faults_of_yolo_files_are_named_at_once(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    lines = ["2 0.5 0.5 0.1 0.1", "0 50 40 10 10", "0 0.5 0.5", "cat 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1"]
    (tmp_path / "labels/train/c.txt").write_text("\n".join(lines))
    message = message_of(tmp_path)
    assert "c.txt, line 1: expected a class from 0 to 1, got 2" in message
    assert "(pixels?)" in message
    assert [number for number in range(1, 6) if f"c.txt, line {number}:" not in message] == []


def test_faults_of_a_yolo_yaml_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat, cat]\nnc: 3\nval: 5\n")
    message = message_of(tmp_path)
    assert all(
        part in message
        for part in ("used twice", "nc: expected 2, the number of names, got 3", "val: expected a path, got 5")
    )
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnc: '2'\ntrain: images\n")
    assert "nc: expected 2, the number of names, got the text '2'; leave out the quotes" in message_of(tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: cat}\ntrain: [images\n")
    assert "is not valid YAML, line 3" in message_of(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: nowhere\n")
    assert "nowhere does not exist" in message_of(tmp_path)


def test_class_names_that_yaml_reads_as_other_values_are_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "data.yaml").write_text("names: [yes, null, cat]\ntrain: images/train\n")
    assert 'names: expected text, got true, null; put such names in quotes, e.g. "no"' in message_of(tmp_path)
    (tmp_path / "data.yaml").write_text("names: ['yes', 'null']\ntrain: images/train\n")
    assert open_data(tmp_path).classes == ("yes", "null")
    (tmp_path / "data.yaml").write_text("names: [1, 2.5]\ntrain: images/train\n")
    assert open_data(tmp_path).classes == ("1", "2.5")


def test_a_data_yaml_comes_before_other_yaml_files(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "backup.yaml").write_text("names: [dog, cat]\ntrain: images/train\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\n")
    assert open_data(tmp_path).classes == ("cat", "dog")
    (tmp_path / "data.yaml").rename(tmp_path / "photos.yaml")
    message = message_of(tmp_path)
    assert "several data set files: backup.yaml, photos.yaml" in message
    assert f"Give one of them, e.g. {tmp_path / 'backup.yaml'}, or rename it to data.yaml" in message
    assert open_data(tmp_path / "photos.yaml").classes == ("cat", "dog")


def test_label_files_without_an_image_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    labels = tmp_path / "labels/train"
    (labels / "classes.txt").write_text("cat\ndog\n")  # as labelling tools write it
    (labels / "empty.txt").touch()
    assert [fault for fault in check_data(tmp_path).warnings if fault.kind == "labels without image"] == []
    (labels / "a.txt").rename(labels / "img_a.txt")
    (warning,) = (fault for fault in check_data(tmp_path).warnings if fault.kind == "labels without image")
    assert str(warning) == f"train: img_a.txt: no image of this name in {tmp_path / 'images/train'}"
    open_data(tmp_path)
    assert "labels without image: img_a.txt" in caplog.text
