"""Records of images."""

import pickle
from pathlib import Path

import torch
from data_sets import make

from understudy.data import Record, open_data


def test_records_travel_to_worker_processes_by_value(tmp_path: Path) -> None:
    path, _ = make("coco flat", tmp_path)
    record = open_data(path).records[0]
    copy = pickle.loads(pickle.dumps(record))
    assert isinstance(copy, Record)
    assert copy.path == record.path
    assert torch.equal(copy.boxes, record.boxes)
