"""The numbers: equal to pycocotools driven directly, VOC's rules by hand and against a slow restatement in inclusive
pixel corners, detections equal to what torchvision's own model gives on the original images."""

import contextlib
import io
import json
import math
import multiprocessing
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from understudy.data import DetectionData, Record, evaluation_loader, open_data
from understudy.detectors import build_detector
from understudy.detectors.base import evaluating
from understudy.errors import UserError
from understudy.evaluation import (
    Evaluation,
    detect_all,
    evaluate,
    gather_detections,
    match_classes,
    percent,
    score,
    to_original_pixels,
    voc_average_precision,
)

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def make_data(images: list[dict], classes=("cat", "dog"), category_ids=None) -> DetectionData:
    """A split from one dict an image: ``boxes`` (xyxy), ``labels``, optionally ``ignore``."""
    records, next_id = [], 0  # annotation ids from 0 on purpose: COCO's own code trips over an object with id 0
    for number, image in enumerate(images):
        boxes = torch.tensor(image.get("boxes", []), dtype=torch.float32).reshape(-1, 4)
        count = len(boxes)
        records.append(
            Record(
                image_id=10 * number,
                path=Path(f"{number}.jpg"),
                width=400,
                height=400,
                boxes=boxes,
                labels=torch.tensor(image.get("labels", [0] * count), dtype=torch.int64),
                ignore=torch.tensor(image.get("ignore", [False] * count), dtype=torch.bool),
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                annotation_ids=torch.arange(next_id, next_id + count),
            )
        )
        next_id += count
    category_ids = tuple(category_ids or range(1, len(classes) + 1))
    return DetectionData(tuple(classes), category_ids, tuple(records), "coco", Path("somewhere"), "val")


def row(image: int, box: list[float], value: float, category: int = 1) -> dict:
    x1, y1, x2, y2 = box
    return {"image_id": 10 * image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": value}


def random_case(seed: int, *, images: int = 6, most: int = 12) -> tuple[DetectionData, list[dict]]:
    """Objects of two of three classes, some ignored, one image empty, and detections near them with scores that tie."""
    rng = np.random.default_rng(seed)
    classes, category_ids = ("cat", "dog", "never seen"), (3, 7, 90)
    content, rows = [], []
    for number in range(images):
        count = 0 if number == 1 else int(rng.integers(1, most))
        corners = rng.integers(0, 200, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 150, (count, 2))], axis=1)
        labels = rng.integers(0, 2, count)
        content.append({"boxes": boxes.tolist(), "labels": labels.tolist(), "ignore": (rng.random(count) < 0.2)})
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(int(rng.integers(0, 4))):
                moved = box + rng.integers(-6, 7, 4) * [1, 1, 0, 0]
                rows.append(row(number, moved.tolist(), round(float(rng.random()), 1), category_ids[label]))
        for _ in range(int(rng.integers(0, 5))):
            x, y = rng.integers(0, 200, 2)
            rows.append(row(number, [x, y, x + 30, y + 40], round(float(rng.random()), 1), int(rng.choice([3, 7, 90]))))
    return make_data(content, classes, category_ids), [_plain(one) for one in rows]


def _plain(one: dict) -> dict:
    return one | {"bbox": [float(value) for value in one["bbox"]]}


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
    rows += [row(0, [i, i, i + 50.0, i + 50.0], float(rng.random()), 3) for i in range(150)]
    assert_same(score(data, rows, backend=backend).coco, driven_directly(data, rows))


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_detections_is_zero_and_no_objects_is_undefined(backend):
    data, rows = random_case(2)
    nothing_found = score(data, [], backend=backend)
    assert nothing_found.coco["AP"] == nothing_found.voc["AP50"] == nothing_found.voc["AP50_11point"] == 0
    empty = make_data([{}, {}], data.classes, data.category_ids)
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


def test_detections_of_other_data_are_refused_with_all_faults():
    data = make_data([{"boxes": [[0, 0, 10, 10]]}])
    rows = [row(0, [0, 0, 5, 5], 0.5), row(7, [0, 0, 5, 5], 0.5), row(0, [0, 0, 5, 5], 0.5, category=9)]
    with pytest.raises(UserError, match=r"image_id 70 is not in the split(.|\n)*category_id 9 is none of \[1, 2\]"):
        score(data, rows)


