"""The table of runs: roles, groups of seeds, the gap, honest notes, speed, and folders that are no finished runs."""

import io
import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from understudy.checkpoints import FORMAT, STUDENT, build_options, write_checkpoint
from understudy.config import DistillConfig, TrainConfig, dump_config
from understudy.detectors.plain import build_network
from understudy.errors import UserError
from understudy.evaluation import Evaluation
from understudy.results import gap_closed, summarise

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TEACHER = {"name": "retinanet_resnet18", "neck_channels": 16, "norm": "batch"}
STUDENT_NET = {"name": "retinanet_mobilenet_v2", "neck_channels": 8, "width_mult": 0.35, "norm": "batch"}


def make_run(folder, ap: float, *, detector=None, teacher=None, data="unused", **options):
    """A finished run as training leaves it, without weights."""
    values = {"data": {"path": str(data), "shorter_side": [64], "longer_side": 96}, "detector": detector or STUDENT_NET}
    values |= {"run": str(folder)} | options
    config = DistillConfig(**values, teacher=str(teacher)) if teacher else TrainConfig(**values)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    coco = dict.fromkeys(NUMBERS, ap) | {"AP50": ap + 0.2, "APs": math.nan}
    evaluation = Evaluation(coco, {"cat": ap}, {"AP50": ap, "AP50_11point": ap}, {"cat": ap}, images=7)
    result = evaluation.to_dict() | {"epoch": 3, "parameters": 1_234_567, "train_seconds": 12.5}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def three(tmp_path):
    """A teacher, a plain student and a distilled student, with the gap half closed."""
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    distilled = make_run(tmp_path / "frs", 0.4, teacher=teacher / "best.ckpt")
    return [distilled, teacher, plain]


