"""TIDE's error types and costs, against slow loops written from the paper's definitions."""

import numpy as np
import pytest

from understudy.analysis.tide import (
    BACKGROUND,
    FOREGROUND,
    KINDS,
    Detections,
    Objects,
    average_precision,
    costs,
    iou,
    judge,
)


def objects(boxes, labels, ignore=None) -> Objects:
    ignore = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return Objects(np.array(boxes, dtype=float).reshape(-1, 4), np.array(labels, dtype=int), ignore)


def detections(boxes, labels, scores) -> Detections:
    return Detections.best_first(
        np.array(boxes, dtype=float).reshape(-1, 4), np.array(labels, dtype=int), np.array(scores, dtype=float)
    )


def random_image(rng, classes=3):
    """Objects, and detections that are near objects, near each other, of wrong classes, or anywhere."""
    corner = rng.uniform(0, 60, (rng.integers(0, 6), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 40, corner.shape)], axis=1)
    labels = rng.integers(0, classes, len(boxes))
    found, names = [], []
    for _ in range(rng.integers(0, 25)):
        if len(boxes) and rng.random() < 0.8:
            place = rng.integers(len(boxes))
            found.append(boxes[place] + rng.normal(0, rng.choice([1, 4, 12]), 4))
            names.append(labels[place] if rng.random() < 0.6 else rng.integers(classes))
        else:
            corner = rng.uniform(0, 80, 2)
            found.append(np.concatenate([corner, corner + rng.uniform(5, 40, 2)]))
            names.append(rng.integers(classes))
        found[-1][2:] = np.maximum(found[-1][2:], found[-1][:2] + 1)
    ignore = rng.random(len(boxes)) < 0.15
    return objects(boxes, labels, ignore), detections(found, names, rng.uniform(0, 1, len(found)))


# --- slow loops -------------------------------------------------------------------------------------------------------


def slow_iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return both / (area(one) + area(other) - both)


def slow_judge(truth, found):
    """The kind of each detection, the object that it aims at, and the missed objects, from the definitions."""
    real = [number for number in range(len(truth.labels)) if not truth.ignore[number]]
    taken, kinds, aims = {}, [], []
    for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        best, place = 0.0, None
        for other in real:
            overlap = slow_iou(box, truth.boxes[other])
            if truth.labels[other] == label and other not in taken and overlap > best:
                best, place = overlap, other
        if best >= FOREGROUND:
            taken[place] = number
    for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        if number in taken.values():
            kinds.append("correct")
            aims.append(next(place for place, owner in taken.items() if owner == number))
            continue
        inside = False
        for other in range(len(truth.labels)):
            if truth.ignore[other] and truth.labels[other] == label:
                crowd = truth.boxes[other]
                width = max(min(box[2], crowd[2]) - max(box[0], crowd[0]), 0)
                height = max(min(box[3], crowd[3]) - max(box[1], crowd[1]), 0)
                inside = inside or width * height / ((box[2] - box[0]) * (box[3] - box[1])) >= FOREGROUND
        own = {other: slow_iou(box, truth.boxes[other]) for other in real if truth.labels[other] == label}
        others = {other: slow_iou(box, truth.boxes[other]) for other in real if truth.labels[other] != label}
        own_best, other_best = max(own, key=own.get, default=None), max(others, key=others.get, default=None)
        near_own, near_other = own.get(own_best, 0.0), others.get(other_best, 0.0)
        if inside:
            kind, aim = "ignored", None
        elif real and BACKGROUND <= near_own < FOREGROUND:
            kind, aim = "localisation", own_best
        elif near_other >= FOREGROUND:
            kind, aim = "classification", other_best
        elif near_own >= FOREGROUND:
            kind, aim = "duplicate", None
        elif max(near_own, near_other) <= BACKGROUND:
            kind, aim = "background", None
        else:
            kind, aim = "both", None
        kinds.append(kind)
        aims.append(aim)
    missed = [number in real and number not in taken and number not in aims for number in range(len(truth.labels))]
    return kinds, aims, missed, set(taken)


def slow_ap(rows, count) -> float:
    """COCO's AP of one class from (score, right): the mean of 101 points of the envelope of the precision."""
    rows = sorted(rows, key=lambda row: -row[0])
    points = []
    for number in range(1, len(rows) + 1):
        right = sum(flag for _, flag in rows[:number])
        points.append((right / count, right / number))
    levels = np.linspace(0, 1, 101)  # as floats: COCO compares them without a tolerance
    return sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 101


