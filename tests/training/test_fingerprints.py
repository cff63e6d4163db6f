"""Fingerprints: the same for a data set that was moved, another for any change."""

import dataclasses

import pytest
import torch
from data_sets import LAYOUTS, make
from small_detectors import small

from understudy.data import Records, open_data, open_unlabelled
from understudy.training.fingerprints import fingerprints

ABSOLUTE = "yolo list"  # it names an image by its absolute path


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != ABSOLUTE])
def test_a_data_set_that_was_moved_is_the_same(layout, tmp_path):
    found = []
    for place in ("here", "there"):
        path, split = make(layout, tmp_path / place)
        data = open_data(path, split)
        found.append(fingerprints(data, data, None, None))
    assert found[0] == found[1]
    assert list(found[0]) == [
        "annotations of data.train",
        "image files of data.train (names and sizes)",
        "annotations of data.val",
        "image files of data.val (names and sizes)",
    ]


def test_any_change_of_an_annotation_is_seen(tmp_path):
    data = open_data(*make("coco flat", tmp_path))

    def changed(**values):
        first = dataclasses.replace(data.records[0], **values)
        return dataclasses.replace(data, records=Records.of([first, *data.records[1:]]))

    record = data.records[0]
    others = [
        changed(boxes=record.boxes + 1e-6),
        changed(labels=1 - record.labels),
        changed(ignore=~record.ignore),
        changed(areas=record.areas + 1),
        changed(width=record.width + 1),
        changed(image_id=99),
        dataclasses.replace(data, records=data.records[::-1]),
        dataclasses.replace(data, classes=data.classes[::-1]),
    ]
    found = [fingerprints(one, data, None, None)["annotations of data.train"] for one in (data, *others)]
    assert len(set(found)) == len(found)


def test_any_change_of_an_image_file_is_seen(tmp_path):
    data = open_data(*make("coco flat", tmp_path / "data"))

    def found():
        pair = fingerprints(data, data, open_unlabelled(tmp_path / "data" / "images"), None)
        return [value for name, value in pair.items() if name.startswith("image files")]

    before, file = found(), data.records[0].path
    assert len(before) == 3
    file.touch()
    assert found() == before
    file.write_bytes(file.read_bytes() + b"\0")
    larger = found()
    assert all(now != then for now, then in zip(larger, before, strict=True))
    file.rename(file.with_name("z.jpg"))
    renamed = found()
    assert all(now != then for now, then in zip(renamed, larger, strict=True))


def test_any_change_of_a_weight_of_the_teacher_is_seen(tmp_path):
    data, teacher = open_data(*make("coco flat", tmp_path)), small("fcos")

    def found():
        return fingerprints(data, data, None, teacher)["weights of the teacher"]

    before = found()
    teacher.network.to(memory_format=torch.channels_last)
    assert found() == before
    with torch.no_grad():
        list(teacher.network.parameters())[-1].add_(1e-6)
    assert found() != before
