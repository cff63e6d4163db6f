"""COCO's numbers: equal to pycocotools driven directly."""

import contextlib
import io
import math
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from splits import detection, make_split, random_case

from understudy.data import DetectionData, open_data
from understudy.errors import UserError
from understudy.evaluation import score

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def jittered(data: DetectionData, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for record in data.records:
        for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            if rng.random() < 0.9:
                x1, y1, x2, y2 = (value + rng.normal(0, 6) for value in box)
                bbox = [x1, y1, max(x2 - x1, 1.0), max(y2 - y1, 1.0)]
                category = data.category_ids[label if rng.random() < 0.9 else 0]
                rows.append(
                    {"image_id": record.image_id, "category_id": category, "bbox": bbox, "score": float(rng.random())}
                )
    return rows


def driven_directly(data: DetectionData, rows: list[dict]) -> dict[str, float]:
    """The 12 numbers as pycocotools' own tutorial gets them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data.to_coco()
        for number, annotation in enumerate(truth.dataset["annotations"], start=1):
            annotation["id"] = number
        truth.createIndex()
        found = truth.loadRes([dict(one) for one in rows])
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: math.nan if value == -1 else float(value) for name, value in zip(NAMES, run.stats, strict=True)}


def assert_same(left: dict[str, float], right: dict[str, float]) -> None:
    assert left == pytest.approx(right, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", range(6))
def test_the_twelve_numbers_are_those_of_pycocotools(backend, seed):
    data, rows = random_case(seed)
    result = score(data, rows, backend=backend)
    assert_same(result.coco, driven_directly(data, rows))
    assert 0 < result.coco["AP"] < 1
    assert math.isnan(result.per_class["never seen"])
    assert result.coco["AP"] == pytest.approx((result.per_class["cat"] + result.per_class["dog"]) / 2)
    assert result.images == 6


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_of_more_than_100_detections_the_best_100_count(backend):
    data, rows = random_case(1, images=2, most=9)
    rng = np.random.default_rng(0)
    rows += [detection(0, [i, i, i + 50.0, i + 50.0], float(rng.random()), 3) for i in range(150)]
    assert_same(score(data, rows, backend=backend).coco, driven_directly(data, rows))


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_detections_is_zero_and_no_objects_is_undefined(backend):
    data, rows = random_case(2)
    nothing_found = score(data, [], backend=backend)
    assert nothing_found.coco["AP"] == nothing_found.voc["AP50"] == nothing_found.voc["AP50_11point"] == 0
    empty = make_split([{}, {}], data.classes, data.category_ids)
    for detections in ([], [one for one in rows if one["image_id"] <= 10]):
        nothing_there = score(empty, detections, backend=backend)
        assert all(math.isnan(value) for value in nothing_there.coco.values())
        assert math.isnan(nothing_there.voc["AP50"])


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_real_annotations_with_jittered_boxes(backend, shared):
    data = open_data(shared / "data" / "bccd", "val")
    rows = jittered(data, seed=0)
    result = score(data, rows, backend=backend)
    assert_same(result.coco, driven_directly(data, rows))
    assert list(result.per_class) == list(data.classes)
    assert 0.3 < result.coco["AP50"] < 1
    assert 0.3 < result.voc["AP50"] < 1


def test_nothing_is_printed(capfd):
    data, rows = random_case(0)
    for backend in ("hotcoco", "pycocotools"):
        score(data, rows, backend=backend)
    assert capfd.readouterr() == ("", "")


def test_backend_falls_back_and_says_what_to_install(monkeypatch):
    data, rows = random_case(0)
    expected = score(data, rows, backend="hotcoco")
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert_same(score(data, rows).coco, expected.coco)
    with pytest.raises(UserError, match="pip install hotcoco"):
        score(data, rows, backend="hotcoco")
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match="hotcoco or pycocotools"):
        score(data, rows)
    with pytest.raises(UserError, match="unknown evaluation backend 'faster'"):
        score(data, rows, backend="faster")
