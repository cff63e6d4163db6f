"""Run folders: never overwritten, and used by one process at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest

import understudy
from understudy.cli import main
from understudy.config import TrainConfig, load_config
from understudy.errors import RunError, UserError
from understudy.training.folder import RunFolder, is_first_process


def test_a_run_folder_is_never_overwritten(trained, tiny, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["train", *(f"{key}={value}" for key, value in {**tiny, "run": trained}.items())])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"The run folder {trained} is not empty. Choose a new folder: run=FOLDER." in err
    assert f"understudy resume {trained}" in err
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*") if path.is_file()}
    assert after == before


def test_neither_is_any_other_folder_or_file(tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match=r"photos is not empty. Choose a new folder: run=FOLDER\.$"):
        understudy.train(tiny, run=tmp_path / "photos")
    with pytest.raises(UserError, match=r"a.txt cannot be created: File exists"):
        understudy.train(tiny, run=tmp_path / "photos" / "a.txt")
    with pytest.raises(UserError, match=r"cannot be created: Not a directory"):
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
    assert config.optimizer.lr == 0.003
    assert config.schedule.epochs == 2
    written = json.loads((trained / "environment.json").read_text())
    assert {"understudy", "torch", "torchvision", "lightning", "numpy"} <= set(written["packages"])
    assert {"command", "started", "commit", "python", "platform", "processor", "cpu_count", "gpus"} <= set(written)


def test_a_folder_in_use_by_another_process(trained, tmp_path):
    """The other process holds the folder until its input ends; then it is free, whatever that process died of."""
    RunFolder.create(tmp_path / "run", "run: x\n")
    script = """
import sys
from pathlib import Path
from understudy.training.folder import RunFolder
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
    with pytest.raises(UserError, match="stopped before the first was saved"):
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
