"""Training runs: resumed runs equal uninterrupted ones, two processes equal one, and full disks cost no checkpoint."""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest
import torch
from arguments import arguments_of
from training_runs import assert_same, at_step, crash, ctrl_c, ctrl_c_twice, saved_step, send

import understudy
from understudy.cli import main
from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.evaluation import evaluate
from understudy.export import export
from understudy.files import read_rows
from understudy.training.checkpointing import KeepCheckpoints
from understudy.training.folder import RunFolder

# --- interrupted and resumed ------------------------------------------------------------------------------------------


def test_interrupted_and_resumed_equals_uninterrupted(distilled, tmp_path):
    """One run, of the config that another one wrote: within an epoch, in its evaluation, and at the last step."""
    run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    for step, during in [(2, "step"), (4, "evaluation"), (5, "step"), (8, "step")]:
        with at_step(step, ctrl_c, during), pytest.raises(KeyboardInterrupt, match=f"after step {step}.*resume {run}"):
            understudy.resume(run) if run.exists() else understudy.distill(distilled / "config.yaml", run=run)
        assert signal.getsignal(signal.SIGINT) is before
        assert saved_step(run) == step
        assert not (run / "result.json").exists()
    assert understudy.resume(run) == run
    assert_same(run, distilled)


def test_what_was_not_saved_is_repeated(tiny, trained, tmp_path, capsys):
    """One run: a second Ctrl-C before anything was saved, another one after it, and a crash."""
    run = tmp_path / "run"
    message = f"No checkpoint was saved yet. To start again: understudy resume {run}"
    with at_step(4, ctrl_c_twice), pytest.raises(KeyboardInterrupt, match=message):
        understudy.train(tiny, run=run)
    assert len(read_rows(run / "losses.csv")) == 1
    message = f"without saving. The last checkpoint is of step 4.*understudy resume {run}"
    with at_step(6, ctrl_c_twice), pytest.raises(KeyboardInterrupt, match=message):
        understudy.resume(run)
    assert "The run has no checkpoint: it starts again from its first step" in capsys.readouterr().err
    with at_step(7, crash), pytest.raises(ZeroDivisionError):
        understudy.resume(run)
    with (run / "losses.csv").open("a") as stream:
        stream.write("2.5,10,0.0")  # an incomplete row
    assert saved_step(run) == 4
    assert_same(understudy.resume(run), trained)


def test_a_crash_after_the_last_evaluation_costs_nothing(distilled, tmp_path):
    """The last checkpoint is older than the evaluation, in which the teacher's check measured the student."""
    run = shutil.copytree(distilled, tmp_path / "run")
    (run / "result.json").unlink()
    assert_same(understudy.resume(run), distilled)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
