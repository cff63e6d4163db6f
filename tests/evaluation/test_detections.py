"""Detections: equal to what torchvision's own model gives on the original images, and gathered over processes."""

import contextlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from splits import random_case

from understudy.data import DetectionData, Record, evaluation_loader
from understudy.detectors import build_detector
from understudy.detectors.base import evaluating
from understudy.errors import UserError
from understudy.evaluation import (
    Detections,
    default_workers,
    detect_all,
    gather_detections,
    match_classes,
    to_original_pixels,
)


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
    rows = detect_all(detector, loader, "cpu").rows()
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


def test_batches_change_no_detection(photos, detector):
    sizes = {"shorter_side": 64, "longer_side": 96}
    twice = replace(photos, records=(*photos.records, *(replace(r, image_id=r.image_id + 9) for r in photos.records)))
    one, several = (
        gather_detections(detect_all(detector, evaluation_loader(twice, batch_size=size, **sizes), "cpu"))
        for size in (1, 4)
    )
    assert one.image_ids.tolist() == several.image_ids.tolist()
    assert one.category_ids.tolist() == several.category_ids.tolist()
    np.testing.assert_allclose(several.boxes, one.boxes, atol=1e-3)
    np.testing.assert_allclose(several.scores, one.scores, atol=1e-6)


def test_precisions(photos, detector):
    loader = evaluation_loader(photos, batch_size=1, shorter_side=64, longer_side=96)
    whole, reduced = (detect_all(detector, loader, "cpu", precision=name) for name in ("32", "bf16"))
    assert not np.array_equal(whole.scores, reduced.scores)
    np.testing.assert_allclose(reduced.scores, whole.scores, atol=2e-3)
    with pytest.raises(UserError, match="Precision 16 needs a GPU"):
        detect_all(detector, loader, "cpu", precision="16")


def test_few_images_are_loaded_without_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3), raising=False)
    assert (default_workers(10), default_workers(1000)) == (0, 2)


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
    mine = [one for one in rows if one["image_id"] // 10 % 2 == rank]
    results.put(gather_detections(Detections.of_rows(mine)).rows())
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
    assert gathered[0] == gathered[1] == gather_detections(Detections.of_rows(rows)).rows() == rows


def test_classes_are_matched_by_name_and_differences_listed(photos):
    assert match_classes(("dog", "cat"), photos) == (8, 4)
    assert match_classes(("Dog ", "bird", "cat"), photos) == (8, None, 4)
    with pytest.raises(UserError) as failure:
        match_classes(("bird", "cats"), photos)
    assert "the detector has bird, cats; the data set" in str(failure.value)
    assert "has cat, dog" in str(failure.value)
    assert "'cats' of the detector resembles 'cat'" in str(failure.value)
