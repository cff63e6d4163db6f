"""What a config names is opened and built before anything is written: every mistake leaves no run folder."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from arguments import arguments_of
from data_sets import write_voc

import understudy
from understudy.cli import main
from understudy.config import DataConfig, DistillConfig, TrainConfig, load_config
from understudy.data import open_data
from understudy.errors import UserError
from understudy.training.assembly import assemble, resolve_config
from understudy.training.defaults import derive
from understudy.training.folder import RunFolder
from understudy.training.sources import Sources, _used
from understudy.training.trainer import make_trainer


def single_file(scenes, renamed, tmp_path):
    return {"data.path": scenes / "instances_train.json"}


def other_classes(scenes, renamed, tmp_path):
    return {"data.path": renamed(["unicorn", "yeti", "zombie", "ogre"])}


def different_splits(scenes, renamed, tmp_path):
    folder = renamed(["unicorn"])
    shutil.copy(scenes / "instances_train.json", folder)
    return {"data.path": folder}


def only_crowds(scenes, renamed, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "other")
    content = json.loads((folder / "instances_val.json").read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    (folder / "instances_val.json").write_text(json.dumps(content))
    return {"data.path": folder}


MISTAKES = [
    (
        single_file,
        r"is one split; it would be used for training and for evaluation. .*data.train=instances_tr",
    ),
    (other_classes, r"unicorn, [^;]*; the teacher has star"),
    (different_splits, r"'train' and 'val' of .* have different classes"),
    (only_crowds, r"none of the 4 images has an annotated object"),
    ({"data.path": "nowhere"}, r"No data set at .*nowhere"),
    ({"data.val": "test"}, r'no split "test". Available: train, val'),
    ({"detector.name": "fcos_resnet51"}, r"'fcos_resnet51'.* did you mean 'fcos_resnet50'"),
    ({"methods": {"fsr": {}}}, r"'fsr'.* did you mean 'frs'"),
    ({"methods": {"frs": {"featur_weight": 1}}}, r'has no option "featur_weight"; did you mean "feature_weight"'),
    ({"data.unlabelled": "nowhere"}, r"No unlabelled images at .*nowhere"),
    ({"data.unlabelled_batch": 2}, r"data.unlabelled_batch=2 has no effect without unlabelled images"),
    ({"teacher": "nowhere"}, r"nowhere does not exist"),
    ({"batch_size": 9}, r"8 images in split 'train', fewer than one batch of 9"),
    ({"data.shorter_side_mode": "range"}, r"range needs a smallest and a largest size, got data.shorter_side=64"),
    (
        {"batch_size": 1, "data.shorter_side": [32, 64]},
        r"norm=batch needs more .* map of fcos_mobilenet_v2 has only one for a training image of 32 x 32 pixels",
    ),
    ({"accelerator": "warp"}, r"accelerator=warp .* is not available on this machine"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_leaves_no_run_folder(change, message, tiny, trained, scenes, renamed, tmp_path):
    run = tmp_path / "run"
    changes = change(scenes, renamed, tmp_path) if callable(change) else change
    with pytest.raises(UserError, match=message):
        understudy.distill(tiny, run=run, **{"teacher": trained, **changes})
    assert not run.exists()


@pytest.mark.parametrize(
    ("change", "processes", "fits"),
    [
        ({}, 1, False),
        ({"detector.norm": "sync"}, 1, False),
        ({"detector.norm": "sync"}, 2, True),
        ({"detector.norm": "frozen"}, 1, True),
        ({"detector.frozen_stages": 3}, 1, False),
        ({"detector.frozen_stages": 4}, 1, True),
        ({"batch_size": 2}, 1, True),
        ({"data.shorter_side": 48}, 1, True),
    ],
)
def test_batch_normalisation_needs_two_values(change, processes, fits, tiny, tmp_path, monkeypatch):
    keys = {**tiny, "batch_size": 1, "data.shorter_side": 32, "run": tmp_path / "run", **change}
    config = resolve_config(load_config(TrainConfig, keys))
    trainer = make_trainer(config, tmp_path / "run")
    monkeypatch.setattr(type(trainer), "world_size", processes)
    config = derive(config, sources := Sources.of(config), trainer).config
    with nullcontext() if fits else pytest.raises(UserError, match="only one for a training image of 32 x 32 pixels"):
        assemble(config, RunFolder(config.run), trainer, sources=sources)


def test_unlabelled_images_need_a_teacher(tiny, unlabelled, tmp_path):
    with pytest.raises(UserError, match=r"unlabelled images need a teacher. Use `understudy distill`"):
        understudy.train(tiny, run=tmp_path / "run", **{"data.unlabelled": unlabelled})
    assert not (tmp_path / "run").exists()


def test_one_split_may_be_named_twice(tiny, scenes, tmp_path):
    file = scenes / "instances_train.json"
    keys = {"data.path": file, "data.train": "train", "data.val": "train", "schedule.epochs": 1}
    run = understudy.train(tiny, run=tmp_path / "run", **keys)
    assert json.loads((run / "result.json").read_text())["images"] == 8


@pytest.fixture
def some_empty(scenes, tmp_path) -> Path:
    """The scenes, two of whose training images have no objects, and one of them only a crowd."""
    folder = shutil.copytree(scenes, tmp_path / "some_empty")
    content = json.loads((folder / "instances_train.json").read_text())
    first, second, third = (image["id"] for image in content["images"][:3])
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in (first, second)]
    for row in content["annotations"]:
        row["iscrowd"] = int(row["image_id"] == third)
    (folder / "instances_train.json").write_text(json.dumps(content))
    return folder


def test_images_without_objects_are_left_out_on_request(tiny, some_empty, tmp_path, capsys):
    keys = {**tiny, "data.path": some_empty, "batch_size": 1, "schedule.epochs": 1, "log_every": 1}
    run = understudy.train(keys, run=tmp_path / "run", **{"data.skip_empty": True})
    note = "data.skip_empty: 3 of the 8 training images have no objects and are left out"
    assert capsys.readouterr().err.splitlines()[0] == note
    assert len((run / "losses.csv").read_text().splitlines()) == 1 + 5
    run = understudy.train(keys, run=tmp_path / "all")
    assert "skip_empty" not in capsys.readouterr().err
    assert len((run / "losses.csv").read_text().splitlines()) == 1 + 8


def test_a_smaller_limit_uses_a_part_of_the_images_of_a_larger_one(scenes):
    data = open_data(scenes)
    used = [set(_used(DataConfig(path="unused", limit=limit), data)[0].records.image_ids()) for limit in (2, 5, 8, 100)]
    assert [len(each) for each in used] == [2, 5, 8, 8]
    assert used[0] < used[1] < used[2]
    records = _used(DataConfig(path="unused", limit=5), data)[0].records
    assert records.image_ids() == sorted(used[1])  # in the order of the file


def test_unlabelled_images_that_no_term_reads_are_said(tiny, trained, unlabelled, tmp_path, capsys):
    keys = {"teacher": trained, "data.unlabelled": unlabelled, "schedule.epochs": 1}
    for number, (methods, said) in enumerate(
        {
            "soft_labels": "have little or no effect, .*pseudo_labels=0.5",
            "hint": "take part in the distillation",
        }.items()
    ):
        understudy.distill(tiny, run=tmp_path / str(number), methods=methods, **keys)
        assert re.search(f"unlabelled images of .* {said}", capsys.readouterr().err)


def test_a_run_with_a_limit_says_and_records_it(tiny, trained, some_empty, unlabelled, tmp_path, capsys):
    keys = {**tiny, "data.path": some_empty, "data.skip_empty": True, "data.limit": 4, "schedule.epochs": 1}
    keys |= {"data.unlabelled": some_empty}  # the other images take part without their labels
    run = understudy.distill(keys, teacher=trained, run=tmp_path / "run")
    said = capsys.readouterr().err
    assert "data.limit: 4 of 5 training images are used" in said
    recorded = json.loads((run / "environment.json").read_text())
    assert (recorded["training_images"], recorded["unlabelled_images"]) == (4, 4)
    assert load_config(DistillConfig, run / "config.yaml").data.limit == 4
    data = open_data(some_empty)
    with pytest.raises(UserError, match=r"data\.limit=1: none of these training images has an object to train on"):
        _used(DataConfig(path="unused", limit=1), replace(data, records=data.records[:3]))


def test_a_data_set_without_objects_is_an_error_with_and_without_the_empty_images(tiny, scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "empty")
    content = json.loads((folder / "instances_train.json").read_text())
    (folder / "instances_train.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(UserError, match=r"none of the 8 images has an annotated object"):
        understudy.train(tiny, run=tmp_path / "run", **{"data.path": folder, "data.skip_empty": True})


def test_faults_of_both_splits_are_reported_together(tiny, scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "empty")
    for file in folder.glob("instances_*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(UserError) as stop:
        understudy.train(tiny, run=tmp_path / "run", **{"data.path": folder})
    for name in ("train", "val"):
        assert f"instances_{name}.json: none of the" in str(stop.value)
    with pytest.raises(UserError, match=r"^No data set at \S*absent: no such file or folder\.$"):
        understudy.train(tiny, run=tmp_path / "run", **{"data.path": tmp_path / "absent"})


def test_a_ramp_that_is_longer_than_the_run_is_noted(tiny, trained, tmp_path, capsys):
    keys = {"batch_size": 8, "schedule.epochs": 1, "methods": {"frs": {"ramp_steps": 4}}}
    understudy.distill(tiny, run=tmp_path / "run", teacher=trained, **keys)
    expected = "methods.frs.ramp_steps=4 is longer than the run (1 steps): the weights reach only 0 % of their final"
    assert expected in capsys.readouterr().err


def test_a_resolved_config_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").touch()
    keys = {
        "run": "run",
        "data": {"path": "photos", "unlabelled": "more"},
        "teacher": "teacher",
        "detector.backbone_weights": "weights.pt",
        "batch_size": 3,
    }
    config = resolve_config(load_config(DistillConfig, keys))
    assert (config.data.path, config.data.unlabelled) == (tmp_path / "photos", tmp_path / "more")
    assert config.teacher == tmp_path / "teacher"
    assert config.detector.backbone_weights == str(tmp_path / "weights.pt")
    named = load_config(DistillConfig, keys, {"detector.backbone_weights": "IMAGENET1K_V1"})
    assert resolve_config(named).detector.backbone_weights == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("detector", "optimizer", "expected"),
    [
        ("faster_rcnn_resnet18", "sgd", 0.02),
        ("fcos_resnet18", "sgd", 0.01),
        ("faster_rcnn_resnet18", "adamw", 2e-3),
        ("faster_rcnn_resnet18", "{name: sgd, lr: 0.003}", 0.003),
    ],
)
def test_the_default_learning_rate_is_a_fact_of_the_family(detector, optimizer, expected):
    config = load_config(TrainConfig, None, ["run=a", "data=b", f"detector={detector}", f"optimizer={optimizer}"])
    assert resolve_config(config).optimizer.lr == expected


def test_a_run_on_two_years_of_voc(tiny, tmp_path, capsys):
    for year, lists in (("VOC2007", {"trainval": "ab", "test": "cb"}), ("VOC2012", {"trainval": "abc"})):
        write_voc(tmp_path / year, {name: list(stems) for name, stems in lists.items()})
    years = f"[{tmp_path / 'VOC2007'}, {tmp_path / 'VOC2012'}]"
    keys = {**tiny, "data.path": years, "data.train": "trainval", "data.val": "test", "schedule.epochs": 1}
    keys |= {"batch_size": 1, "log_every": 1, "run": tmp_path / "run"}
    main_exits(["train", *arguments_of(keys)])
    assert len((tmp_path / "run" / "losses.csv").read_text().splitlines()) == 1 + 5
    assert json.loads((tmp_path / "run" / "result.json").read_text())["images"] == 2
    assert load_config(TrainConfig, tmp_path / "run" / "config.yaml").data.path == [
        tmp_path / "VOC2007",
        tmp_path / "VOC2012",
    ]
    capsys.readouterr()
    main_exits(["evaluate", str(tmp_path / "run")])
    assert "2 images" in capsys.readouterr().out
    main_exits(["check", str(tmp_path / "VOC2007"), str(tmp_path / "VOC2012")])
    assert "VOC2012/trainval" in capsys.readouterr().out


def main_exits(arguments: list[str]) -> None:
    """Run a command that succeeds."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