def test_the_signals_of_schedulers_and_terminals_save(tiny, trained, tmp_path, capsys):
    """One run is stopped by all of them: within an epoch, in its evaluation, in its last step, and by two at once."""
    run = tmp_path / "run"
    stops = [
        (1, "step", [signal.SIGTERM], 143),
        (2, "step", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP], 128 + signal.SIGUSR1),
        (4, "evaluation", [signal.SIGHUP], 129),
        (8, "step", [signal.SIGTERM], 143),
    ]
    for step, during, numbers, code in stops:
        arguments = ["resume", str(run)] if run.exists() else ["train", *arguments_of({**tiny, "run": run})]
        with at_step(step, partial(send, numbers), during), pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
        err = capsys.readouterr().err
        assert err.endswith(f"Stopped and saved after step {step}. To continue: understudy resume {run}\n")
        assert saved_step(run) == step
    assert len(read_rows(run / "metrics.csv")) == 1  # the second evaluation is still to come
    assert_same(understudy.resume(run), trained)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """So a run under `nohup` survives its terminal."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with KeepCheckpoints(RunFolder(tmp_path)).handling_signals():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler)
    finally:
        signal.signal(signal.SIGTERM, before)


def command(*arguments: object, **keys: object) -> list[str]:
    return [sys.executable, "-m", "understudy", *map(str, arguments), *arguments_of(keys)]


@pytest.mark.slow
def test_sigterm_on_the_command_line_saves_and_names_the_next_command(tiny, scenes, distilled, trained, tmp_path):
    """A scheduler sends the signal to all processes of the run, and the workers must survive it.

    The paths are relative; the run is resumed from another folder. A rank that is no number has no effect.
    """
    run, here = tmp_path / "run", scenes.parent
    paths = {"data.path": scenes.name, "teacher": os.path.relpath(trained, here), "run": os.path.relpath(run, here)}
    process = subprocess.Popen(
        command("distill", **{**tiny, **paths, "data.workers": 1}),
        cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": "foo", "LOCAL_RANK": "1", "SLURM_PROCID": "bar"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 90
    while not (run / "losses.csv").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert f"To continue: understudy resume {os.path.relpath(run, here)}" in err.splitlines()[-1]
    assert err.count("Finishing this step") == 1
    assert "Traceback" not in err
    assert "arning" not in err
    assert not out
    assert 3 <= saved_step(run) < 8
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(run)])
    assert not stop.value.code
    assert_same(run, distilled)


# --- unlabelled images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tiny, trained, unlabelled, tmp_path_factory) -> Path:
    """A finished run with one unlabelled image per step."""
    keys = {"data.unlabelled": unlabelled, "data.unlabelled_batch": 1}
    return understudy.distill(tiny, teacher=trained, run=tmp_path_factory.mktemp("runs") / "mixed", **keys)


def test_unlabelled_images_change_the_distillation(mixed, distilled, unlabelled):
    first, plain = (read_rows(run / "losses.csv")[0] for run in (mixed, distilled))
    assert list(first) == list(plain)
    assert first["step"] == plain["step"]
    assert first["pkd_feature"] != plain["pkd_feature"]
    assert len(read_rows(mixed / "losses.csv")) == len(read_rows(distilled / "losses.csv"))  # the same budget
    assert json.loads((mixed / "environment.json").read_text())["unlabelled_images"] == 5


def test_a_run_with_unlabelled_images_and_workers_is_resumed_twice(tiny, trained, mixed, unlabelled, tmp_path):
    run = tmp_path / "run"
    keys = {"data.unlabelled": unlabelled, "data.unlabelled_batch": 1, "data.workers": 2}
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained, **keys)
    with at_step(7, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.resume(run)
    assert_same(understudy.resume(run), mixed)


# --- a teacher of another kind ----------------------------------------------------------------------------------------


def test_a_teacher_of_another_kind_and_label_space(tiny, renamed, confident, tmp_path, capsys):
    """Other anchors, one class of another name, one in capitals; it is resumed to the bit like any other run."""
    keys = {
        **tiny,
        "data.path": renamed(["unicorn", " RING"]),
        "teacher": confident("retinanet_mobilenet_v2"),
        "methods": {"frs": {"scores": "cell"}},
        "schedule.epochs": 1,
    }
    whole = understudy.distill(keys, run=tmp_path / "whole")
    first_note = capsys.readouterr().err.splitlines()[0]
    assert "unicorn" in first_note
    assert "star" in first_note
    facts = json.loads((whole / "environment.json").read_text())["pairing"]
    assert facts["classes_unknown_to_the_teacher"] == ["unicorn"]
    assert facts["classes"] == [" RING", "cross", "arrow"]
    assert facts["classes_of_the_teacher_not_used"] == ["star"]
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(keys, run=tmp_path / "run")
    capsys.readouterr()
    assert_same(understudy.resume(tmp_path / "run"), whole)
    assert capsys.readouterr().err.splitlines()[0] == first_note
    with pytest.raises(UserError, match=r"methods.frs.class_weight=0"):
        understudy.distill(keys, run=tmp_path / "third", methods="frs")


# --- a backbone of Caffe ----------------------------------------------------------------------------------------------


def test_a_student_on_a_backbone_for_bgr_images_is_resumed_and_exported(tiny, tmp_path):
    torch.manual_seed(5)
    body = build_detector("fcos_mobilenet_v2", 4, width_mult=0.35, neck_channels=16).network.backbone.body
    torch.save(body.state_dict(), tmp_path / "caffe.pt")
    keys = {**tiny, "detector.backbone_weights": str(tmp_path / "caffe.pt"), "detector.channel_order": "bgr"}
    keys |= {"optimizer.lr": 1e-30, "detector.frozen_stages": 4, "schedule.epochs": 1}
    whole = understudy.train(keys, run=tmp_path / "whole")
    first = torch.load(whole / "best.ckpt", weights_only=True)["state_dict"]
    stem = first["learner.student.network.backbone.body.0.0.weight"]
    assert torch.equal(stem, body.state_dict()["0.0.weight"].flip(1))
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.train(keys, run=tmp_path / "run")
    (tmp_path / "caffe.pt").unlink()
    assert_same(understudy.resume(tmp_path / "run"), whole)  # rearranged once
    exported = torch.load(export(whole, tmp_path / "exported") / "weights.pt", weights_only=True)
    assert torch.equal(exported["backbone.body.0.0.weight"], stem)


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tiny, confident, unlabelled, tmp_path):
    """A whole run; test_processes.py has every family and method."""
    teacher = confident("retinanet_mobilenet_v2")
    keys = {
        **tiny,
        "teacher": teacher,
        "data.unlabelled": unlabelled,
        "data.unlabelled_batch": 1,
        "detector.name": "retinanet_mobilenet_v2",
        "detector.head_norm": None,
        "detector.norm": "frozen",
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "schedule.epochs": 1,
        "optimizer.clip_norm": 350,
        "ema": "off",
        "methods": json.dumps({"frs": {"class_weight": 200, "ramp_steps": 0}}),
        "log_every": 1,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    done = subprocess.run(
        command("distill", **keys | {"run": two, "devices": 2, "strategy": "ddp"}),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    assert done.stderr.count("epoch   1") == 1
    larger = {"batch_size": 4, "data.unlabelled_batch": 2, "methods": json.loads(keys["methods"])}
    understudy.distill({**keys, **larger}, run=one)

    weights = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        torch.testing.assert_close(weights[1][key], weights[0][key], rtol=1e-4, atol=1e-6, msg=key)
    bias = weights[0]["learner.student.network.head.classification_head.cls_logits.bias"]
    assert (bias + math.log(99)).min() > 0.1  # it starts at -log(99)
    # After two steps scores nearly tie: the runs' AP may differ, but that of one set of weights must not.
    result, evaluation = json.loads((two / "result.json").read_text()), evaluate(two, batch_size=2)
    assert result["coco"]["AR100"] > 0
    for name in ("AP", "AP50", "AR100"):
        assert result["coco"][name] == pytest.approx(evaluation.coco[name], abs=1e-9)
    assert [row["step"] for row in read_rows(two / "losses.csv")] == ["1", "2"]
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


# --- a full disk ------------------------------------------------------------------------------------------------------


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def full_at(file: str, write: int) -> Generator[None]:
    """The disk is full when `file` is written the n-th time."""
    opened, writes = Path.open, []

    def open_(path, mode="r", *args, **kwargs):
        stream = opened(path, mode, *args, **kwargs)
        if path.name in (file, f".{file}.part") and mode in ("wb", "ab"):
            writes.append(path)
            if len(writes) == write:
                stream.write(b"half a ro")
                stream.close()
                return contextlib.nullcontext(types.SimpleNamespace(write=no_room))
        return stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_)
        yield


def test_a_full_disk_leaves_the_last_checkpoint(tiny, trained, tmp_path, capsys):
    """It happens to one run at each of its files; with room again, it equals any other."""
    run = tmp_path / "run"
    for file, write, saved in [
        ("last.ckpt", 1, None),
        ("best.ckpt", 1, 4),
        ("losses.csv", 2, 4),
        ("metrics.csv", 2, 8),
        ("result.json", 1, 8),
    ]:
        arguments = ["resume", str(run)] if run.exists() else ["train", *arguments_of({**tiny, "run": run})]
        with full_at(file, write), pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 1
        err = capsys.readouterr().err
        assert "Error: The disk is full" in err
        assert str(run / file) in err
        assert not list(run.glob(".*.part"))
        assert not any("half" in rows.read_text() for rows in run.glob("*.csv"))
        assert saved_step(run) == saved
        assert f"understudy resume {run}" in err
    assert_same(understudy.resume(run), trained)


def test_a_full_disk_for_tensorboard_and_by_a_limit_of_the_system(tiny, trained, tmp_path, monkeypatch, capsys):
    """TensorBoard's thread fails, and says nothing; the next row does. Then the system refuses.

    From step 6 on no file may grow beyond 1.5 MB, and last.ckpt would.
    """
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer").RecordWriter
    resource = pytest.importorskip("resource")
    run, hook = tmp_path / "run", threading.excepthook
    with at_step(4, partial(monkeypatch.setattr, writer, "write", no_room)), pytest.raises(SystemExit) as stop:
        main(["train", *arguments_of({**tiny, "run": run})])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert f"Error: The disk is full: Could not write {run / 'tensorboard'} (No space left on device). Free some" in err
    assert "Traceback" not in err
    assert threading.excepthook is hook
    monkeypatch.undo()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        shrink = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
        with at_step(6, shrink), pytest.raises(SystemExit) as stop:
            main(["resume", str(run)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert f"Could not write {run / 'last.ckpt'} (File too large). The previous version is unchanged. Free some" in err
    assert not list(run.glob(".*.part"))
    assert saved_step(run) == 4
    assert_same(understudy.resume(run), trained)


def test_a_run_uses_the_threads_of_its_config_and_leaves_those_of_the_process(tiny, tmp_path):
    found = []
    torch.set_num_threads(2)
    try:
        with at_step(1, lambda: found.append(torch.get_num_threads())):
            run = understudy.train(tiny, run=tmp_path / "run", threads=1, **{"schedule.epochs": 1})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found == [1]
    assert json.loads((run / "environment.json").read_text())["threads"] == 1
