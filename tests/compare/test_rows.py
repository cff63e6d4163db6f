"""Rows: roles, runs of several seeds, and the plain student that a distilled one is compared with."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import TEACHER, make_row, make_run

from understudy.compare.differences import differences
from understudy.compare.notes import notes_on
from understudy.compare.rows import rows_of
from understudy.compare.table import Table, summarise


def test_roles_follow_from_the_configs_whatever_the_order(three):
    table = summarise(three, measure_speed=False)
    assert [(row.name, row.role) for row in table.rows] == [
        ("teacher", "teacher"),
        ("plain", "plain"),
        ("frs", "distilled"),
    ]
    assert [row.gap_closed for row in table.rows] == [None, None, pytest.approx(0.5)]
    assert [verdict.gain for verdict in table.verdicts] == [pytest.approx(0.1)]
    assert "There is only one run of plain and frs" in table.verdicts[0].sentence
    as_json = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert as_json["rows"][2]["gap_closed"] == pytest.approx(0.5)
    assert as_json["rows"][2]["parameters"] == 1_234_567
    assert as_json["rows"][2]["images_per_second"] is None


def test_seeds_are_one_row_with_mean_and_spread(tmp_path, printed):
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
    assert table.verdicts[0].gains == pytest.approx((0.08, 0.09, 0.07))
    assert "(+8.0 ±1.0 over 3 paired seeds)" in table.verdicts[0].sentence
    assert "39.0 ±1.7" in printed(table, 80)
    assert table.to_dict()["rows"][2]["seeds"] == [0, 1, 2]


def test_a_repeated_seed_is_not_another_run(tmp_path, printed):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    copies = [make_run(tmp_path / f"plain_{name}", 0.3) for name in "ab"]
    taught = [make_run(tmp_path / f"frs_{name}", 0.4, teacher=teacher) for name in "ab"]
    table = summarise([teacher, *copies, *taught], measure_speed=False)
    assert [(len(row.runs), row.spread()) for row in table.rows] == [(1, None)] * 3
    assert table.verdicts[0].kind == "one seed"
    reason = "not counted, since another run of the row has the same seed (0):"
    assert any(note.startswith(f"plain: {reason} {copies[1]}. Train") for note in table.notes)
    assert any(note.startswith(f"frs: {reason} {taught[1]}. Train") for note in table.notes)
    assert "2 runs" not in printed(table, 200)


def test_a_seed_with_two_teachers_is_two_runs(tmp_path):
    teachers = [make_run(tmp_path / f"t{seed}", 0.5, detector=TEACHER, seed=seed) for seed in range(2)]
    taught = [make_run(tmp_path / f"frs_{t.name}", 0.4, teacher=t) for t in teachers]
    assert [len(row.runs) for row in summarise([*teachers, *taught], measure_speed=False).rows] == [2, 2]
    for run in taught:  # two paths of one teacher
        (run / "environment.json").write_text(json.dumps({"fingerprints": {"weights of the teacher": "0" * 32}}))
    assert [len(row.runs) for row in summarise([*teachers, *taught], measure_speed=False).rows] == [2, 1]


def test_a_student_is_compared_with_the_plain_one_trained_like_it(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    long = make_run(tmp_path / "long", 0.45, schedule={"name": "2x"})
    equal = make_run(tmp_path / "equal", 0.3)
    frs = make_run(tmp_path / "frs", 0.4, teacher=teacher)
    table = summarise([teacher, long, equal, frs], measure_speed=False)
    assert [row.name for row in table.rows] == ["teacher", "plain, schedule=2x", "plain, schedule=1x", "frs"]
    assert table.rows[-1].gap_closed == pytest.approx(0.5)
    assert any("frs is compared with plain, schedule=1x" in note for note in table.notes)


def test_an_exported_file_is_a_row_of_its_own_and_no_students_partner():
    plain, frs = make_row("plain", "plain", 0.3), make_row("frs", "distilled", 0.4, methods={"frs": {}})
    made = {"kind": "exported", "runtime": "ONNX Runtime 1.0 (CPU)", "parameters": None}
    files = [replace(plain.runs[0], folder=Path(f"{name}/student.onnx"), **made) for name in "ab"]
    rows = rows_of([files[0], plain.runs[0], frs.runs[0], files[1]])
    assert [row.role for row in rows] == ["plain", "distilled", "exported", "exported"]
    assert rows[1].plain is rows[0]
    assert [row.name for row in rows[2:]] == [f"student.onnx: {file.folder.resolve()}" for file in files]
    assert rows[2].to_dict()["runtime"] == "ONNX Runtime 1.0 (CPU)"
    assert Table(tuple(rows), ()).columns()["Params\n(M)"] == ["2.50", "2.50", "-", "-"]
    names = [note for note in notes_on(rows) if "is run by" in note]
    assert len(names) == 2
    assert differences(rows[2].runs[0], frs.runs[0]) == {}  # its training is not known
