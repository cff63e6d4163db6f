"""Files that are written completely or not at all, and the rows of a run's CSV files."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from understudy.errors import RunError, UserError
from understudy.files import append_row, check_outputs, drop_rows_after, read_rows, write_atomically, write_output

# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_come_back(tmp_path):
    file = tmp_path / "rows.csv"
    assert read_rows(file) == []
    append_row(file, {"step": 1, "loss": 0.5})
    append_row(file, {"step": 2, "loss": ""})
    assert file.read_text() == "step,loss\n1,0.5\n2,\n"
    assert read_rows(file) == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": ""}]


def test_a_row_has_the_columns_of_the_first(tmp_path):
    """A run that an older version began goes on with the columns of that version."""
    file = tmp_path / "rows.csv"
    append_row(file, {"step": 1, "loss": 0.5})
    append_row(file, {"new": 3, "loss": 0.4, "step": 2})
    append_row(file, {"step": 3})
    assert file.read_text() == "step,loss\n1,0.5\n2,0.4\n3,\n"
    drop_rows_after(file, 2)
    assert [row["step"] for row in read_rows(file)] == ["1", "2"]


def test_rows_after_a_step_are_dropped(tmp_path):
    file = tmp_path / "rows.csv"
    drop_rows_after(file, 3)
    assert not file.exists()
    for step in (2, 4, 6):
        append_row(file, {"step": step, "loss": step / 2})
    drop_rows_after(file, 4)
    assert file.read_text() == "step,loss\n2,1.0\n4,2.0\n"
    drop_rows_after(file, 1)
    assert not file.exists()


@pytest.mark.parametrize("torn", ["5", "5,0", "5,0.7"])
def test_a_row_that_was_cut_short_is_left_out(torn, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(f"step,loss\n4,0.5\n{torn}")
    assert [row["step"] for row in read_rows(file)] == ["4"]
    drop_rows_after(file, 9)
    append_row(file, {"step": 5, "loss": 0.25})
    assert file.read_text() == "step,loss\n4,0.5\n5,0.25\n"


@pytest.mark.parametrize("rows", [0, 1])
def test_a_row_is_written_whole_or_not_at_all(rows, tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    for step in range(rows):
        append_row(file, {"step": step, "loss": 0.5})
    before = file.read_bytes() if rows else b""
    opened = Path.open

    class FillsUp:
        def __init__(self, path):
            self.path = path

        def write(self, content):
            with opened(self.path, "ab") as stream:
                stream.write(content[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    def fills_up(path, mode="r", **options):
        return contextlib.nullcontext(FillsUp(path)) if mode == "ab" else opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", fills_up)
    with pytest.raises(RunError, match=r"append to .*rows.csv \(No space left on device\)\. Its rows are unchanged"):
        append_row(file, {"step": 7, "loss": 0.5})
    monkeypatch.undo()
    assert file.read_bytes() == before
    append_row(file, {"step": 7, "loss": 0.5})
    assert read_rows(file)[-1]["step"] == "7"


# --- whole files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_is_as_before_when_it_cannot_be_written(failure, tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, b"before")

    def fails(_):
        raise failure

    monkeypatch.setattr(os, "fsync", fails)
    expected = RunError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_atomically(file, b"after")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_did_not_exist(tmp_path):
    with pytest.raises(RunError, match=r"Could not write .*file \(No such file or directory\)\.$"):
        write_atomically(tmp_path / "missing" / "file", b"content")


# --- files that a user names ------------------------------------------------------------------------------------------


def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    check_outputs((tmp_path / "new" / "deep" / "x.csv", None, tmp_path / "x.html"), force=False)
    assert list(tmp_path.iterdir()) == [file]
    mistakes = [
        ((file,), "file exists and is not overwritten"),
        ((tmp_path,), "is a folder: expected the name of a file to write"),
        ((file / "x.csv",), r"x.csv: .*file is a file, not a folder"),
        ((tmp_path / "x", None, tmp_path / "new" / ".." / "x"), "x is given for two outputs"),
    ]
    for files, message in mistakes:
        with pytest.raises(UserError, match=message):
            check_outputs(files, force="exists" not in message)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK and Path(path) == tmp_path)
    with pytest.raises(UserError, match=rf"no permission to write to {tmp_path}"):
        check_outputs((tmp_path / "new" / "x.csv",), force=False)


def test_the_folders_above_an_output_are_made(tmp_path):
    write_output(tmp_path / "new" / "deep" / "x.csv", b"1")
    assert (tmp_path / "new" / "deep" / "x.csv").read_bytes() == b"1"
