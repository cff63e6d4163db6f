"""Run folders: never overwritten, used by one process at a time, and their files whole or as before."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import understudy
from understudy.cli import main
from understudy.config import TrainConfig, load_config
from understudy.errors import RunError, UserError
from understudy.runs import (
    RunFolder,
    append_row,
    drop_rows_after,
    environment,
    is_first_process,
    read_rows,
    write_atomically,
)

# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_never_overwritten(trained, tiny, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["train", *(f"{key}={value}" for key, value in {**tiny, "run": trained}.items())])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"{trained} is not empty, and nothing in it is overwritten" in err
    assert f"understudy resume {trained}" in err
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*") if path.is_file()}
    assert after == before


def test_neither_is_any_other_folder_or_file(tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="photos is not empty, and nothing in it is overwritten: choose another run="):
        understudy.train(tiny, run=tmp_path / "photos")
    with pytest.raises(UserError, match=r"a.txt cannot be made: File exists"):
        understudy.train(tiny, run=tmp_path / "photos" / "a.txt")
    with pytest.raises(UserError, match=r"cannot be made: Not a directory"):
        understudy.train(tiny, run=tmp_path / "photos" / "a.txt" / "run")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.txt"]


def test_what_a_run_folder_holds(trained):
    names = {path.name for path in trained.iterdir()} - {".lock", "tensorboard"}
    assert names == {
        "config.yaml",
        "environment.json",
        "losses.csv",
        "metrics.csv",
        "last.ckpt",
        "best.ckpt",
        "result.json",
    }
    config = load_config(TrainConfig, trained / "config.yaml")
    assert config.run == trained
    assert config.optimizer.lr == 0.01
    assert config.schedule.epochs == 3
    written = json.loads((trained / "environment.json").read_text())
    assert {"understudy", "torch", "torchvision", "lightning", "numpy"} <= set(written["packages"])
    assert {"command", "started", "commit", "python", "platform", "processor", "cpu_count", "gpus"} <= set(written)


def test_the_command_can_be_pasted():
    command = environment(["/usr/bin/understudy", "train", "run=my runs/a", "data=it's"])["command"]
    assert command == """understudy train 'run=my runs/a' 'data=it'"'"'s'"""


def test_a_folder_in_use_by_another_process(trained, tmp_path):
    """The other process holds the folder until its input ends; then it is free, whatever that process died of."""
    RunFolder.create(tmp_path / "run", "run: x\n")
    script = """
import sys
from pathlib import Path
from understudy.runs import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("mine", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(UserError, match="run is in use: another process is training in it"):
            understudy.resume(tmp_path / "run")
        other.kill()
    with pytest.raises(UserError, match="stopped before it saved a checkpoint"):
        understudy.resume(tmp_path / "run")


def test_the_folder_is_free_again_when_a_run_has_failed(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "run: x\n")
    with pytest.raises(ZeroDivisionError), folder.locked():
        raise ZeroDivisionError
    with folder.locked():
        pass


def test_no_room_for_the_first_files(tmp_path, monkeypatch):
    replaced = []

    def fsync(descriptor):
        replaced.append(descriptor)
        if len(replaced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match="No space left"):
        RunFolder.create(tmp_path / "run", "run: x\n")
    monkeypatch.undo()
    RunFolder.create(tmp_path / "run", "run: x\n")  # nothing is in the way


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # torchrun, the second machine
        ({"LOCAL_RANK": "1"}, False),  # Lightning's own children
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0"}, True),
    ],
)
def test_one_process_writes(variables, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


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
    with pytest.raises(RunError, match=r"rows.csv could not be extended \(No space left on device\)"):
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


def test_it_says_what_is_left(tmp_path):
    with pytest.raises(RunError, match=r"file could not be saved \(No such file or directory\); there was none before"):
        write_atomically(tmp_path / "missing" / "file", b"content")
