"""PASCAL VOC: classes, corners, and all faults at once."""

from pathlib import Path

from data_sets import OBJECTS, SIZE, message_of, voc_xml, write_voc

from understudy.data import open_data


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
