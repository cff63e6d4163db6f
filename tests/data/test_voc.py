"""PASCAL VOC: classes, corners, and all faults at once."""

from pathlib import Path

import pytest
from data_sets import OBJECTS, SIZE, message_of, voc_xml, write_coco, write_voc

from understudy.data import check_data, open_data, splits
from understudy.errors import UserError


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


def test_only_one_and_true_are_difficult(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["b"]})
    file = tmp_path / "Annotations/b.xml"
    plain = file.read_text()
    for text, ignored in {"1": True, "True": True, "0": False, "false": False, "Unspecified": False, "": False}.items():
        file.write_text(plain.replace("<bndbox>", f"<difficult>{text}</difficult><bndbox>"))
        assert check_data(tmp_path).splits["train"].ignored == ignored, text
    file.write_text(plain.replace("<bndbox>", "<difficult>hard</difficult><bndbox>"))
    assert "b.xml, object 1: <difficult>: expected 0 or 1, got hard" in message_of(tmp_path)


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
        "a.xml: invalid XML: the file declares a DOCTYPE",
        "b.xml: invalid XML",
        "missing.xml: the file does not exist",
    ]
    expected += [
        '"a" is listed twice',
        '"../../outside" is not inside',
        "c.xml, object 1: <bndbox>",
        "object 2: it has no <name>",
    ]
    assert [part for part in expected if part not in message] == []


# --- several years as one ---------------------------------------------------------------------------------------------


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """VOC2007 with a test split and VOC2012 without, as they are distributed."""
    folder = tmp_path / "VOCdevkit"
    write_voc(folder / "VOC2007", {"trainval": ["a", "b"], "train": ["a"], "val": ["b"], "test": ["c", "b"]})
    write_voc(folder / "VOC2012", {"trainval": ["a", "c"], "train": ["b"], "val": ["a"]})
    return folder


def test_a_split_of_several_years_is_their_union(devkit: Path) -> None:
    years = [devkit / "VOC2007", str(devkit / "VOC2012")]
    for path in (devkit, devkit.parent, years):
        data = open_data(path, "trainval")
        files = [record.path.relative_to(devkit).as_posix() for record in data.records]
        assert files == [
            f"{year}/JPEGImages/{name}.jpg"
            for year, name in [("VOC2007", "a"), ("VOC2007", "b"), ("VOC2012", "a"), ("VOC2012", "c")]
        ]
        truth = data.to_coco()
        assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4]
        assert [image["file_name"] for image in truth["images"]] == files
        rows = [(row["id"], row["image_id"], row["category_id"]) for row in truth["annotations"]]
        assert rows == [(1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 3, 1), (5, 3, 2)]
        assert (data.classes, data.split, data.format) == (("cat", "dog"), "trainval", "voc")


def test_a_split_that_one_year_has_is_its_own(devkit: Path) -> None:
    data = open_data(devkit, "test")
    assert (data.split, data.source, len(data)) == ("VOC2007/test", devkit / "VOC2007", 2)
    assert open_data(devkit, "VOC2012/train").records[0].path == devkit / "VOC2012/JPEGImages/b.jpg"


def test_names_of_splits_are_joined_by_plus(devkit: Path) -> None:
    data = open_data(devkit, "VOC2007/trainval+VOC2012/train")
    assert [record.path.stem for record in data.records] == ["a", "b", "b"]
    with pytest.raises(
        UserError, match=r'no split "VOC2012/test". Available: VOC2007/test,.* Did you mean "VOC2007/test"'
    ):
        open_data(devkit, "VOC2007/test+VOC2012/test")
    with pytest.raises(UserError, match=r"image in two splits: VOC2007/trainval and VOC2007/train: .*/a.jpg"):
        open_data(devkit, "VOC2007/trainval+VOC2007/train")


def test_years_of_other_classes_are_not_one(devkit: Path) -> None:
    file = devkit / "VOC2012/Annotations/a.xml"
    file.write_text(file.read_text().replace("dog", "cow"))
    with pytest.raises(
        UserError, match=r"classes differ: VOC2012/trainval: cat, cow; but in VOC2007/trainval: cat, dog"
    ):
        open_data(devkit, "trainval")
    assert "VOC2012/val: cat, cow; but in VOC2007/" in check_data([devkit / "VOC2007", devkit / "VOC2012"]).to_text()


def test_faults_of_a_union_name_the_year(devkit: Path) -> None:
    (devkit / "VOC2012/Annotations/c.xml").unlink()
    with pytest.raises(UserError, match=r"annotation unreadable: VOC2012/trainval: c.xml: the file does not exist"):
        open_data(devkit, "trainval")


def test_data_sets_with_folders_of_one_name_are_named_in_full(devkit: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "more/VOC2007", {"trainval": ["a"]})
    paths = [devkit / "VOC2007", tmp_path / "more/VOC2007"]
    assert f"{paths[1]}/trainval" in splits(paths)
    assert len(open_data(paths, "trainval")) == 3


def test_data_sets_that_cannot_be_one(devkit: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "coco/train.json", tmp_path / "coco/images")
    with pytest.raises(UserError, match=r"must have one format to be used as one: VOC2007 is voc, coco is coco"):
        open_data([devkit / "VOC2007", tmp_path / "coco"], "train")
    with pytest.raises(UserError, match=r"VOC2007 is named twice"):
        open_data([devkit / "VOC2007", devkit / "VOC2007"], "train")


def test_the_check_takes_several_years(devkit: Path) -> None:
    report = check_data([devkit / "VOC2007", devkit / "VOC2012"])
    assert report.ok, report.to_text()
    assert report.splits["VOC2012/trainval"].images == 2
    assert report.path == f"{devkit / 'VOC2007'} {devkit / 'VOC2012'}"
    assert report.splits.keys() == check_data(devkit).splits.keys()
