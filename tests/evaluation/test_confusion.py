"""The confusion matrix, the curves of precision over recall, and their figures."""

import json

import numpy as np
import pytest
from splits import detection, make_split, random_case

from understudy.cli import main
from understudy.evaluation import score
from understudy.evaluation.confusion import Confusion


def confusion(images, rows, **options) -> Confusion:
    found = score(make_split(images), rows, detailed=True, **options).confusion
    assert found is not None
    return found


def slow_counts(data, rows, threshold=0.3):
    """The definition, detection by detection."""
    size = len(data.classes) + 1
    counts = np.zeros((size, size), int)
    for record in data.records:
        objects = list(zip(record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True))
        mine = [row for row in rows if row["image_id"] == record.image_id and row["score"] >= threshold]
        mine.sort(key=lambda row: -row["score"])
        taken, used = set(), set()
        for same_class in (True, False):
            for number, row in enumerate(mine):
                if number in used:
                    continue
                label = data.category_ids.index(row["category_id"])
                fits = [
                    (iou(row["bbox"], box), -place)
                    for place, (box, other, ignore) in enumerate(objects)
                    if not ignore and place not in taken and (other == label or not same_class)
                ]
                best, place = max(fits, default=(0.0, 0))
                if best >= 0.5:
                    used.add(number)
                    taken.add(-place)
                    counts[objects[-place][1], label] += 1
        for number, row in enumerate(mine):
            ignored = any(ignore and iou(row["bbox"], box) >= 0.5 for box, _, ignore in objects)
            if number not in used and not ignored:
                counts[-1, data.category_ids.index(row["category_id"])] += 1
        for place, (_, label, ignore) in enumerate(objects):
            if place not in taken and not ignore:
                counts[label, -1] += 1
    return counts.tolist()


def iou(xywh, xyxy):
    x, y, width, height = xywh
    common = max(0.0, min(x + width, xyxy[2]) - max(x, xyxy[0])) * max(0.0, min(y + height, xyxy[3]) - max(y, xyxy[1]))
    return common / (width * height + (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) - common)


@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_a_slow_loop(seed):
    data, rows = random_case(seed)
    found = score(data, rows, detailed=True).confusion
    assert [list(row) for row in found.counts] == slow_counts(data, rows)


def test_an_object_of_the_own_class_comes_before_one_of_another():
    """Two objects at one place, and a detection of each; the better one is of the second object's class."""
    images = [{"boxes": [[0, 0, 10, 10], [0, 0, 10, 10]], "labels": [0, 1]}]
    rows = [detection(0, [0, 0, 10, 10], 0.9, category=2), detection(0, [0, 0, 10, 10], 0.5, category=1)]
    found = confusion(images, rows)
    assert found.counts == ((1, 0, 0), (0, 1, 0), (0, 0, 0))
    assert "2 of 2 objects are detected, 0 as another class, 0 are missed; 0 detections are without" in found.sentence


def test_confused_missed_and_without_an_object():
    images = [{"boxes": [[0, 0, 10, 10], [50, 50, 60, 60]], "labels": [0, 0]}]
    rows = [
        detection(0, [0, 0, 10, 10], 0.9, category=2),  # another class
        detection(0, [80, 80, 90, 90], 0.5, category=1),  # nothing there
        detection(0, [50, 50, 60, 60], 0.29, category=1),  # too unsure
    ]
    found = confusion(images, rows)
    assert found.counts == ((0, 1, 1), (0, 0, 0), (1, 0, 0))
    assert "1 as another class (1 " in found.sentence
    assert confusion(images, rows, score_threshold=0.2).counts == ((1, 1, 0), (0, 0, 0), (1, 0, 0))
    assert confusion(images, []).counts == ((0, 0, 2), (0, 0, 0), (0, 0, 0))


def test_the_mean_of_a_curve_is_ap50():
    data, rows = random_case(3)
    result = score(data, rows, detailed=True)
    assert result.coco["AP50"] == pytest.approx(np.mean([np.mean(curve) for curve in result.curves.values()]))
    assert all(len(curve) == 101 for curve in result.curves.values())
    assert "never seen" not in result.curves


def test_the_command_writes_numbers_and_figures_once(confident, scenes, tmp_path, capsys):
    command = ["evaluate", str(confident("retinanet_mobilenet_v2")), str(scenes), "--output", str(tmp_path / "out")]
    for code in (0, 2):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--score", "0.4"])
        assert (stop.value.code or 0) == code
    said = capsys.readouterr()
    assert "At scores of at least 0.40 and IoU 0.50" in said.out
    assert "These files exist" in said.err
    written = {file.name for file in (tmp_path / "out").iterdir()}
    figures = {f"{name}.{suffix}" for name in ("confusion", "precision_recall") for suffix in ("png", "svg")}
    assert written == {"evaluation.html", "evaluation.json", *figures}
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["split"], content["confusion"]["score_threshold"]) == ("val", 0.4)
    assert content["confusion"]["classes"][-1] == "background"
    assert sum(map(sum, content["confusion"]["counts"][:-1])) == sum(content["objects"].values())
