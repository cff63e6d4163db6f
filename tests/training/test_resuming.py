"""Resuming refuses what would be another run, and accepts other paths, devices and intervals."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pairs import made_up_specs
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.config import DistillConfig, dump_config, load_config
from understudy.config.methods import DEFAULT_METHODS
from understudy.data import transforms
from understudy.errors import UserError
from understudy.methods.loading import resolve_options
from understudy.training.default_methods import default_methods
from understudy.training.resuming import same_run


@pytest.fixture(scope="module")
def stopped(tiny, trained, unlabelled, tmp_path_factory) -> Path:
    """A distillation run that was interrupted after step 5."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained)
    return run


@pytest.fixture
def edited(stopped, tmp_path):
    """Copies the interrupted run and changes keys of its config."""

    def edited(**keys) -> Path:
        run = shutil.copytree(stopped, tmp_path / "run", dirs_exist_ok=True)
        (run / "config.yaml").write_text(dump_config(load_config(DistillConfig, run / "config.yaml", keys)))
        return run

    return edited


def test_a_finished_run_is_not_resumed(trained):
    with pytest.raises(UserError, match=r"is finished. Its evaluation is in .*result.json"):
        understudy.resume(trained)


def test_no_run_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder: it has no config\.yaml"):
        understudy.resume(tmp_path)


def test_an_edited_config_is_not_resumed(edited):
    run = edited(**{"batch_size": 1, "optimizer.lr": 0.1, "data.workers": 1})
    with pytest.raises(UserError) as caught:
        understudy.resume(run)
    assert "batch_size: 2 in the checkpoint, 1 now" in str(caught.value)
    assert "optimizer.lr: 0.003 in the checkpoint, 0.1 now" in str(caught.value)
    assert f"understudy distill --config {run / 'config.yaml'} run=NEW_FOLDER" in str(caught.value)
    assert "workers" not in str(caught.value)


def test_a_run_of_an_older_version_is_resumed_where_its_data_were_moved_to(edited, distilled, scenes, tmp_path):
    """Its config lacks the keys that were added since."""
    run = edited(**{"data.path": tmp_path / "missing"})
    with pytest.raises(UserError, match=f"No data set at {tmp_path}/missing"):
        understudy.resume(run)
    run = edited(**{"data.path": shutil.copytree(scenes, tmp_path / "data")})
    added = {"data": ("shorter_side_mode", "group_by_aspect", "skip_empty"), "schedule": ("warmup",)}
    added |= {"optimizer": ("bias_lr_mult", "bias_decay_mult"), "detector": ("channel_order",)}
    content = yaml.safe_load((run / "config.yaml").read_text())
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    for section, keys in added.items():
        for key in keys:
            del content[section][key]
            del checkpoint["understudy"]["config"][section][key]
    (run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    torch.save(checkpoint, run / "last.ckpt")
    assert_same(understudy.resume(run), distilled)


def test_data_that_are_gone_have_a_remedy(edited, tmp_path):
    run = edited(**{"data.path": tmp_path / "gone"})
    message = f"No data set at {tmp_path / 'gone'}, where {run / 'config.yaml'} has it. If it was moved, set data.path"
    with pytest.raises(UserError, match=re.escape(message)):
        understudy.resume(run)


def test_other_data_are_not_resumed_on(edited, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    content = json.loads((data / "instances_train.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] <= 6]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] <= 6]
    (data / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="steps of an epoch: 4 before, 3 now"):
        understudy.resume(edited(**{"data.path": data}))


def test_other_classes_are_not_resumed_on(edited, renamed, trained):
    data = renamed(["star", "ring", "cross", "unicorn"])
    with pytest.raises(UserError, match=r"classes: \['star', .*'arrow'\] before, \[.*'unicorn'\] now"):
        understudy.resume(edited(**{"data.path": data}))


def test_other_unlabelled_images_are_not_resumed_on(tiny, trained, unlabelled, tmp_path):
    run, folder = tmp_path / "run", shutil.copytree(unlabelled, tmp_path / "more")
    with at_step(1, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained, **{"data.unlabelled": folder})
    assert load_config(DistillConfig, run / "config.yaml").data.unlabelled_batch == 2  # as many as labelled ones
    next(folder.glob("*.*")).unlink()
    with pytest.raises(UserError, match="unlabelled images: 5 before, 4 now"):
        understudy.resume(run)


def test_a_run_with_drawn_sizes_and_groups_is_resumed_to_the_bit(tiny, tmp_path, monkeypatch):
    drawn, resized = [], transforms.resized_size
    monkeypatch.setattr(transforms, "resized_size", lambda *given: drawn.append(given[1]) or resized(*given))
    keys = {**tiny, "data.shorter_side": [32, 96, 64], "data.longer_side": 96, "data.shorter_side_mode": "range"}
    keys |= {"data.group_by_aspect": True, "data.skip_empty": True}
    whole = understudy.train(keys, run=tmp_path / "whole")
    training, validation = drawn[:8] + drawn[12:20], drawn[8:12] + drawn[20:]
    assert all(32 <= side <= 96 for side in training)
    assert len(set(training)) > 8
    assert validation == [64] * 8  # the last
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.train(keys, run=tmp_path / "run")
    assert_same(understudy.resume(tmp_path / "run"), whole)


# --- the same data and the same teacher -------------------------------------------------------------------------------


def other_boxes(data: Path) -> None:
    file = data / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))


def another_image(data: Path) -> None:
    file = sorted((data / "images").iterdir())[0]
    file.write_bytes(file.read_bytes() + b"\0")


def other_validation_boxes(data: Path) -> None:
    (data / "instances_val.json").write_text(
        (data / "instances_val.json").read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_boxes, ["annotations of data.train"]),
        (other_validation_boxes, ["annotations of data.val"]),
        (another_image, ["image files of data."]),
    ],
)
def test_data_that_have_changed_are_not_resumed_on(change, named, edited, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    change(data)
    run = edited(**{"data.path": data})
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file() and file.name != ".lock"}
    with pytest.raises(UserError, match="cannot continue, these are not the same as at its start") as caught:
        understudy.resume(run)
    faults = str(caught.value).splitlines()[1:-1]
    assert len(faults) == len(named)
    assert all(fault.startswith(f"  - {name}") for fault, name in zip(faults, named, strict=True))
    assert f"on purpose: understudy resume {run} --accept-changes" in str(caught.value)
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file() and file.name in before} == before