def test_json_round_trip_says_none_for_undefined():
    data, rows = random_case(3)
    result = score(data, rows)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["per_class"]["never seen"] is None
    again = Evaluation.from_dict(json.loads(text))
    for name in ("coco", "per_class", "voc", "voc_per_class"):
        assert getattr(again, name) == pytest.approx(getattr(result, name), nan_ok=True)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_percent_and_a_dash_for_undefined(width):
    console = Console(width=width, record=True, file=io.StringIO())
    data, rows = random_case(3)
    result = score(data, rows)
    console.print(result)
    text = console.export_text()
    assert percent(result.coco["AP"]) in text
    assert any(line.split() == ["never", "seen", "-", "-"] for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= width


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_voc_by_hand():
    """Two objects. Best first: right, a second detection of the same object (wrong), right; so precisions 1, 1/2, 2/3.

    The envelope is 1 up to recall 1/2 and 2/3 up to 1: the area is 5/6. Of the eleven points, 0 to 0.5 see 1, 0.6 to
    1.0 see 2/3.
    """
    first, second = [0, 0, 100, 100], [200, 200, 300, 300]
    data = make_data([{"boxes": [first, second]}])
    rows = [row(0, first, 0.9), row(0, [0, 0, 100, 99], 0.8), row(0, second, 0.7)]
    assert voc_average_precision(data, rows)["cat"] == pytest.approx(5 / 6)
    assert voc_average_precision(data, rows, eleven_points=True)["cat"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert math.isnan(voc_average_precision(data, rows)["dog"])


def test_voc_difficult_objects_are_neither_missed_nor_wrong():
    plain, difficult = [0, 0, 100, 100], [200, 200, 300, 300]
    data = make_data([{"boxes": [plain, difficult], "ignore": [False, True]}])
    assert voc_average_precision(data, [row(0, plain, 0.5)])["cat"] == 1
    twice = [row(0, difficult, 0.9), row(0, difficult, 0.8), row(0, plain, 0.5)]
    assert voc_average_precision(data, twice)["cat"] == 1
    elsewhere = [row(0, [200, 0, 300, 100], 0.9), row(0, plain, 0.5)]
    assert voc_average_precision(data, elsewhere)["cat"] == 0.5


def test_voc_an_overlap_of_exactly_one_half_is_right():
    data = make_data([{"boxes": [[0, 0, 100, 100]]}])
    assert voc_average_precision(data, [row(0, [0, 0, 50, 100], 0.9)])["cat"] == 1
    assert voc_average_precision(data, [row(0, [0, 0, 49, 100], 0.9)])["cat"] == 0


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


def test_the_order_of_the_images_moves_nothing():
    data, rows = random_case(4)
    forth, back = score(data, rows), score(data, sorted(rows, key=lambda one: -one["image_id"]))
    assert_same(back.coco, forth.coco)
    assert_same(back.voc_per_class, forth.voc_per_class)


# --- detections -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> DetectionData:
    """Three small images of different shapes, one without objects."""
    records = []
    for number, (height, width) in enumerate([(40, 61), (75, 50), (64, 64)]):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        boxes = torch.tensor([[5.0, 5.0, 30.0, 30.0]])[: number % 2]
        areas, many = torch.full((len(boxes),), 625.0), len(boxes)
        labels, ignore = torch.zeros(many, dtype=torch.int64), torch.zeros(many, dtype=torch.bool)
        records.append(Record(number + 1, path, width, height, boxes, labels, ignore, areas, torch.arange(many)))
    return DetectionData(("cat", "dog"), (4, 8), tuple(records), "coco", tmp_path, "val")


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    detector = build_detector(
        "retinanet_mobilenet_v2", 2, neck_channels=8, width_mult=0.35, shorter_side=64, longer_side=96
    )
    detector.network.score_thresh = 0.0  # untrained: every score is near 0.01
    detector.network.detections_per_img = 20
    return detector


def test_detections_are_those_of_the_plain_network_on_the_original_image(photos, detector):
    loader = evaluation_loader(photos, batch_size=1, shorter_side=64, longer_side=96)
    rows = detect_all(detector, loader, "cpu")
    network = detector.network.eval()
    for record in photos.records:
        pixels = torch.from_numpy(np.array(Image.open(record.path))).permute(2, 0, 1) / 255
        with torch.no_grad():
            expected = network([pixels])[0]
        mine = [one for one in rows if one["image_id"] == record.image_id]
        assert len(mine) == len(expected["boxes"]) == 20
        corners = torch.tensor([one["bbox"] for one in mine])
        corners[:, 2:] += corners[:, :2]
        torch.testing.assert_close(corners, expected["boxes"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor([one["score"] for one in mine]), expected["scores"])
        assert [one["category_id"] for one in mine] == [(4, 8)[label] for label in expected["labels"]]


def test_boxes_go_back_by_the_ratio_of_each_axis():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    back = to_original_pixels(boxes, size=(50, 100), original_size=(100, 300))
    assert back.tolist() == [[30.0, 40.0, 90.0, 80.0]]
    assert to_original_pixels(torch.zeros(0, 4), (50, 100), (100, 300)).shape == (0, 4)


def test_detect_all_keeps_no_graph_and_restores_every_mode(photos, detector):
    detector.train()
    frozen = next(module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen.eval()
    before = [module.training for module in detector.modules()]
    statistics = frozen.running_mean.clone()
    try:
        detect_all(detector, evaluation_loader(photos, batch_size=2, shorter_side=64, longer_side=96), "cpu")
        assert [module.training for module in detector.modules()] == before
        assert any(before)
        assert not all(before)
        assert torch.equal(frozen.running_mean, statistics)
        with contextlib.suppress(KeyboardInterrupt), evaluating(detector):
            assert not any(module.training for module in detector.modules())
            raise KeyboardInterrupt
        assert [module.training for module in detector.modules()] == before
    finally:
        detector.eval()


def _rank(rank: int, port_file: str, rows: list[dict], results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    results.put(gather_detections([one for one in rows if one["image_id"] // 10 % 2 == rank]))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_gather_the_detections_of_one(tmp_path):
    _, rows = random_case(5)
    context = multiprocessing.get_context("fork")  # no second import of torch
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, tmp_path / "port", rows, results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    gathered = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join(timeout=60)
    assert gathered[0] == gathered[1] == gather_detections(rows) == rows


def test_classes_are_matched_by_name_and_differences_listed(photos):
    assert match_classes(("dog", "cat"), photos) == (8, 4)
    assert match_classes(("Dog ", "bird", "cat"), photos) == (8, None, 4)
    with pytest.raises(UserError) as failure:
        match_classes(("bird", "cats"), photos)
    assert "the detector has bird, cats; the data set" in str(failure.value)
    assert "has cat, dog" in str(failure.value)
    assert "'cats' of the detector is close to 'cat'" in str(failure.value)


def test_a_detector_of_other_classes_is_measured_on_the_common_ones(scenes, confident, tmp_path):
    """Detections of classes that the data lack are left out, objects the detector cannot know count as missed."""
    checkpoint = confident("retinanet_mobilenet_v2")
    same = evaluate(checkpoint, scenes)
    assert same.unknown_classes == same.unused_classes == ()
    found = max((name for name, value in same.per_class.items() if value >= 0), key=lambda name: same.per_class[name])
    folder = shutil.copytree(scenes, tmp_path / "renamed")
    content = json.loads((folder / "instances_val.json").read_text())
    for category in content["categories"]:
        category["name"] = "unicorn" if category["name"] == found else category["name"].upper()
    (folder / "instances_val.json").write_text(json.dumps(content))
    other = evaluate(checkpoint, folder)
    assert (other.unknown_classes, other.unused_classes) == (("unicorn",), (found,))
    assert other.per_class["unicorn"] == other.voc_per_class["unicorn"] == 0 < same.per_class[found]
    assert {name.upper(): value for name, value in same.per_class.items() if name != found} == pytest.approx(
        {name: value for name, value in other.per_class.items() if name != "unicorn"}, abs=0, nan_ok=True
    )
    assert Evaluation.from_dict(json.loads(json.dumps(other.to_dict()))).unused_classes == (found,)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(other)
    printed = console.export_text()
    assert f"does not know unicorn: their objects count as missed.\nThe data do not have {found}:" in printed
