"""Students trained side by side equal students trained alone, to the bit, and the teacher runs once for all."""

import os
import shutil
import signal
import time

import pytest
from training_runs import assert_same, at_step, crash, ctrl_c, saved_step

import understudy
from understudy.config import LEFT_OPEN, DistillConfig, TrainConfig, load_config, open_keys
from understudy.detectors import Detector
from understudy.errors import RunError, UserError
from understudy.files import read_rows
from understudy.training.together import train_together

STUDENTS = {
    "frs": {"methods": {"frs": {"ramp_steps": 0}}},
    "hint": {"methods": "hint", "optimizer.lr": 0.002},
    "larger": {"methods": {"crosskd": {}}, "detector.width_mult": 0.5},
}
UNCACHED = {"teacher_cache": "off"}


@pytest.fixture
def configs(tiny, trained, tmp_path):
    """Makes the configs of all students, below a folder."""

    def make(folder: str, **more) -> list[DistillConfig]:
        keys = [{**tiny, "teacher": trained, **UNCACHED, **changed, **more} for changed in STUDENTS.values()]
        runs = [tmp_path / folder / name for name in STUDENTS]
        return [load_config(DistillConfig, {**each, "run": run}) for each, run in zip(keys, runs, strict=True)]

    return make


@pytest.fixture(scope="module")
def alone(tiny, trained, tmp_path_factory):
    """The folders of the same students, trained one after another."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {name: {**UNCACHED, **keys, "run": folder / name} for name, keys in STUDENTS.items()}
    return [understudy.distill(tiny, teacher=trained, **keys) for keys in runs.values()]


@pytest.fixture
def passes(monkeypatch) -> list:
    """What each pass of the teacher in a step was for."""
    found, forward = [], Detector.forward

    def counted(self, *arguments, needs=None, **more):
        found.extend([needs] if needs is not None else [])
        return forward(self, *arguments, needs=needs, **more)

    monkeypatch.setattr(Detector, "forward", counted)
    return found


def test_students_together_equal_students_alone(configs, alone, passes, tiny, trained, tmp_path, capsys):
    """One of them is a plain student."""
    workers = {"data.workers": 1}
    plain = load_config(TrainConfig, {**tiny, **workers}, {"run": tmp_path / "plain"})
    found = train_together([plain, *configs("together", **workers)])
    for run, other in zip(found, [trained, *alone], strict=True):
        assert_same(run, other)
    assert len(passes) == 8  # one for each step
    said = capsys.readouterr().err
    assert said.count("teacher    AP") == 1
    for name in STUDENTS:
        assert f"{name}: epoch   2  AP" in said


def test_ctrl_c_stops_and_saves_all_and_each_is_resumed_alone(configs, alone, tmp_path):
    def stop_and_wait() -> None:  # until the main thread has handled it
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    with at_step(5, stop_and_wait), pytest.raises(KeyboardInterrupt) as stop:
        train_together(configs("stopped")[:2])
    for name, other in zip(list(STUDENTS)[:2], alone[:2], strict=True):
        run = tmp_path / "stopped" / name
        assert f"understudy resume {run}" in str(stop.value)
        assert saved_step(run) in (4, 5)  # the others stop after the step of their turn
        assert_same(understudy.resume(run), other)


def test_an_interrupted_run_goes_on_together_with_a_new_one(configs, alone, tmp_path):
    first, second = configs("apart")[:2]
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(first)
    found = train_together([first.run, second])
    assert found == [first.run, second.run]
    for run, other in zip(found, alone[:2], strict=True):
        assert_same(run, other)


def test_students_share_a_cache(configs, passes, tiny, trained, tmp_path):
    """One of them cannot use it: its outputs are computed in each step, and are no other students'."""
    cached = {"teacher_cache": "auto", "data.flip": 0.0, "batch_size": 4}
    alone = understudy.distill({**tiny, **cached, **STUDENTS["frs"]}, teacher=trained, run=tmp_path / "alone")
    passes.clear()
    found = train_together(configs("cached", **cached))
    measured = 2 + 1  # the size of an entry: by both runs that can use the cache, and for both together
    assert len(passes) == measured + 2 + 4  # those of the first epoch, and of every step
    for name in ("frs_feature", "frs_class"):
        own, other = ([float(row[name]) for row in read_rows(run / "losses.csv")] for run in (found[0], alone))
        assert own == pytest.approx(other, rel=2e-3)


