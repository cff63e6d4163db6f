"""VOC's average precision: by hand, and against a slow restatement of the devkit in inclusive pixel corners."""

import math

import pytest
from splits import detection, make_split, random_case

from understudy.data import DetectionData
from understudy.evaluation import voc_average_precision


def test_voc_by_hand():
    """Two objects. Best first: right, a second detection of the same object (wrong), right; so precisions 1, 1/2, 2/3.

    The envelope is 1 up to recall 1/2 and 2/3 up to 1: the area is 5/6. Of the eleven points, 0 to 0.5 see 1, 0.6 to
    1.0 see 2/3.
    """
    first, second = [0, 0, 100, 100], [200, 200, 300, 300]
    data = make_split([{"boxes": [first, second]}])
    rows = [detection(0, first, 0.9), detection(0, [0, 0, 100, 99], 0.8), detection(0, second, 0.7)]
    assert voc_average_precision(data, rows)["cat"] == pytest.approx(5 / 6)
    assert voc_average_precision(data, rows, eleven_points=True)["cat"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert math.isnan(voc_average_precision(data, rows)["dog"])


def test_voc_difficult_objects_are_neither_missed_nor_wrong():
    plain, difficult = [0, 0, 100, 100], [200, 200, 300, 300]
    data = make_split([{"boxes": [plain, difficult], "ignore": [False, True]}])
    assert voc_average_precision(data, [detection(0, plain, 0.5)])["cat"] == 1
    twice = [detection(0, difficult, 0.9), detection(0, difficult, 0.8), detection(0, plain, 0.5)]
    assert voc_average_precision(data, twice)["cat"] == 1
    elsewhere = [detection(0, [200, 0, 300, 100], 0.9), detection(0, plain, 0.5)]
    assert voc_average_precision(data, elsewhere)["cat"] == 0.5


def test_voc_an_overlap_of_exactly_one_half_is_right():
    data = make_split([{"boxes": [[0, 0, 100, 100]]}])
    assert voc_average_precision(data, [detection(0, [0, 0, 50, 100], 0.9)])["cat"] == 1
    assert voc_average_precision(data, [detection(0, [0, 0, 49, 100], 0.9)])["cat"] == 0


def devkit_average_precision(data: DetectionData, rows: list[dict], label: int, eleven_points: bool) -> float:
    """VOC's rules restated slowly on what its files and result lists hold: inclusive corners counted from 1."""
    objects = {}
    for record in data.records:
        objects[record.image_id] = [
            {"corners": (x1 + 1, y1 + 1, x2, y2), "difficult": ignore, "found": False}
            for (x1, y1, x2, y2), its, ignore in zip(
                record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True
            )
            if its == label
        ]
    positives = sum(not one["difficult"] for many in objects.values() for one in many)
    mine = [one for one in rows if one["category_id"] == data.category_ids[label]]
    mine = sorted(sorted(mine, key=lambda one: one["image_id"]), key=lambda one: one["score"], reverse=True)
    right = wrong = 0
    curve = []
    for one in mine:
        x, y, width, height = one["bbox"]
        left, top, far, low = x + 1, y + 1, x + width, y + height
        best, best_overlap = None, -1.0
        for candidate in objects[one["image_id"]]:
            a, b, c, d = candidate["corners"]
            across, down = min(c, far) - max(a, left) + 1, min(d, low) - max(b, top) + 1
            if across > 0 and down > 0:
                union = (far - left + 1) * (low - top + 1) + (c - a + 1) * (d - b + 1) - across * down
                if across * down / union > best_overlap:
                    best, best_overlap = candidate, across * down / union
        if best is not None and best_overlap >= 0.5:
            if not best["difficult"]:
                right, wrong = right + (not best["found"]), wrong + best["found"]
                best["found"] = True
        else:
            wrong += 1
        curve.append((right / positives, right / max(right + wrong, 1)))
    if eleven_points:
        points = [k / 10 for k in range(11)]
        return sum(max((p for r, p in curve if r >= point), default=0.0) for point in points) / 11
    area, seen = 0.0, 0.0
    for i, (recall, _) in enumerate(curve):
        area += (recall - seen) * max(precision for _, precision in curve[i:])
        seen = recall
    return area


@pytest.mark.parametrize("eleven_points", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_voc_equals_the_devkits_rules_on_inclusive_corners(seed, eleven_points):
    data, rows = random_case(seed)
    result = voc_average_precision(data, rows, eleven_points=eleven_points)
    for label, name in enumerate(("cat", "dog")):
        assert result[name] == pytest.approx(devkit_average_precision(data, rows, label, eleven_points), abs=1e-12)
