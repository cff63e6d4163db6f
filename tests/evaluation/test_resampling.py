"""AP on resampled images equals COCO's AP of a data set in which images occur several times."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from splits import detection, make_split, random_case

from understudy.data import DetectionData
from understudy.evaluation import Detections, score
from understudy.evaluation.resampling import Matches, image_interval, resampled_aps


def matched(data: DetectionData, rows: list[dict], backend: str = "auto") -> Matches:
    return Matches.of(data, Detections.of_rows(rows), backend)


def repeated(data: DetectionData, rows: list[dict], times: list[int]) -> tuple[DetectionData, list[dict]]:
    """A split in which each image occurs several times, under other ids."""
    copies, copied, count = [], [], 0
    for record, often in zip(data.records, times, strict=True):
        for _ in range(often):
            count += 1
            copies.append(replace(record, image_id=count))
            copied += [{**row, "image_id": count} for row in rows if row["image_id"] == record.image_id]
    return replace(data, records=type(data.records).of(copies)), copied


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", range(4))
def test_without_resampling_it_is_cocos_ap(backend, seed):
    data, rows = random_case(seed)
    assert matched(data, rows, backend).ap() == pytest.approx(score(data, rows).coco["AP"], abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(8))
def test_images_that_occur_several_times(seed):
    data, rows = random_case(seed)
    rows = [{**row, "score": row["score"] + number / 1e5} for number, row in enumerate(rows)]  # no ties
    times = np.random.default_rng(seed).integers(0, 3, len(data))
    times[0] = max(times[0], 1)
    more, copied = repeated(data, rows, times.tolist())
    by_id = dict(zip((record.image_id for record in data.records), times, strict=True))
    weights = np.array([[1] * len(by_id), [by_id[number] for number in sorted(by_id)]])
    expected = [score(data, rows).coco["AP"], score(more, copied).coco["AP"]]
    assert matched(data, rows).aps(weights).tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_all_detectors_get_the_same_samples():
    data, rows = random_case(1)
    found = resampled_aps([matched(data, rows), matched(data, rows)], samples=5)
    assert found.shape == (5, 2)
    assert (found[:, 0] == found[:, 1]).all()
    assert len(Counter(found[:, 0].tolist())) > 1
    assert (found == resampled_aps([matched(data, rows)] * 2, samples=5)).all()


def test_matches_survive_a_file(tmp_path):
    data, rows = random_case(2)
    before = matched(data, rows)
    np.savez(tmp_path / "matches.npz", **before.to_arrays())
    with np.load(tmp_path / "matches.npz") as arrays:
        assert Matches.from_arrays(arrays).ap() == before.ap()


def test_no_detections_at_all_and_no_objects():
    assert matched(make_split([{"boxes": [[0, 0, 40, 40]]}]), []).ap() == 0
    assert np.isnan(matched(make_split([{}]), [detection(0, [0, 0, 9, 9], 0.5)]).ap())


def test_the_interval_of_a_difference_is_centred_on_it():
    samples = np.random.default_rng(0).normal(0.03, 0.01, 4000)
    low, high = image_interval(0.02, samples)
    assert (low, high) == pytest.approx((0.02 - 0.0196, 0.02 + 0.0196), abs=0.001)
    assert image_interval(0.02, np.append(samples, np.nan)) == (low, high)
