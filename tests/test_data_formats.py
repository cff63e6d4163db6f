"""The same annotated images in every format and layout read as the same records; bad input is named, all at once."""

import json
import logging
import math
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from understudy.data import Record, open_data, splits
from understudy.errors import UserError

SIZE = (100, 80)
OBJECTS = {
    "a.jpg": [("cat", (10, 20, 40, 60)), ("dog", (0, 0, 100, 80))],
    "b.jpg": [("cat", (50, 10, 90, 30))],
    "c.jpg": [],
}
BAD_BOX = 'bbox" must be [x, y, width, height]'


def write_image(file: Path, size: tuple[int, int] = SIZE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(file)


def coco() -> dict:
    """The annotated images as a COCO dict; category ids have a gap and are not in order."""
    categories = {"dog": 7, "cat": 2}
    annotations = [
        {
            "id": 10 * i + j,
            "image_id": i,
            "category_id": categories[name],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": 5.5,
        }
        for i, objects in enumerate(OBJECTS.values(), start=1)
        for j, (name, (x1, y1, x2, y2)) in enumerate(objects)
    ]
    return {
        "images": [{"id": i, "file_name": f, "width": SIZE[0], "height": SIZE[1]} for i, f in enumerate(OBJECTS, 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
    }


def write_coco(annotation_file: Path, images: Path, content: dict | None = None) -> None:
    for name in OBJECTS:
        write_image(images / name)
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    annotation_file.write_text(json.dumps(coco() if content is None else content))


VOC_SIZE = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"


def voc_xml(objects: list, size: str = VOC_SIZE) -> str:
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    return f"<annotation><filename>wrong.jpg</filename>{size}{rows}</annotation>"


def write_voc(year: Path, lists: dict[str, list[str]]) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for name, objects in OBJECTS.items():
        write_image(year / "JPEGImages" / name)
        (year / "Annotations" / name).with_suffix(".xml").write_text(voc_xml(objects))
    for split, stems in lists.items():
        (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def write_yolo(images: Path, labels: Path) -> None:
    labels.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    for name, objects in OBJECTS.items():
        write_image(images / name)
        lines = []
        for kind, (x1, y1, x2, y2) in objects:
            centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            lines.append(f"{int(kind == 'dog')} {centre[0]} {centre[1]} {(x2 - x1) / width} {(y2 - y1) / height}")
        if lines:  # an image without objects has no label file
            (labels / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def make(layout: str, root: Path) -> tuple[Path, str]:
    """Write the data set in one layout; returns what to open and the split."""
    match layout:
        case "coco official":
            write_coco(root / "annotations/instances_train2017.json", root / "train2017")
            write_coco(root / "annotations/captions_train2017.json", root / "train2017", {})
        case "coco roboflow":
            write_coco(root / "train/_annotations.coco.json", root / "train")
        case "coco flat":
            write_coco(root / "instances_train.json", root / "images")
        case "coco beside":
            write_coco(root / "train.json", root)
        case "coco file":
            write_coco(root / "annotations/mine.json", root / "images")
            return root / "annotations/mine.json", "anything"
        case "coco file as split":
            write_coco(root / "x/mine.json", root / "images")
            return root, "x/mine.json"
        case "voc":
            write_voc(root, {"train": ["a", "b", "c"], "cat_train": ["a  1", "b  1", "c -1"]})
        case "voc devkit":
            write_voc(root / "VOCdevkit/VOC2007", {"train": ["a", "b", "c"]})
        case "voc roboflow":
            for name, objects in OBJECTS.items():
                write_image(root / "train" / name)
                (root / "train" / name).with_suffix(".xml").write_text(voc_xml(objects, size=""))
        case "yolo yaml":
            write_yolo(root / "d/images/train", root / "d/labels/train")
            content = {"path": "/nowhere/else", "train": "d/images/train", "nc": 2, "names": {0: "cat", 1: "dog"}}
            (root / "data.yaml").write_text(yaml.safe_dump(content))
            return root / "data.yaml", "train"
        case "yolo roboflow":
            write_yolo(root / "train/images", root / "train/labels")
            (root / "data.yaml").write_text(yaml.safe_dump({"train": "../train/images", "names": ["cat", "dog"]}))
        case "yolo folders":
            write_yolo(root / "images/train", root / "labels/train")
            (root / "classes.txt").write_text("cat\ndog\n")
        case "yolo list":
            write_yolo(root / "images", root / "labels")
            (root / "train.txt").write_text(f"images/a.jpg\n./images/b.jpg\n{root}/images/c.jpg\n")
            (root / "obj.names").write_text("cat\ndog\n")
    return root, "train"


LAYOUTS = [
    "coco official", "coco roboflow", "coco flat", "coco beside", "coco file", "coco file as split",
    "voc", "voc devkit", "voc roboflow", "yolo yaml", "yolo roboflow", "yolo folders", "yolo list",
]  # fmt: skip


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


def test_voc_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"], "val": ["b"]})
    assert open_data(tmp_path, "val").classes == open_data(tmp_path, "train").classes == ("cat", "dog")


def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"]})
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>80</ymax></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    xml = f"<annotation><object><name>cat</name><difficult>1</difficult>{part}{box}</object></annotation>"
    (tmp_path / "Annotations/a.xml").write_text(xml + "")
    (tmp_path / "Annotations/b.xml").write_text(voc_xml(OBJECTS["b.jpg"]))
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    record = open_data(tmp_path).records[0]
    assert record.boxes.tolist() == [[0, 0, 1, 80]]  # the devkit's own width: xmax - xmin + 1
    assert record.ignore.tolist() == [True]
    assert (record.width, record.height) == SIZE  # no <size>: from the file


def test_yolo_polygons_and_missing_names(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "labels/train/c.txt").write_text("3 0.1 0.5 0.3 0.25 0.2 0.75\n")
    data = open_data(tmp_path)
    assert data.classes == ("0", "1", "2", "3")
    torch.testing.assert_close(data.records[2].boxes, torch.tensor([[10.0, 20.0, 30.0, 60.0]], dtype=torch.float64))


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


def test_crowds_are_marked(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["iscrowd"] = 1
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", content)
    data = open_data(tmp_path)
    assert data.records[0].ignore.tolist() == [True, False]
    assert [row["iscrowd"] for row in data.to_coco()["annotations"]] == [1, 0, 0]


def test_records_travel_to_worker_processes_by_value(tmp_path: Path) -> None:
    path, _ = make("coco flat", tmp_path)
    record = open_data(path).records[0]
    copy = pickle.loads(pickle.dumps(record))
    assert isinstance(copy, Record)
    assert copy.path == record.path
    assert torch.equal(copy.boxes, record.boxes)


def message_of(path: Path, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        open_data(path, split)
    return str(error.value)


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
        "category_id 3 is not one of 2, 7",
        f'"{BAD_BOX}, got [1, 2, 3]',
        'integer for "id"',
        "0 and '9'",
        "images[13]",
    ]
    expected += [f"file_name {name[:200]!r} leads out" for name in names]
    assert [part for part in expected if part not in message] == []
    assert message.count("bbox") == 3


def test_a_folder_of_images_that_is_a_link_is_fine(tmp_path: Path) -> None:
    write_coco(tmp_path / "data/instances_train.json", tmp_path / "elsewhere")
    (tmp_path / "data/images").symlink_to(tmp_path / "elsewhere")
    assert open_data(tmp_path / "data").records[0].path.is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not COCO"),
        ('{"images": [], "annotations": {}}', '"annotations" is a dict, not a list\n  - "categories" is missing'),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "there is no image in it"),
    ],
)
def test_files_that_are_not_coco(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "instances_train.json").write_text(text)
    message = message_of(tmp_path)
    assert expected in message
    assert "instances_train.json" in message


def test_a_data_set_without_annotations_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", coco() | {"annotations": []})
    assert "none of the 3 images has an annotated object" in message_of(tmp_path)


def test_paths_and_splits_that_do_not_exist(tmp_path: Path) -> None:
    path, _ = make("coco official", tmp_path / "birds")
    assert f"Did you mean {path}?" in message_of(tmp_path / "brids")
    assert 'has no split "trian"; it has: train. Did you mean "train"?' in message_of(path, "trian")
    (tmp_path / "empty").mkdir()
    message = message_of(tmp_path / "empty")
    assert all(part in message for part in ("COCO: annotations/", "VOC: Annotations/", "YOLO: a .yaml"))
    (tmp_path / "note.md").touch()
    assert "none of the known formats" in message_of(tmp_path / "note.md")


def test_faults_of_voc_files_are_named_at_once(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a", "b", "c", "missing", "a", "../../outside"]})
    entity = (
        '<!DOCTYPE annotation [<!ENTITY x "xxxxxxxxxx">]><annotation><object><name>&x;</name></object></annotation>'
    )
    (tmp_path / "Annotations/a.xml").write_text(entity)
    (tmp_path / "Annotations/b.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations/c.xml").write_text(
        "<annotation><object><name>cat</name></object><object><bndbox/></object></annotation>"
    )
    message = message_of(tmp_path)
    expected = [
        "a.xml: not usable XML: it declares a DOCTYPE",
        "b.xml: not usable XML",
        "missing.xml: there is no such file",
    ]
    expected += [
        '"a" is listed twice',
        '"../../outside" leads out',
        "c.xml, object 1: <bndbox>",
        "object 2: it has no <name>",
    ]
    assert [part for part in expected if part not in message] == []


def test_faults_of_yolo_files_are_named_at_once(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    lines = ["2 0.5 0.5 0.1 0.1", "0 50 40 10 10", "0 0.5 0.5", "cat 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1"]
    (tmp_path / "labels/train/c.txt").write_text("\n".join(lines))
    message = message_of(tmp_path)
    assert "c.txt, line 1: class 2 is not one of 0..1" in message
    assert "(pixels?)" in message
    assert [number for number in range(1, 6) if f"c.txt, line {number}:" not in message] == []


def test_faults_of_a_yolo_yaml_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat, cat]\nnc: 3\nval: 5\n")
    message = message_of(tmp_path)
    assert all(part in message for part in ("used twice", "nc: is 3", "val: expected a path, got 5"))
    (tmp_path / "data.yaml").write_text("names: {1: cat}\ntrain: [images\n")
    assert "is not YAML" in message_of(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: nowhere\n")
    assert "there is no" in message_of(tmp_path)


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    rows = [{"id": i, "image_id": 1, "category_id": 99, "bbox": [0, 0, 5, 5]} for i in range(500)]
    write_coco(tmp_path / "instances_train.json", tmp_path / "images", coco() | {"annotations": rows})
    message = message_of(tmp_path)
    assert "500 faults" in message
    assert "unknown category: and 470 more" in message
    assert len(message.splitlines()) < 40
