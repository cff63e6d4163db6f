"""Records of images, and the flat arrays that they are views of."""

import pickle
from pathlib import Path

import pytest
import torch
from data_sets import OBJECTS, make

from understudy.data import Record, Records, open_data


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Three images with 2, 0 and more objects, in the order of `OBJECTS`."""
    return open_data(make("coco flat", tmp_path)[0]).records


def same(one: Record, other: Record) -> bool:
    arrays = ("boxes", "labels", "ignore", "areas", "annotation_ids")
    return (one.image_id, one.path, one.width, one.height) == (
        other.image_id,
        other.path,
        other.width,
        other.height,
    ) and all(torch.equal(getattr(one, name), getattr(other, name)) for name in arrays)


def test_records_are_views_of_the_arrays(records: Records) -> None:
    assert len(records) == len(OBJECTS) == 3
    for record, (name, objects), path in zip(records, OBJECTS.items(), records.paths(), strict=True):
        assert record.path.name == name
        assert str(record.path) == path
        assert len(record.boxes) == len(objects)
        assert record.boxes.untyped_storage().data_ptr() == records.boxes.untyped_storage().data_ptr()
    assert records.objects_to_learn().tolist() == [len(objects) for objects in OBJECTS.values()]
    assert same(records[-1], records[2])
    with pytest.raises(IndexError):
        records[3]


def test_chosen_records_keep_their_objects(records: Records) -> None:
    for places in ([2, 0], [1], [], [0, 0, 2]):
        chosen = records.take(places)
        assert len(chosen) == len(places)
        assert all(same(one, records[place]) for one, place in zip(chosen, places, strict=True))
    assert all(map(same, records[::-1], list(records)[::-1]))


def test_records_from_anywhere_are_put_together(records: Records, tmp_path: Path) -> None:
    other = Record.without_objects(7, tmp_path / "other" / "ü.png", (3, 4))
    together = Records.of([*records, other, Record.without_objects(8, Path("here.png"), (5, 6))])
    assert all(map(same, together[:3], records))
    assert same(together[3], other)
    assert together[4].path == Path("here.png")
    joined = Records.joined([records, together])
    assert joined.image_ids() == list(range(1, 9))
    assert joined.annotation_ids.tolist() == list(range(1, 2 * len(records.labels) + 1))
    assert [record.path for record in joined] == [record.path for part in (records, together) for record in part]


def test_records_travel_to_worker_processes_by_value(records: Records) -> None:
    copy = pickle.loads(pickle.dumps(records[0]))
    assert isinstance(copy, Record)
    assert copy.path == records[0].path
    assert torch.equal(copy.boxes, records[0].boxes)
