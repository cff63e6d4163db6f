"""Run folders: never overwritten, and used by one process at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from arguments import arguments_of

import understudy
from understudy.cli import main
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.errors import RunError, UserError
from understudy.files import write_atomically
from understudy.training import folder
from understudy.training.folder import RunFolder


def test_a_run_folder_is_never_overwritten(trained, tiny, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments_of({**tiny, "run": trained})])
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
    with pytest.raises(UserError, match=r"a.txt cannot be created: Not a directory"):
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


HOLDS_THE_FOLDER = """
import os, sys, time
from pathlib import Path
from understudy.training.folder import RunFolder
with RunFolder(Path(sys.argv[1])).created("run: x\\n"):
    if not os.fork():  # like a worker, which outlives its parent for a while
        time.sleep(60)
        os._exit(0)
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_by_another_process(tiny, tmp_path):
    """It is free as soon as that process is dead, whatever it died of, even if its workers are still there."""
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_FOLDER, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as other:
        assert other.stdout.readline() == b"mine\n"
        before = {file.name: file.stat().st_mtime_ns for file in run.iterdir()}
        with pytest.raises(UserError, match=r"is not empty\. .*understudy resume"), RunFolder(run).created("run: y\n"):
            pass
        (run / "config.yaml").rename(tmp_path / "config.yaml")  # as if both had found the folder empty
        with pytest.raises(UserError, match="run is in use: another process"), RunFolder(run).created("run: y\n"):
            pass
        (tmp_path / "config.yaml").rename(run / "config.yaml")
        assert {file.name: file.stat().st_mtime_ns for file in run.iterdir()} == before
        with (
            pytest.raises(UserError, match="run is in use: another process is training in it"),
            RunFolder(run).locked(),
        ):
            pass
        other.kill()
        other.wait()
        with RunFolder(run).locked():
            pass
        os.killpg(other.pid, signal.SIGKILL)


def test_a_folder_in_use_by_this_process(tmp_path):
    with RunFolder(tmp_path).locked():
        with pytest.raises(UserError, match="is in use"), RunFolder(tmp_path).locked():
            pass
        with pytest.raises(UserError, match="is in use"), RunFolder(tmp_path / ".." / tmp_path.name).locked():
            pass


STARTS_AT_ONCE = """
import json, os, sys, time
from pathlib import Path
import torch
from understudy.errors import RunError, UserError
from understudy.files import write_atomically
from understudy.training import folder
from understudy.training.folder import RunFolder

def start(number, folder, go, said):
    os.read(go, 1)  # until the parent closes the pipe
    try:
        with RunFolder(folder).created(f"run: {number}\\n", {"number": number}):
            said.write_text("won")
            time.sleep(0.1)
    except UserError as error:
        said.write_text(str(error))
    os._exit(0)

place = Path(sys.argv[1])
for attempt in range(8):
    go, open_until_all_wait = os.pipe()
    folder = place / str(attempt) / "run"
    folder.parent.mkdir()
    for number in range(4):
        if not os.fork():
            os.close(open_until_all_wait)
            start(number, folder, go, folder.parent / str(number))
    os.close(go)
    time.sleep(0.02)
    os.close(open_until_all_wait)
    for number in range(4):
        os.wait()
"""


def test_of_several_starts_at_once_one_takes_the_folder(tmp_path):
    """Eight tries of four processes each."""
    subprocess.run([sys.executable, "-c", STARTS_AT_ONCE, str(tmp_path)], check=True, timeout=100)
    for attempt in range(8):
        said = [(tmp_path / str(attempt) / str(number)).read_text() for number in range(4)]
        assert said.count("won") == 1
        assert all("is in use" in text or "is not empty" in text for text in said if text != "won")
        run, winner = tmp_path / str(attempt) / "run", said.index("won")
        assert (run / "config.yaml").read_text() == f"run: {winner}\n"
        assert json.loads((run / "environment.json").read_text())["number"] == winner


@pytest.mark.parametrize("file", ["environment.json", "config.yaml"])
def test_no_room_for_the_first_files(file, tmp_path, monkeypatch):
    def no_room(path, content):
        if path.name == file:
            raise RunError("No space left on device")
        write_atomically(path, content)

    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(folder, "write_atomically", no_room)
    with pytest.raises(RunError, match="No space left"), run.created("run: x\n"):
        pass
    monkeypatch.undo()
    with run.created("run: x\n"):  # nothing is in the way
        assert run.config.read_text() == "run: x\n"


def test_the_folder_is_free_again_when_a_run_has_failed(tmp_path):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.created("run: x\n"):
        raise ZeroDivisionError
    with run.locked():
        pass


def test_what_a_start_leaves_that_was_killed_is_not_in_the_way(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "environment.json", ".config.yaml.part"):
        (run / name).write_text("{")
    with RunFolder(run).created("run: x\n"):
        assert json.loads((run / "environment.json").read_text())["python"]
    (run / "config.yaml").unlink()
    (run / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"), RunFolder(run).created("run: x\n"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / ".lock").unlink()
    run.chmod(0o500)
    with pytest.raises(UserError, match="run cannot be written to: Permission denied"):
        understudy.resume(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"Invalid config \(.*config.yaml\):\n  - run: missing; .*\n  - data.path: missing"),
        (b"run: [", r"config.yaml is not valid YAML, line 1"),
        (b"run: \xff\n", r"config.yaml, line 1, is not UTF-8 text"),
        (b"- run\n", r"config.yaml must contain `key: value` lines"),
    ],
)
def test_a_broken_config(content, message, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        understudy.resume(tmp_path)


@pytest.mark.parametrize(
    ("methods", "quality"),
    [
        ("{second_stage: {count: 128}}", False),
        ("{second_stage: {quality: true}}", True),
        ("{frs: {ramp_steps: 0}}", None),
    ],
)
def test_a_method_of_an_earlier_version_goes_on_as_it_began(methods, quality, trained, tmp_path):
    text = (trained / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(f"{text}teacher: {trained}\nmethods: {methods}\n")
    config = RunFolder(tmp_path).read_config()
    assert isinstance(config, DistillConfig)
    assert config.methods.get("second_stage", {}).get("quality") == quality
