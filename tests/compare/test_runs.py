"""Run folders: which cannot be read, and how a distilled run finds its teacher."""

import pytest
from run_folders import make_run

from understudy.compare.runs import read_runs, teachers_of
from understudy.errors import UserError


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
