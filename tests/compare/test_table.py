"""The table as it is printed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import TEACHER, make_run

from understudy.compare.table import summarise


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(three, printed, width):
    text = printed(summarise(three, measure_speed=False), width)
    assert max(map(len, text.splitlines())) <= width
    (line,) = [line for line in text.splitlines() if line.startswith("frs ")]
    assert line.split() == ["frs", "40.0", "60.0", "40.0", "1.23", "50%"]


def test_the_fullest_table_fits_80_columns(tmp_path, printed, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a note names the folders, whose paths may be longer than a line
    teacher = make_run(Path("teacher"), 0.5, detector=TEACHER)
    runs = [teacher] + [make_run(Path(f"plain-{seed}"), 0.1 + seed / 10, seed=seed) for seed in range(3)]
    runs += [make_run(Path(f"frs-{seed}"), 0.1, seed=seed, teacher=teacher) for seed in range(3)]
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


def test_verdicts_stand_once_above_the_notes(three, printed):
    table = summarise(three, measure_speed=False)
    (verdict,) = table.verdicts
    lines = [line for line in printed(table, 400).splitlines() if line.strip().startswith("- ")]
    assert [line.strip() for line in lines] == [f"- {text}" for text in (verdict.sentence, *table.notes)]
    assert json.loads(json.dumps(table.to_dict()))["verdicts"][0]["sentence"] == verdict.sentence
    assert not any("+10.0" in note for note in table.notes)
