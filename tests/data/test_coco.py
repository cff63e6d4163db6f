"""COCO JSON: ids, areas and crowds are kept, and all faults are reported at once."""

import json
from pathlib import Path

import pytest
from data_sets import OBJECTS, coco, make, message_of, write_coco

from understudy.data import Limits, open_data

BAD_BOX = 'bbox" must be [x, y, width, height]'


def test_coco_ids_and_areas_are_kept(tmp_path: Path) -> None:
    path, _ = make("coco flat", tmp_path)
    data = open_data(path)
    assert data.category_ids == (2, 7)
    written = data.to_coco()
    assert [image["id"] for image in written["images"]] == [1, 2, 3]
    assert [image["file_name"] for image in written["images"]] == list(OBJECTS)
    for mine, original in zip(written["annotations"], coco()["annotations"], strict=True):
        assert mine == original | {"iscrowd": 0}


def test_to_coco_gives_back_real_boxes_to_the_last_digit(shared: Path) -> None:
    for name in ("bccd", "voc12s"):
        original = json.loads((shared / "data" / name / "instances_val.json").read_text())
        written = open_data(shared / "data" / name, "val").to_coco()
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        mine = {row["id"]: [row[key] for key in keys] for row in written["annotations"]}
        assert mine == {row["id"]: [row[key] for key in keys] for row in original["annotations"]}


def test_crowds_are_marked(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["iscrowd"] = 1
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", content)
    data = open_data(tmp_path)
    assert data.records[0].ignore.tolist() == [True, False]
    assert [row["iscrowd"] for row in data.to_coco()["annotations"]] == [1, 0, 0]


def test_all_faults_of_a_coco_file_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").touch()
    images = tmp_path / "data/images"
    images.mkdir(parents=True)
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    content = coco()
    content["images"] += [{"id": 1, "file_name": "twice.jpg", "width": 9, "height": 9}]
    names = [
        "/etc/passwd",
        "../../secret.jpg",
        "link.jpg",
        "a/../../b.jpg",
        "C:\\x.jpg",
        "x\0.jpg",
        "\ud800",
        "x" * 300,
    ]
    content["images"] += [{"id": 50 + i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)]
    content["images"] += [{"id": 60, "file_name": "z.jpg", "width": 0, "height": "9"}, {"file_name": "y.jpg"}, "row"]
    content["categories"].append({"id": 2, "name": "bird"})
    good = {"image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5]}
    content["annotations"] += [
        {**good, "id": 0 + 10},
        {**good, "id": 201, "image_id": 999},
        {**good, "id": 202, "category_id": 3},
        {**good, "id": 203, "bbox": [1, 2, 3]},
        {**good, "id": 204, "bbox": None},
        {**good, "id": "205"},
        {**good, "id": 207, "bbox": [True, 1, 5, 5]},
        {**good, "id": 206, "bbox": [10**400, 0, 1, 1]},
    ]
    write_coco(tmp_path / "data/instances_train.json", images, content)
    message = message_of(tmp_path / "data")
    expected = [
        "image id 1 is used twice",
        "category id 2 is used twice",
        "annotation id 10 is used twice",
        "image_id 999",
    ]
    expected += [
        "expected a category_id of 2, 7, got 3",
        f'"{BAD_BOX}, got [1, 2, 3]',
        'integer for "id"',
        "0 and 9",
        "images[13]",
    ]
    expected += [f'file_name "{name}" is not inside' for name in names[:5]]
    expected += [f"{name[:200]!r} is not a valid file name" for name in names[5:]]
    assert [part for part in expected if part not in message] == []
    assert message.count("bbox") == 4


def test_a_folder_of_images_that_is_a_link_is_used_only_on_purpose(tmp_path: Path) -> None:
    write_coco(tmp_path / "data/instances_train.json", tmp_path / "elsewhere")
    (tmp_path / "data/images").symlink_to(tmp_path / "elsewhere")
    assert "data.allow_outside=true" in message_of(tmp_path / "data")
    assert open_data(tmp_path / "data", limits=Limits(allow_outside=True)).records[0].path.is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not COCO"),
        ('{"images": [], "annotations": {}}', '"annotations" is a dict, not a list\n  - "categories" is missing'),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "it has no images"),
    ],
)
def test_files_that_are_not_coco(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "instances_train.json").write_text(text)
    message = message_of(tmp_path)
    assert expected in message
    assert "instances_train.json" in message
