"""Entropy of features by region: regions, histogram and entropy against slow loops, and the command."""

import json
import math

import pytest
import torch
from small_detectors import SIZES

from understudy.analysis.entropy import BINS, REGIONS, Entropy, entropy, histogram, regions
from understudy.cli import main
from understudy.errors import UserError


def slow_entropy(values, limit: float) -> tuple[float, int]:
    """-sum p log p of a histogram of equal bins, and how many values lie in it."""
    counts = [0] * BINS
    for value in values:
        if -limit <= value <= limit:
            counts[min(int((value + limit) / (2 * limit) * BINS), BINS - 1)] += 1
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count), total


def test_entropy_of_a_histogram():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3
    counts = histogram(values, limit=5)
    expected, inside = slow_entropy(values.tolist(), 5)
    assert counts.sum() == inside < 500
    assert entropy(counts) == pytest.approx(expected)
    assert entropy(histogram(torch.zeros(7))) == 0
    assert entropy(histogram(torch.linspace(-4.95, 4.95, BINS))) == pytest.approx(math.log(BINS))
    assert math.isnan(entropy(torch.zeros(BINS)))


def test_regions_cover_every_cell_once():
    richness = torch.tensor([[[0.9, 0.9, 0.05, 0.05]]])
    objects = torch.tensor([[[True, False, True, False]]])
    masks = regions(richness, objects, threshold=0.1)
    assert [mask.int().tolist() for mask in masks] == [
        [[[1, 0, 0, 0]]],
        [[[0, 1, 0, 0]]],
        [[[0, 0, 1, 0]]],
        [[[0, 0, 0, 1]]],
    ]


def test_values_of_a_detector_are_those_of_a_loop_over_its_cells(model, batch, data, records):
    """Cells in the padding are in no region; neither are those in objects of a class that the teacher lacks."""
    teacher = model("teacher", noise=0.1, classes=("a", "b"))
    found = Entropy(teacher, data, threshold=0.5, limit=1)
    outputs = records(teacher)
    found.add(batch, outputs)
    result = found.result()
    record = outputs["teacher"]
    known = [{"boxes": t["boxes"][t["labels"] < 2], "labels": t["labels"][t["labels"] < 2]} for t in batch.targets]
    unknown = [t["boxes"][t["labels"] == 2].tolist() for t in batch.targets]
    gt_index = teacher.detector.assign(record, known)
    first = 0
    strides = teacher.detector.spec.strides
    for features, logits, anchors, stride in zip(
        record.features, record.class_logits, record.anchors, strides, strict=True
    ):
        height, width = features.shape[-2:]
        values = {region: [] for region in REGIONS}
        cells = dict.fromkeys(REGIONS, 0)
        for image in range(2):
            for row in range(height):
                for column in range(width):
                    if row * stride >= SIZES[image][0] or column * stride >= SIZES[image][1]:
                        continue
                    is_object = bool(gt_index[image, first + row * width + column] >= 0)
                    x, y = ((anchors[row, column, 0, :2] + anchors[row, column, 0, 2:]) / 2).tolist()
                    if not is_object and any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in unknown[image]):
                        continue
                    detected = float(logits[image, row, column].sigmoid().max()) > 0.5
                    region = {(1, 1): "TP", (1, 0): "FP", (0, 1): "FN", (0, 0): "TN"}[int(detected), int(is_object)]
                    cells[region] += 1
                    values[region] += features[image, :, row, column].tolist()
        first += height * width
        for region in REGIONS:
            row_of = result.row(stride, region)
            assert row_of.cells == cells[region]
            if not cells[region]:
                assert row_of.entropy is row_of.beyond is None
                continue
            expected, inside = slow_entropy(values[region], 1)
            assert row_of.beyond == pytest.approx(1 - inside / len(values[region]), abs=1e-6)
            assert row_of.entropy == pytest.approx(expected, abs=1e-3)  # a value on the edge of a bin
    assert any("lacks c" in note for note in result.notes)
    assert json.loads(json.dumps(result.to_dict()))["images"] == 2


def test_a_teacher_without_dense_predictions_is_refused(data, model, monkeypatch):
    import dataclasses

    teacher = model("teacher")
    spec = dataclasses.replace(teacher.detector.spec, dense=False, queries=7)
    monkeypatch.setattr(teacher.detector, "spec", spec)
    with pytest.raises(UserError, match=r"teacher .* has a set of 7 queries; .* needs dense predictions"):
        Entropy(teacher, data)


def test_the_command_prints_a_table_and_writes_its_figure_once(trained, tmp_path, capsys):
    command = ["analyse", "entropy", str(trained), "--images", "2", "-o", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main(command)
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "2 images" in out
    assert "stride 128" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "entropy.html",
        "entropy.json",
        "entropy.png",
        "entropy.svg",
    ]
    assert json.loads((tmp_path / "entropy.json").read_text())["threshold"] == 0.1
    before = (tmp_path / "entropy.png").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "entropy.png").read_bytes() == before


@pytest.mark.parametrize("limit", ["1e999", "1e300"])
def test_a_limit_beyond_all_features_is_refused(limit, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "entropy", "absent", "--limit", limit])
    assert end.value.code == 2
    expected = f"Error: --limit: expected a number above 0 and at most 1,000,000, got {float(limit):g}"
    assert expected in capsys.readouterr().err
