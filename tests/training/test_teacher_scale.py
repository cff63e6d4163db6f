"""A run whose teacher sees larger images than the student: from data to evaluation, kept outputs and resuming."""

import json
import shutil

import pytest
import torch
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.errors import UserError
from understudy.evaluation import evaluate
from understudy.files import read_rows
from understudy.training.together import train_together

TERMS = ("pkd_feature", "frs_class", "total")


@pytest.fixture(scope="module")
def keys(tiny, trained) -> dict:
    """A student at half of the size of its teacher's images."""
    half = {"data.shorter_side": 32, "data.longer_side": 32, "teacher_scale": 2, "batch_size": 4, "log_every": 1}
    steady = {"optimizer.name": "sgd", "optimizer.lr": 1e-4, "detector.norm": "frozen", "data.flip": 0.0}
    return {**tiny, "teacher": trained, **half, **steady}


@pytest.fixture(scope="module")
def whole(keys, tmp_path_factory):
    return understudy.distill(keys, run=tmp_path_factory.mktemp("runs") / "whole")


def test_the_teacher_is_evaluated_at_its_own_size(whole, trained):
    found = json.loads((whole / "result.json").read_text())["teacher_check"]
    assert found["AP"] == pytest.approx(evaluate(trained).coco["AP"], abs=1e-6)
    facts = json.loads((whole / "environment.json").read_text())["pairing"]
    assert (facts["strides"], facts["strides_folded"], facts["strides_of_one_only"]) == ([8, 16, 32, 64], [4], [128])


def test_kept_outputs_are_those_of_the_larger_images(keys, whole, tmp_path):
    other = understudy.distill(keys, run=tmp_path / "off", teacher_cache="off")
    # Values that are nearly equal are rounded, so another part of a cell may have the highest score.
    rows = [[[float(row[name]) for name in TERMS] for row in read_rows(run / "losses.csv")] for run in (whole, other)]
    torch.testing.assert_close(*rows, rtol=2e-2, atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one(keys, whole, tmp_path):
    with at_step(3, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(keys, run=tmp_path / "run")
    assert_same(understudy.resume(tmp_path / "run"), whole)


def test_a_size_that_is_left_open_is_the_teachers_divided_by_the_scale(keys):
    given = {key: value for key, value in keys.items() if key not in ("data.shorter_side", "data.longer_side")}
    found = understudy.suggest({**given, "run": "none"})
    assert (found.config.data.shorter_side, found.config.data.longer_side) == ([32], 32)
    assert (
        found.reasons["data.shorter_side"]
        == "as its teacher was trained, on the same data, divided by 2 (teacher_scale)"
    )


def test_pseudo_labels_are_in_the_students_pixels(keys, unlabelled, tmp_path, monkeypatch):
    boxes = []
    added_to = understudy.training.pseudo_labels.PseudoLabels.added_to

    def kept(self, batch, outputs):
        found = added_to(self, batch, outputs)
        boxes.extend(target["boxes"] for target in found.targets[4:])
        return found

    monkeypatch.setattr(understudy.training.pseudo_labels.PseudoLabels, "added_to", kept)
    understudy.distill(keys, run=tmp_path / "run", pseudo_labels=0.05, **{"data.unlabelled": unlabelled})
    found = torch.cat(boxes)
    assert len(found)
    assert 16 < float(found.max()) <= 32


def test_a_plain_student_beside_it_loads_what_its_teacher_sees(keys, whole, tiny, tmp_path):
    shared = {key: value for key, value in keys.items() if not key.startswith("teacher")}
    plain = load_config(TrainConfig, {**shared, "run": tmp_path / "plain"})
    distilled = load_config(DistillConfig, {**keys, "run": tmp_path / "distilled"})
    folders = train_together([plain, distilled])
    assert_same(folders[0], understudy.train(shared, run=tmp_path / "alone"))
    assert_same(folders[1], whole)


def test_runs_of_other_scales_do_not_train_together(keys, tmp_path):
    configs = [
        load_config(DistillConfig, {**keys, "run": tmp_path / str(scale), "teacher_scale": scale}) for scale in (1, 2)
    ]
    with pytest.raises(UserError, match="teacher_scale"):
        train_together(configs)


def test_other_scales_are_refused_with_all_faults(keys, tmp_path):
    with pytest.raises(UserError, match=r"teacher_scale: expected 1, 2 or 4 or null, got 3"):
        understudy.distill(keys, run=tmp_path / "run", teacher_scale=3)


def test_a_scale_that_is_left_open_is_chosen_by_the_size_of_the_teachers_training(keys, trained, tmp_path):
    given = {key: value for key, value in keys.items() if key != "teacher_scale"}
    found = understudy.suggest({**given, "run": "none"})
    assert found.config.teacher_scale == 2
    assert found.reasons["teacher_scale"] == "its teacher was trained at 64 pixels, on the same data"
    usual = understudy.suggest({**given, "run": "none", "data.shorter_side": 64, "data.longer_side": 64})
    assert (usual.config.teacher_scale, usual.reasons.get("teacher_scale")) == (1, None)
    other = shutil.copytree(keys["data.path"], tmp_path / "other")
    assert understudy.suggest({**given, "run": "none", "data.path": other}).config.teacher_scale == 1


def test_a_run_of_an_earlier_version_goes_on_as_it_began(keys, tmp_path):
    earlier = {**keys, "teacher_scale": 1}
    whole = understudy.distill(earlier, run=tmp_path / "whole")
    with at_step(3, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(earlier, run=tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("teacher_scale: 1\n", ""))
    understudy.resume(tmp_path / "run")
    assert (tmp_path / "run" / "best.ckpt").exists()
    rows = [read_rows(each / "losses.csv") for each in (tmp_path / "run", whole)]
    assert rows[0] == rows[1]