def printed(table, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_gap():
    assert gap_closed(0.4, 0.3, 0.5) == pytest.approx(0.5)
    assert gap_closed(0.2, 0.3, 0.5) == pytest.approx(-0.5)
    assert gap_closed(0.6, 0.3, 0.5) == pytest.approx(1.5)
    assert gap_closed(0.4, 0.5, 0.5) is None
    assert gap_closed(0.4, 0.5, 0.3) is None
    assert gap_closed(math.nan, 0.3, 0.5) is gap_closed(0.4, math.nan, 0.5) is gap_closed(0.4, 0.3, math.nan) is None


def test_roles_follow_from_the_configs_whatever_the_order(three):
    table = summarise(three, measure_speed=False)
    assert [(row.name, row.role) for row in table.rows] == [
        ("teacher", "teacher"),
        ("plain", "plain"),
        ("frs", "distilled"),
    ]
    assert [row.gap_closed for row in table.rows] == [None, None, pytest.approx(0.5)]
    assert any("frs: +10.0 AP" in note and "single run of plain and frs" in note for note in table.notes)
    as_json = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert as_json["rows"][2]["gap_closed"] == pytest.approx(0.5)
    assert as_json["rows"][2]["parameters"] == 1_234_567
    assert as_json["rows"][2]["images_per_second"] is None


def test_seeds_are_one_row_with_mean_and_spread(tmp_path):
    runs = []
    for seed, (plain, distilled) in enumerate([(0.30, 0.38), (0.32, 0.41), (0.31, 0.38)]):
        teacher = make_run(tmp_path / f"teacher-{seed}", 0.5 + seed / 100, detector=TEACHER, seed=seed)
        runs += [teacher, make_run(tmp_path / f"plain-{seed}", plain, seed=seed)]
        runs += [make_run(tmp_path / f"frs-{seed}", distilled, teacher=teacher, seed=seed)]
    table = summarise(runs, measure_speed=False)
    teacher, plain, distilled = table.rows
    assert [len(row.runs) for row in table.rows] == [3, 3, 3]
    assert distilled.mean() == pytest.approx(0.39)
    assert distilled.spread() == pytest.approx(statistics.stdev([0.38, 0.41, 0.38]))
    assert distilled.gap_closed == pytest.approx((0.39 - 0.31) / (0.51 - 0.31))
    assert not any("single run" in note for note in table.notes)
    assert "39.0 ±1.7" in printed(table, 80)
    assert table.to_dict()["rows"][2]["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("ap", "share", "said"),
    [
        (
            0.29,
            0.97,
            "97% of the student's gradient came from the distillation (median over the run). The student's own",
        ),
        (0.29, 0.01, "It hardly counted: raise its weights."),
        (0.40, 0.97, "(median over the run)."),
    ],
)
def test_the_distillations_share_of_the_gradient_is_told(tmp_path, ap, share, said):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    frs = make_run(tmp_path / "frs", ap, teacher=teacher)
    rows = "".join(f"{step},{value}\n" for step, value in ((1, 0.0), (2, ""), (51, share), (52, ""), (101, share)))
    (frs / "losses.csv").write_text("step,distillation_share\n" + rows)
    notes = summarise([teacher, make_run(tmp_path / "plain", 0.3), frs], measure_speed=False).notes
    (note,) = [note for note in notes if "gradient" in note]
    assert said in note
    assert ("weights" in note) == (ap < 0.3)


def test_a_gain_within_the_spread_is_called_so(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    runs = [teacher]
    for seed, (plain, distilled) in enumerate([(0.30, 0.31), (0.34, 0.35)]):
        runs.append(make_run(tmp_path / f"plain-{seed}", plain, seed=seed))
        runs.append(make_run(tmp_path / f"frs-{seed}", distilled, teacher=teacher, seed=seed))
    notes = summarise(runs, measure_speed=False).notes
    assert "frs: +1.0 AP against plain is within the spread over the seeds." in notes


def test_unequal_budgets_are_named(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER, batch_size=4)
    plain = make_run(tmp_path / "plain", 0.3, batch_size=4)
    frs = make_run(
        tmp_path / "frs", 0.4, teacher=teacher, batch_size=8, schedule={"name": "1x", "epochs": 24}, precision="bf16"
    )
    (note,) = [note for note in summarise([teacher, plain, frs], measure_speed=False).notes if "differ in" in note]
    assert "frs and plain differ in" in note
    for difference in ("epochs (24 and 12)", "batch size (8 and 4)", "precision (bf16 and 32)"):
        assert difference in note
    assert "not distillation alone" in note
    other = make_run(tmp_path / "other", 0.3, data="elsewhere", batch_size=4)
    assert any("AP on different images" in n for n in summarise([plain, other], measure_speed=False).notes)


def test_gap_is_undefined_and_said_so(tmp_path):
    weak = make_run(tmp_path / "weak", 0.2, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    frs = make_run(tmp_path / "frs", 0.31, teacher=weak)
    for folders, reason in [
        ([weak, plain, frs], "the teacher (AP 20.0) is not better than the plain student (30.0)"),
        ([plain, frs], f"its teacher ({weak}) is not here"),
        ([weak, frs], "no plain student of the same detector is here"),
    ]:
        table = summarise(folders, measure_speed=False)
        assert table.rows[-1].gap_closed is None
        assert any(reason in note for note in table.notes)
        assert printed(table, 80).splitlines()[-1]


def test_a_student_is_held_against_the_plain_one_trained_like_it(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    long = make_run(tmp_path / "long", 0.45, schedule={"name": "2x"})
    equal = make_run(tmp_path / "equal", 0.3)
    frs = make_run(tmp_path / "frs", 0.4, teacher=teacher)
    table = summarise([teacher, long, equal, frs], measure_speed=False)
    assert [row.name for row in table.rows] == ["teacher", "plain: long", "plain: equal", "frs"]
    assert table.rows[-1].gap_closed == pytest.approx(0.5)
    assert any("held against plain: equal" in note for note in table.notes)


def test_runs_that_were_moved_still_find_their_teacher(three, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    table = summarise([folder.rename(moved / folder.name) for folder in three], measure_speed=False)
    assert [row.role for row in table.rows] == ["teacher", "plain", "distilled"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(three, width):
    text = printed(summarise(three, measure_speed=False), width)
    assert max(map(len, text.splitlines())) <= width
    (line,) = [line for line in text.splitlines() if line.startswith("frs ")]
    assert line.split() == ["frs", "40.0", "60.0", "40.0", "1.23", "50%"]


def test_the_fullest_table_fits_80_columns(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    runs = [teacher] + [make_run(tmp_path / f"plain-{seed}", 0.1 + seed / 10, seed=seed) for seed in range(3)]
    runs += [make_run(tmp_path / f"frs-{seed}", 0.1, seed=seed, teacher=teacher) for seed in range(3)]
    table = summarise(runs, measure_speed=False)
    rows = tuple(replace(row, images_per_second=1234.5, speed_ratio=12.34) for row in table.rows)
    text = printed(replace(table, rows=rows, speed="Speed: in some way."), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "retinanet_mobilenet_v2" in text
    assert "20.0 ±10.0" in text
    assert "1234.5" in text
    assert "12.34 x" in text
    assert "-33%" in text
    assert "…" not in text


def test_folders_that_are_no_finished_runs_are_all_named(three, tmp_path):
    (tmp_path / "nothing").mkdir()
    unfinished = make_run(tmp_path / "unfinished", 0.1)
    (unfinished / "result.json").unlink()
    damaged = make_run(tmp_path / "damaged", 0.1)
    (damaged / "result.json").write_text('{"coco": ')
    with pytest.raises(UserError) as error:
        summarise([*three, three[0], tmp_path / "nothing", unfinished, damaged])
    message = str(error.value)
    assert f"{three[0]} is given twice" in message
    assert f"{tmp_path / 'nothing'} is not a run folder" in message
    assert f"understudy resume {unfinished}" in message
    assert f"{damaged} holds a damaged" in message
    with pytest.raises(UserError, match="at least one run"):
        summarise([])


def test_without_weights_or_photos_the_table_still_holds(three):
    table = summarise(three)
    assert table.speed is None
    assert any(note.startswith("Speed was not measured: ") for note in table.notes)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(3)]
    for image in images:
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "set" / "images" / image["file_name"])
    annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "set" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path / "set"


def add_weights(folder, config: TrainConfig):
    options = build_options(config, num_classes=1)
    torch.manual_seed(0)
    meta = {
        "format": FORMAT,
        "build": options,
        "classes": ["cat"],
        "category_ids": [1],
        "config": config.model_dump(mode="json"),
    }
    weights = {STUDENT + name: value for name, value in build_network(**options).state_dict().items()}
    write_checkpoint(folder / "best.ckpt", {"understudy": meta, "state_dict": weights})


def test_speed_is_measured_in_turns_and_held_against_the_teacher(tmp_path, photos):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER | {"neck_channels": 128}, data=photos)
    plain = make_run(tmp_path / "plain", 0.3, data=photos)
    frs = make_run(tmp_path / "frs", 0.4, data=photos, teacher=teacher)
    runs = [teacher, plain, frs]
    rows = summarise(runs, measure_speed=False).rows
    for row in rows:
        add_weights(row.runs[0].folder, row.config)
    table = summarise(runs, device="cpu")
    speeds = [row.images_per_second for row in table.rows]
    assert all(speed > 0 for speed in speeds)
    assert [row.speed_ratio for row in table.rows] == [pytest.approx(speed / speeds[0]) for speed in speeds]
    assert table.rows[0].speed_ratio == 1
    assert table.rows[1].speed_ratio > 1.2  # a network of a twentieth of the arithmetic
    assert "one image at a time (85x64 pixels)" in table.speed
    for width in (80, 120):
        text = printed(table, width)
        assert max(map(len, text.splitlines())) <= width
        assert "1.00 x" in text