def test_an_evaluation_on_training_images_is_said(tiny, scenes, tmp_path):
    def notes(**data: str) -> tuple[str, ...]:
        keys = {**tiny, "run": tmp_path / "run", **{f"data.{key}": value for key, value in data.items()}}
        config, folder = load_config(TrainConfig, keys), RunFolder(tmp_path / "run")
        return assemble(config, folder, make_trainer(config, folder.path)).notes

    assert notes() == ()
    (note,) = notes(val="train")
    assert note == (
        "data.val=train: the validation split is the training split, so AP measures memorisation. Other splits: val "
        "(data.val=NAME)."
    )
    (note,) = notes(train="train+val")
    assert note.startswith(
        "data.val=val: 4 of the 4 validation images are training images, so AP measures memorisation."
    )


@pytest.mark.parametrize(
    ("keys", "faults"),
    [
        (
            {"balance": "off", "balance_end": 0.1, "balance_until": 0.5},
            [
                "balance_end=0.1 has no effect with balance=off. Leave it out, or let weights follow from shares.",
                "balance_until=0.5 has no effect with balance=off. Leave it out, or let weights follow from shares.",
            ],
        ),
        (
            {"balance": 0.3, "methods": {"hint": {"feature_weight": 1}}},
            [
                "balance=0.3 has no effect, since all terms have a weight. Leave it out, or let weights follow from "
                "shares."
            ],
        ),
        (
            {"balance": 0.3, "methods": {"frs": {"feature_share": 0.4, "class_share": 0.3}, "hint": {"share": 0.2}}},
            [
                "balance=0.3 contradicts the shares of the methods, which add up to 0.9. Leave balance out, or let "
                "them add up to it."
            ],
        ),
        (
            {
                "optimizer": {"name": "adamw", "momentum": 0.8},
                "schedule": {"warmup_steps": 0, "warmup_factor": 0.5},
                "teacher_cache": "off",
                "teacher_cache_gb": 2,
            },
            [
                "optimizer.momentum=0.8 has no effect with optimizer.name=adamw. Use sgd, or set it to 0.9, the "
                "default.",
                "schedule.warmup_factor=0.5 has no effect with schedule.warmup_steps=0. Use some steps, or set it to "
                "0.001, the default.",
                "teacher_cache_gb=2 has no effect with teacher_cache=off. Use auto, memory or a folder, or set it to "
                "4, the default.",
            ],
        ),
        ({"optimizer": {"name": "sgd", "momentum": 0.8}, "teacher_cache_gb": 2}, []),
        ({"methods": {"hint": {"feature_weight": 1}}}, []),
        ({"methods": {"frs": {"share": 0.1}, "hint": {"share": 0.1}}}, []),  # with the default balance
        ({"balance": 0.3, "methods": {"frs": {"feature_share": 0.2, "class_share": 0.1}}}, []),
        ({"balance": 0.3, "methods": {"frs": {"feature_weight": 1}, "hint": {"share": 0.1}}}, []),
        ({"balance": 0.3, "balance_end": 0.1, "balance_until": 0.5}, []),
        ({"balance": 0.3, "methods": {"fsr": {}}}, []),  # which building the methods refuses
    ],
)
def test_keys_of_the_balance_that_have_no_effect(keys, faults, tmp_path):
    config = load_config(DistillConfig, {"run": tmp_path, "data": "photos", "teacher": "teacher", **keys})
    if not faults:
        assert resolve_config(config)
        return
    with pytest.raises(UserError) as caught:
        resolve_config(config)
    assert [line.removeprefix("  - ") for line in str(caught.value).splitlines()][-len(faults) :] == faults