def test_another_teacher_is_accepted_only_on_purpose(edited, trained, tmp_path, capsys):
    checkpoint = torch.load(trained / "best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(0.001)
    torch.save(checkpoint, tmp_path / "teacher.ckpt")
    run = edited(teacher=tmp_path / "teacher.ckpt")
    with pytest.raises(UserError, match=r"at its start:\n  - weights of the teacher\n  - restore"):
        understudy.resume(run)
    with at_step(6, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.resume(run, accept_changes=True)
    note = "Not the same as at the start of the run, and accepted: weights of the teacher"
    assert note in capsys.readouterr().err
    resumed = json.loads((run / "environment.json").read_text())["resumed"]
    assert [(one["step"], one["notes"]) for one in resumed] == [(5, [note])]


def test_other_classes_in_common_with_the_teacher_are_accepted_only_on_purpose(stopped, tmp_path):
    """As of a version that matched fewer names."""
    run = shutil.copytree(stopped, tmp_path / "run")
    written = json.loads((run / "environment.json").read_text())
    written["pairing"]["classes"].pop()
    (run / "environment.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="  - classes in common with the teacher\n  - restore"):
        understudy.resume(run)


def test_other_versions_are_said(stopped, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(stopped, tmp_path / "run")
    written = json.loads((run / "environment.json").read_text())
    written["packages"]["torch"] = "1.0"
    written["threads"] = 64
    del written["fingerprints"]
    (run / "environment.json").write_text(json.dumps(written))
    with at_step(6, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.resume(run)
    said = capsys.readouterr().err
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    assert "(at the start 1.0), threads 1 (at the start 64). Results may differ in their last digits" in said
    assert "environment.json has no fingerprints: whether data and teacher have changed is not known" in said


# --- a job that SLURM has requeued ------------------------------------------------------------------------------------


def test_a_requeued_job_continues_its_run(stopped, distilled, tiny, trained, tmp_path, monkeypatch):
    run = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(UserError, match="is not empty"):
        understudy.distill(tiny, run=run, teacher=trained)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(UserError, match="is not empty"):
        understudy.distill(tiny, run=run, teacher=trained, seed=1)
    with pytest.raises(UserError, match="is not empty"):
        understudy.distill(tiny, run=run, teacher=trained, methods="pkd")
    with pytest.raises(UserError, match="is not empty"):
        understudy.train(tiny, run=run)
    assert_same(understudy.distill(tiny, run=run, teacher=trained), distilled)


@pytest.mark.parametrize("balance", [0.8, "off"])
@pytest.mark.parametrize(
    "change",
    [{}, {"num_anchors": 2}, {"num_classes": 7}, {"dense": False, "queries": True}, {"two_stage": True}],
    ids=str,
)
def test_a_requeued_job_has_the_default_methods_that_its_pair_permits(change, balance, tmp_path):
    keys = {"run": tmp_path, "data": "photos", "teacher": "teacher", "methods": DEFAULT_METHODS, "balance": balance}
    config = load_config(DistillConfig, keys)
    student, teacher = made_up_specs("fcos")
    share = None if balance == "off" else balance
    own = default_methods(student, replace(teacher, **change), share)
    begun = config.model_copy(update={"methods": resolve_options(own, student, share)})
    assert same_run(config, begun)
    assert not same_run(config.model_copy(update={"balance": 0.5}), begun)
    both = default_methods(replace(student, two_stage=True), replace(teacher, two_stage=True), share)
    assert same_run(config, config.model_copy(update={"methods": resolve_options(both, student, share)}))
    others = resolve_options({"frs": {"normaliser": "image"}, "pkd": {}}, student, share)
    for methods in (others, {"frs": others["frs"]}, {"pkd": others["pkd"]}, {**begun.methods, "hint": {}}):
        assert not same_run(config, begun.model_copy(update={"methods": methods}))


def test_a_requeued_job_continues_with_published_weights(tiny, trained, tmp_path, monkeypatch):
    keys = {"teacher": trained, "run": tmp_path / "run", "methods": DEFAULT_METHODS, "balance": "off"}
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, **keys)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert (understudy.distill(tiny, **keys) / "result.json").exists()
