"""The teacher is evaluated when a run starts: what is said about it, and that the run itself stays the same."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import at_step, contents, ctrl_c

import understudy
from understudy.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from understudy.config import DistillConfig, load_config
from understudy.data import open_data
from understudy.data.scenes import make_scenes
from understudy.evaluation import Detections, evaluate
from understudy.training.teacher_check import CheckTeacher

LINE = "teacher    AP "


@pytest.fixture(scope="session")
def keys(tiny, trained) -> dict:
    """A run with a teacher, of one epoch of two steps."""
    return {**tiny, "teacher": trained, "schedule.epochs": 1, "batch_size": 4, "log_every": 1}


def test_the_check_leaves_the_run_as_it_is_and_is_not_repeated(keys, trained, tmp_path, capsys):
    whole = understudy.distill(keys, run=tmp_path / "whole", teacher_check=3)
    err = capsys.readouterr().err
    without = understudy.distill(keys, run=tmp_path / "without", teacher_check=0)
    with at_step(1, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(keys, run=tmp_path / "run", teacher_check=3)
    capsys.readouterr()
    understudy.resume(tmp_path / "run")
    assert LINE not in capsys.readouterr().err
    found, expected = contents(whole), contents(without)
    assert contents(tmp_path / "run") == found
    check = found["result"].pop("teacher_check")
    assert found == expected
    assert f"{LINE}{100 * check['AP']:.1f}  on 3 of 4 validation images\n" in err
    assert check["images"] == 3
    assert 0 <= check["student_AP"] <= 1


def test_on_the_whole_split_it_is_the_usual_evaluation(keys, scenes, trained):
    check = checker(keys, scenes, trained)
    assert check.found == {"images": 4, "AP": pytest.approx(evaluate(trained).coco["AP"], abs=1e-6)}


@pytest.fixture
def spoilt(trained, tmp_path):
    """Makes a copy of a teacher with other weights or facts."""

    def spoilt(change=lambda name, value: value, teacher=trained, **meta):
        content = read_checkpoint(teacher / "best.ckpt")
        weights = {name: change(name, value) for name, value in content["state_dict"].items()}
        meta = content["understudy"] | meta
        write_checkpoint(tmp_path / "spoilt.ckpt", {"understudy": meta, "state_dict": weights})
        return tmp_path / "spoilt.ckpt"

    return spoilt


def zeros(name, value):
    return torch.zeros_like(value)


def noise(name, value):
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) if "cls_logits" in name else value


def test_a_teacher_without_training_is_said(keys, spoilt, scenes, tmp_path, capsys):
    """Of the trained detector's record, too, and what to do."""
    file = spoilt(zeros)
    understudy.distill(keys, run=tmp_path / "run", teacher=file, methods={"hint": {"feature_weight": 1}})
    recorded = read_checkpoint(file)["understudy"]["AP"]
    lines = capsys.readouterr().err.splitlines()
    assert f"{LINE}0.0  on the 4 validation images" in lines
    assert (
        f"The teacher detects almost nothing right; its checkpoint records AP {100 * recorded:.1f}. A student learns "
        "its errors, too. Possible causes: weights that are not trained, another order of its class names, another "
        f"normalisation. Look at its detections: understudy predict {file} {scenes} -o FOLDER"
    ) in lines


def checker(keys, scenes, teacher, found=None, **changes) -> CheckTeacher:
    """The check of a teacher after its evaluation, which `found` replaces."""
    config = load_config(DistillConfig, {**keys, "run": "none", "teacher": teacher, **changes})
    check = CheckTeacher(load_checkpoint(teacher), open_data(scenes, "val"), config)
    if found is None:
        trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=torch.no_grad))
        check._evaluate(trainer, SimpleNamespace(teacher=check.teacher.detector, device="cpu"))
    else:
        check.found = found
    return check


def checked(*arguments, **changes) -> list[str]:
    return list(checker(*arguments, **changes)._remarks())


