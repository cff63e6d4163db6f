"""Run folders: which cannot be read, and how a distilled run finds its teacher."""

import json
import shutil

import pytest
from run_folders import TEACHER, make_run

from understudy.checkpoints import load_checkpoint
from understudy.compare.runs import read_runs, teachers_of
from understudy.compare.table import summarise
from understudy.errors import UserError
from understudy.training.fingerprints import weights_digest


def test_folders_that_are_no_finished_runs_are_all_named(three, tmp_path):
    (tmp_path / "nothing").mkdir()
    unfinished = make_run(tmp_path / "unfinished", 0.1)
    (unfinished / "result.json").unlink()
    damaged = make_run(tmp_path / "damaged", 0.1)
    (damaged / "result.json").write_text('{"coco": ')
    with pytest.raises(UserError) as error:
        read_runs([*three, three[0], tmp_path / "nothing", unfinished, damaged])
    message = str(error.value)
    assert f"{three[0]} is given twice" in message
    assert f"{tmp_path / 'nothing'} is not a run folder" in message
    assert f"understudy resume {unfinished}" in message
    assert f"{damaged / 'result.json'}, line 1, is not valid JSON" in message
    with pytest.raises(UserError, match="at least one run"):
        read_runs([])


def test_runs_that_were_moved_still_find_their_teacher(three, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    frs, teacher, plain = read_runs([folder.rename(moved / folder.name) for folder in three])
    assert teachers_of([frs, teacher, plain]) == {frs.folder: teacher}
    assert teachers_of([frs, plain]) == {}


def test_a_teacher_is_recognised_by_its_weights(trained, three, tmp_path):
    """A renamed one is the teacher; one of the same name, or at the same place, with other weights is not."""
    frs, named, plain = three
    digest = weights_digest(load_checkpoint(trained).detector)
    (frs / "environment.json").write_text(json.dumps({"fingerprints": {"weights of the teacher": digest}}))
    renamed = shutil.copytree(trained, tmp_path / "renamed")
    assert teachers_of(read_runs([frs, named, plain, renamed]))[frs].folder == renamed
    assert teachers_of(read_runs([frs, named, plain]))[frs].folder == named  # it has no checkpoint: the place decides
    other = {"fingerprints": {"weights of the teacher": "0" * 32}}
    (frs / "environment.json").write_text(json.dumps(other))
    for name in ("best.ckpt", "last.ckpt"):
        shutil.copy(trained / name, named)
    assert teachers_of(read_runs([frs, named, plain])) == {}
    notes = summarise([frs, named, plain], measure_speed=False).notes
    assert any("are no longer those of its teacher" in note for note in notes)


def test_a_run_elsewhere_of_the_same_name_is_not_the_teacher_that_still_exists(three, tmp_path):
    frs, _, plain = three
    (tmp_path / "teacher" / "best.ckpt").touch()
    other = make_run(tmp_path / "elsewhere" / "teacher", 0.5, detector=TEACHER)
    assert teachers_of(read_runs([frs, plain, other])) == {}
