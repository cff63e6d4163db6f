"""Checkpoints without a run folder in a comparison: evaluated on the data of the runs beside them, and said so."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from run_folders import make_run

from understudy.checkpoints import read_checkpoint, write_checkpoint
from understudy.compare.table import summarise
from understudy.errors import UserError
from understudy.report.views import view_runs


@pytest.fixture
def imported(trained, tmp_path) -> Path:
    """A checkpoint as an import writes it, of the teacher of a run."""
    content = read_checkpoint(trained / "best.ckpt")
    data = content["understudy"]["config"]["data"]
    kept = {"path": None, "val": "val", "shorter_side": data["shorter_side"], "longer_side": data["longer_side"]}
    content["understudy"]["config"] = {"data": kept}
    content["understudy"].pop("epoch")
    write_checkpoint(tmp_path / "star.ckpt", content)
    return tmp_path / "star.ckpt"


@pytest.fixture
def student(distilled, imported, tmp_path) -> Path:
    """A distilled run whose config names the imported checkpoint as its teacher."""
    run = shutil.copytree(distilled, tmp_path / "student")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"teacher": str(imported)}, sort_keys=False))
    return run


def test_an_imported_teacher_is_evaluated_on_the_data_of_its_student(student, trained, imported, printed):
    table = summarise([student, imported], measure_speed=False, device="cpu")
    teacher, distilled = table.rows
    assert [(row.name, row.role) for row in table.rows] == [("teacher", "teacher"), ("pkd + frs", "distilled")]
    assert distilled.teacher is not None
    result = json.loads((trained / "result.json").read_text())
    assert teacher.mean() == pytest.approx(result["coco"]["AP"], abs=1e-6)
    assert teacher.runs[0].parameters == result["parameters"]
    assert (teacher.runs[0].kind, teacher.runs[0].epoch) == ("imported", None)
    (note,) = [note for note in table.notes if "has no run folder" in note]
    assert "evaluated now, on the same images" in note
    assert "its training is not known" in note
    assert not any("differ in" in note for note in table.notes)
    assert "fcos_mobilenet_v2" in printed(table, 80)
    json.dumps(table.to_dict(), allow_nan=False)
    assert view_runs(table)[0].result["coco"]["AP"] == teacher.mean()


def test_a_checkpoint_of_a_run_keeps_its_config(student, trained, tmp_path):
    facts = json.loads((student / "environment.json").read_text())
    facts["fingerprints"]["weights of the teacher"] = "0" * 32  # or the checkpoint would be its teacher
    (student / "environment.json").write_text(json.dumps(facts))
    moved = tmp_path / "plain.ckpt"
    shutil.copy(trained / "best.ckpt", moved)
    table = summarise([student, moved], measure_speed=False, device="cpu")
    plain = next(row for row in table.rows if row.role == "plain")
    assert (plain.runs[0].kind, plain.runs[0].config.schedule.epochs) == ("checkpoint", 3)
    assert table.verdicts[0].kind != "unknown"


def test_two_checkpoints_are_two_rows(student, imported, tmp_path):
    shutil.copy(imported, tmp_path / "other.ckpt")
    table = summarise([student, imported, tmp_path / "other.ckpt"], measure_speed=False, device="cpu")
    assert [len(row.runs) for row in table.rows] == [1, 1, 1]


def test_checkpoints_that_cannot_be_evaluated_beside_the_runs_are_refused(student, imported, tmp_path):
    with pytest.raises(UserError, match=r"(?s)star\.ckpt: a checkpoint has no result.*at least one run folder"):
        summarise([imported])
    elsewhere = make_run(tmp_path / "elsewhere", 0.3, data=tmp_path / "other_data")
    with pytest.raises(UserError, match=r"(?s)star\.ckpt.*different data: 'val' in .*other_data"):
        summarise([student, elsewhere, imported])
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.ckpt is not a checkpoint of understudy"):
        summarise([student, tmp_path / "broken.ckpt"])
    with pytest.raises(UserError, match="is given twice"):
        summarise([student, imported, imported])