def test_a_run_that_fails_does_not_stop_the_others(configs, alone):
    crashes = iter([crash])
    with at_step(5, lambda: next(crashes, int)()):  # the first run that comes to it
        found = train_together(configs("failing")[:2])
    assert isinstance(found[0], ZeroDivisionError)
    for run, other in zip(found[1:], alone[1:2], strict=True):
        assert_same(run, other)


def test_a_run_that_stops_early_leaves_the_others_to_go_on(configs, tmp_path, capsys):
    """The first of the students, whose AP stays 0, stops after its second evaluation of three."""
    first, second = configs("early", **{"schedule.patience": 1, "schedule.epochs": 3, "batch_size": 4})[:2]
    optimizer = first.optimizer.model_copy(update={"lr": 1e-12})
    runs = train_together([first.model_copy(update={"optimizer": optimizer}), second])
    assert [len(read_rows(run / "metrics.csv")) for run in runs] == [2, 3]
    assert "frs: stopped early after epoch 2 of 3" in capsys.readouterr().err
    assert_same(runs[1], understudy.distill(second.model_copy(update={"run": tmp_path / "alone"})))


def test_an_image_that_cannot_be_read_ends_every_run_with_the_same_message(configs, scenes, tmp_path, capsys):
    copy = shutil.copytree(scenes, tmp_path / "scenes")
    for image in (copy / "images").iterdir():
        if image.name.startswith("train"):
            image.write_bytes(image.read_bytes()[:200])
    found = train_together(configs("damaged", **{"data.path": copy})[:2])
    assert [type(error) for error in found] == [RunError, RunError]
    assert str(found[0]) == str(found[1])
    assert "understudy check" in str(found[0])
    said = capsys.readouterr().err
    assert f"frs: failed: {found[0]}" in said
    assert f"hint: failed: {found[0]}" in said


def test_no_student_is_refused():
    with pytest.raises(UserError, match="train_together got no run"):
        train_together([])


def test_what_is_left_open_is_what_another_run_states_or_chooses(configs, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.training.together._Group.train", lambda group: [run.folder for run in group.runs])
    first, second, _ = configs("open", batch_size=None, schedule={"name": "cosine"})
    stating = first.model_copy(update={"batch_size": 4})
    keys = {key: value for key, value in tiny.items() if key not in LEFT_OPEN} | {"schedule": {"name": "cosine"}}
    plain = load_config(TrainConfig, {**keys, "run": tmp_path / "open" / "plain"})
    written = [folder.read_config() for folder in train_together([plain, second, stating])]
    assert {config.batch_size for config in written} == {4}
    assert written[0].data == written[1].data
    assert [open_keys(config) for config in written] == [[], [], []]
    assert {config.schedule.epochs for config in written} == {2}


def test_runs_that_cannot_share_are_refused_with_all_reasons(configs, tmp_path):
    first, second, third = configs("refused")
    second = second.model_copy(update={"batch_size": 4, "run": first.run})
    third = third.model_copy(update={"teacher_cache": "memory", "devices": 2})
    with pytest.raises(UserError) as stop:
        train_together([first, second, third])
    for reason in (
        "batch_size differs: 2, 4, 2",
        "two runs have the same folder",
        "devices=1",
        "teacher_cache differs",
    ):
        assert reason in str(stop.value)
    assert not (tmp_path / "refused").exists()
