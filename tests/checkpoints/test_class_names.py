"""Class names of imported detectors."""

import pytest

from understudy.checkpoints.class_names import category_ids, class_names, coco_categories
from understudy.errors import UserError


def test_names_come_from_a_text_a_list_a_file_or_a_data_set(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("cat\ndog\n\ncow\n")
    for given in ("cat, dog,cow", ["cat", "dog", "cow"], str(file)):
        assert class_names(given) == ("cat", "dog", "cow")
    file.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\ncow\r\n")  # as Windows' editor saves UTF-8
    assert class_names(str(file)) == ("cat", "dog", "cow")
    assert class_names("coco") == tuple(coco_categories().values())
    assert len(class_names("coco")) == 80
    assert class_names("VOC")[::19] == ("aeroplane", "tvmonitor")


def test_names_that_are_invalid(tmp_path):
    with pytest.raises(UserError, match=r"Invalid class names: a occurs twice\. Expected each name once"):
        class_names("a,a,b")
    with pytest.raises(UserError, match="there is none"):
        class_names(", ")
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match=r"The list of classes .*names\.txt, line 1, is not UTF-8 text"):
        class_names(str(file))


def test_ids_are_those_of_coco_for_its_classes_alone():
    assert category_ids(class_names("coco")) == tuple(coco_categories())
    assert category_ids(("person", "bicycle")) == (1, 2)
    assert category_ids(("bicycle", "person")) == (1, 2)