def test_errors_that_nothing_else_shows(keys, spoilt, tmp_path):
    """Of a good teacher: the one that comes with the package, at its own image size."""
    scenes = make_scenes(tmp_path / "scenes", train=1, val=4, size=96, seed=0)
    good = Path(understudy.__file__).parent / "demo_teacher"
    changes = {"data.path": scenes, "data.shorter_side": 96, "data.longer_side": 96}
    meta = read_checkpoint(good / "best.ckpt")["understudy"]
    names, pixels = [*meta["classes"][1:], meta["classes"][0]], {"image_mean": [0.0] * 3, "image_std": [1 / 255] * 3}
    assert len(checked(keys, scenes, good, **changes)) == 1
    for file in (
        spoilt(noise, good),
        spoilt(teacher=good, classes=names),
        spoilt(teacher=good, build=meta["build"] | pixels),
    ):
        line, advice = checked(keys, scenes, file, **changes)
        assert line.startswith(LINE)
        assert f"its checkpoint records AP {100 * meta['AP']:.1f}. A student learns its errors, too" in advice


@pytest.mark.parametrize(
    ("recorded", "measured", "said"),
    [
        (0.40, 0.39, None),
        (0.40, 0.30, "clearly worse here than in its own training; its checkpoint records AP 40.0"),
        (0.10, 0.06, None),  # less than a sample's error
        (None, 0.30, None),
        (None, 0.004, "detects almost nothing right. A student"),
        (0.0, 0.0, "detects almost nothing right; its checkpoint records AP 0.0"),
        (0.0, None, "own checkpoint records AP 0.0"),  # teacher_check=0
        (0.40, math.nan, "AP is unknown: the 4 validation images contain no objects of its classes. Use more images"),
    ],
)
def test_what_is_suspicious(recorded, measured, said, keys, scenes, spoilt):
    remarks = checked(keys, scenes, spoilt(AP=recorded), {} if measured is None else {"AP": measured})
    others = [line for line in remarks if not line.startswith(LINE)]
    assert len(others) == (said is not None)
    assert said is None or said in others[0]


def test_possible_causes_are_those_of_the_run(keys, scenes, spoilt):
    (_, advice) = checked(keys, scenes, spoilt(), {"AP": 0.0}, **{"data.shorter_side": [64, 96]})
    assert "another image size (96, in its own training 64)" in advice
    file = spoilt(config={"data": {"path": None, "val": "val", "shorter_side": [64], "longer_side": 64}})
    assert "images of another kind" in checked(keys, scenes, file, {"AP": 0.0})[1]


def test_a_sample_without_objects(keys, scenes, trained):
    """Of the split's objects, none is of a class that the teacher knows."""
    check = checker(keys, scenes, trained, {})
    check.known = []
    assert math.isnan(check._ap(Detections.of_rows([])))


def test_the_duration_is_limited(keys, scenes, trained, monkeypatch):
    monkeypatch.setattr("understudy.training.teacher_check.SECONDS", 0.0)
    assert checked(keys, scenes, trained, batch_size=1)[0].endswith("on 1 of 4 validation images")


def test_a_student_above_its_teacher_is_said_at_the_end(keys, scenes, trained, capsys):
    check = checker(keys, scenes, trained, {}, teacher_check=2)
    trainer = SimpleNamespace(is_global_zero=True)
    for found in ({}, {"AP": 0.2}, {"AP": 0.2, "student_AP": 0.2}):
        check.found = found
        check.on_train_end(trainer, SimpleNamespace())
    assert not capsys.readouterr().err
    check.found = {"AP": 0.2, "student_AP": 0.25}
    check.on_train_end(trainer, SimpleNamespace())
    assert capsys.readouterr().err == (
        "The teacher is worse than the student: AP 20.0 and 25.0 on 2 of 4 validation images. A better teacher may "
        "help more.\n"
    )