def slow_costs(images):
    """AP50, and the AP50 after each oracle, minus it; each oracle edits the list of detections."""
    counts, missed, rows = {}, {}, []
    for image, (truth, found) in enumerate(images):
        kinds, aims, gone, taken = slow_judge(truth, found)
        for number, label in enumerate(truth.labels.tolist()):
            counts[label] = counts.get(label, 0) + (not truth.ignore[number])
            missed[label] = missed.get(label, 0) + gone[number]
        for kind, aim, label, score in zip(kinds, aims, found.labels.tolist(), found.scores.tolist(), strict=True):
            free = aim is not None and aim not in taken
            target = truth.labels[aim].item() if free else None
            rows.append(
                {"kind": kind, "label": label, "score": score, "aim": (image, aim) if free else None, "of": target}
            )
    rows = [row for row in rows if row["kind"] != "ignored"]

    def mean_ap(rows, counts):
        labels = [label for label in counts if plain_counts[label]]
        aps = []
        for label in labels:
            mine = [(row["score"], row["kind"] == "correct") for row in rows if row["label"] == label]
            aps.append(slow_ap(mine, counts[label]) if counts[label] else 0.0)
        return sum(aps) / len(aps)

    plain_counts = counts
    before = mean_ap(rows, counts)
    found = {}
    for kind in KINDS[:-1]:
        fixed = []
        for row in rows:
            if row["kind"] != kind:
                fixed.append(row)
            elif kind in ("classification", "localisation") and row["aim"]:
                rivals = [other for other in rows if other["kind"] == kind and other["aim"] == row["aim"]]
                if row is max(rivals, key=lambda other: other["score"]):
                    fixed.append(row | {"kind": "correct", "label": row["of"]})
        found[kind] = mean_ap(fixed, counts) - before
    found["missed"] = mean_ap(rows, {label: count - missed[label] for label, count in counts.items()}) - before
    return before, found


# --- tests ------------------------------------------------------------------------------------------------------------

TRUTH = objects([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], [0, 1, 0])


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        ([0, 0, 10, 5.1], 0, "correct"),
        ([0, 0, 10, 4.9], 0, "localisation"),
        ([0, 0, 10, 10], 1, "classification"),
        ([0, 0, 10, 4.9], 1, "both"),
        ([0, 0, 10, 0.9], 1, "background"),
        ([0, 0, 10, 0.9], 0, "background"),
        ([80, 80, 90, 90], 0, "background"),
    ],
)
def test_each_type_by_its_definition(box, label, kind):
    assert judge(TRUTH, detections([box], [label], [0.9])).kinds == (kind,)


def test_the_second_detection_of_an_object_is_a_duplicate_and_the_rest_is_missed():
    found = detections([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 4]], [0, 0, 1], [0.9, 0.8, 0.7])
    judged = judge(TRUTH, found)
    assert judged.kinds == ("correct", "duplicate", "localisation")
    assert judged.found.tolist() == [True, False, False]
    assert judged.missed.tolist() == [False, False, True]  # the second would be found with a better box
    assert judged.objects.tolist() == [0, -1, 1]


def test_crowds_are_neither_found_nor_missed_and_detections_in_them_do_not_count():
    truth = objects([[0, 0, 40, 40], [60, 60, 70, 70]], [0, 0], [True, False])
    judged = judge(truth, detections([[5, 5, 10, 10], [5, 5, 10, 10]], [0, 1], [0.9, 0.8]))
    assert judged.kinds == ("ignored", "background")
    assert judged.missed.tolist() == [False, True]


def test_an_image_without_objects_or_detections():
    nothing = detections(np.zeros((0, 4)), [], [])
    assert judge(TRUTH, nothing).missed.all()
    assert judge(objects(np.zeros((0, 4)), []), detections([[0, 0, 5, 5]], [0], [0.5])).kinds == ("background",)
    assert costs([(TRUTH, nothing, judge(TRUTH, nothing))]).ap50 == 0
    assert np.isnan(costs([]).ap50)


@pytest.mark.parametrize("seed", range(6))
def test_random_images_are_judged_and_priced_as_by_slow_loops(seed):
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(8)]
    seen = set()
    for truth, found in images:
        kinds, aims, missed, _ = slow_judge(truth, found)
        judged = judge(truth, found)
        assert list(judged.kinds) == kinds
        assert judged.objects.tolist() == [-1 if aim is None else aim for aim in aims]
        assert judged.missed.tolist() == missed
        seen |= set(kinds)
    assert {"correct", "localisation", "classification", "background"} <= seen
    priced = costs([(*image, judge(*image)) for image in images])
    before, after = slow_costs(images)
    assert priced.ap50 == pytest.approx(before, abs=1e-9)
    assert priced.cost == pytest.approx(after, abs=1e-9)


def test_iou_of_pairs():
    boxes = np.array([[0.0, 0, 2, 2], [1, 1, 3, 3], [9, 9, 10, 10]])
    found = iou(boxes, boxes)
    for one in range(3):
        for other in range(3):
            assert found[one, other] == pytest.approx(slow_iou(boxes[one], boxes[other]))


def test_average_precision_is_that_of_a_slow_loop_and_0_without_objects():
    rng = np.random.default_rng(0)
    scores, right = rng.random(30), rng.random(30) < 0.5
    assert average_precision(scores, right, 20) == pytest.approx(slow_ap(list(zip(scores, right, strict=True)), 20))
    assert average_precision(scores, right, 0) == 0
