from pathlib import Path

import pytest
import yaml

from understudy.config import DataConfig, DistillConfig, TrainConfig, dump_config, load_config
from understudy.errors import UserError

NEEDED = ["run=runs/a", "data=photos"]


def option(*arguments: str) -> TrainConfig:
    return load_config(TrainConfig, {"run": "runs/a", "data": "photos"}, arguments)


@pytest.mark.parametrize(
    ("argument", "section", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("optimizer.scale_lr=no", "optimizer", "scale_lr", False),
        ("data.train=on", "data", "train", "on"),
        ("data.train=1.10", "data", "train", "1.10"),
        ("data.path=a=b c#d: e", "data", "path", Path("a=b c#d: e")),
        ("data.path=2024", "data", "path", Path("2024")),
        ("data.shorter_side=640", "data", "shorter_side", [640]),
        ("data.shorter_side=[480, 640]", "data", "shorter_side", [480, 640]),
        ("detector.head_norm=group", "detector", "head_norm", "group"),
        ("detector.head_norm=null", "detector", "head_norm", None),
        ("detector.image_mean=[0.5, 0.5, 0.5]", "detector", "image_mean", (0.5, 0.5, 0.5)),
        ("detector.image_mean.2=0", "detector", "image_mean", (0.485, 0.456, 0.0)),
        ("detector={name: fcos_resnet18}", "detector", "name", "fcos_resnet18"),
    ],
)
def test_values_mean_what_their_key_says(argument, section, key, value):
    assert getattr(getattr(option(argument), section), key) == value


def test_top_level_values():
    config = option("run=no", "precision=16", "devices=2")
    assert (config.run, config.precision, config.devices) == (Path("no"), "16", 2)
    assert option("devices=auto").devices == "auto"
    assert option("run=~/runs").run == Path.home() / "runs"


def test_order_of_overrides_does_not_matter():
    arguments = ["data.flip=0", "data=photos", "data.shorter_side.0=320", "data.shorter_side=[640, 800]", "run=r"]
    there = load_config(TrainConfig, None, arguments)
    assert there == load_config(TrainConfig, None, arguments[::-1])
    assert there.data == DataConfig(path=Path("photos"), flip=0, shorter_side=[320, 800])


def test_the_three_spellings_are_equal(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("run: r\ndata:\n  path: photos\n  flip: 0\noptimizer: adamw\nprecision: 16\nschedule:\n")
    by_file = load_config(TrainConfig, file)
    by_arguments = load_config(
        TrainConfig, None, ["run=r", "data=photos", "data.flip=0", "optimizer=adamw", "precision=16"]
    )
    by_python = load_config(
        TrainConfig, {"run": "r", "data.path": "photos"}, {"data": {"flip": 0}, "optimizer": "adamw", "precision": 16}
    )
    assert by_file == by_arguments == by_python
    assert load_config(TrainConfig, by_file, ["seed=1"]) == by_file.model_copy(update={"seed": 1})
    assert load_config(TrainConfig, None, {"run": "r", "data": DataConfig(path=Path("x"))}).data.path == Path("x")


def test_overrides_change_a_file_and_not_what_they_came_from(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "run: r\ndata: {path: photos, shorter_side: 480}\nmethods: {frs: {feature_weight: 1e-2}}\nteacher: t\n"
    )
    config = load_config(DistillConfig, file, ["data.shorter_side.0=640", "methods.frs.class_weight=2"])
    assert config.data.shorter_side == [640]
    assert config.methods == {"frs": {"feature_weight": 0.01, "class_weight": 2}}
    given = {"shorter_side": [480]}
    load_config(TrainConfig, {"run": "r", "data": "p"}, {"data": given, "data.shorter_side.0": 640})
    assert given == {"shorter_side": [480]}


def test_spellings_of_methods():
    def methods(*arguments):
        return load_config(DistillConfig, None, [*NEEDED, "teacher=t", *arguments]).methods

    assert methods("methods=frs") == {"frs": {}}
    assert methods('methods=["frs", "pkd"]') == {"frs": {}, "pkd": {}}
    keys = {"run": "r", "data": "d", "teacher": "t"}
    assert load_config(DistillConfig, keys, {"methods": ("frs", "pkd")}).methods == {"frs": {}, "pkd": {}}
    assert methods("methods.pkd.weight=2") == {"pkd": {"weight": 2}}
    assert methods("methods.frs.x=1e-3", "methods=[frs]") == {"frs": {"x": 1e-3}}
    assert methods("methods.my.own:Class.ramp=true") == {"my.own:Class": {"ramp": True}}
    assert methods("methods.frs={threshold: null, kind: image}") == {"frs": {"threshold": None, "kind": "image"}}


def test_methods_by_name_keep_their_options_in_the_file_and_leave_the_others_out(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("methods: {pkd: {levels: 3}, frs: {threshold: 0.1}}\n")

    def methods(names, *overrides):
        return load_config(DistillConfig, file, [*NEEDED, "teacher=t", *overrides], names).methods

    assert methods([]) == {"pkd": {"levels": 3}, "frs": {"threshold": 0.1}}
    assert methods(["hint", "frs"]) == {"hint": {}, "frs": {"threshold": 0.1}}
    assert methods(["frs"], "methods.frs.scores=cell") == {"frs": {"threshold": 0.1, "scores": "cell"}}
    assert methods(["frs"], "methods={frs: {scores: cell}}") == {"frs": {"scores": "cell"}}
    for names, argument, message in (
        (
            ["frs"],
            "methods.pkd.levels=1",
            "methods.pkd: not selected by --method frs; add --method pkd or remove its keys",
        ),
        (["frs"], "methods=pkd", "methods=pkd conflicts with --method frs; use one of the two to name the methods"),
        (["frs", "pkd"], "methods=[pkd]", 'methods=["pkd"] conflicts with --method frs --method pkd; use'),
        (["frs", "frs"], "seed=1", "--method frs is given twice"),
    ):
        with pytest.raises(UserError) as failure:
            methods(names, argument)
        (line,) = str(failure.value).splitlines()[1:]
        assert line.startswith(f"  - {message}")


def test_settings_of_a_detector_are_numbers_and_truths_not_text():
    arguments = ["detector.settings.a=true", "detector.settings.b=1.5", "detector.settings={c: 2, d: on_input}"]
    config = load_config(TrainConfig, None, ["run=r", "data=d", *arguments])
    assert config.detector.settings == {"a": True, "b": 1.5, "c": 2, "d": "on_input"}


def test_dump_reproduces_the_config(tmp_path):
    arguments = [*NEEDED, "teacher=null.ckpt", "data.train=no", "optimizer=adamw", "optimizer.lr=1e-5", "precision=16"]
    config = load_config(DistillConfig, None, [*arguments, "methods.frs.feature_weight=1e-7", "detector.image_std.0=1"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(DistillConfig, file) == config
    assert config.methods["frs"]["feature_weight"] == 1e-7
    assert yaml.safe_load(dump_config(config))["optimizer"]["weight_decay"] == 0.05


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos", Path("photos")),
        ("2007: a", Path("2007: a")),  # not YAML
        ("[VOC2007, VOC2012]", [Path("VOC2007"), Path("VOC2012")]),
        ("[2007]", [Path("2007")]),
    ],
)
def test_a_data_set_is_a_path_or_a_list_of_paths(text, expected):
    for key in ("data", "data.path"):
        config = load_config(TrainConfig, None, ["run=r", f"{key}={text}"])
        assert config.data.path == expected
        assert load_config(TrainConfig, yaml.safe_load(dump_config(config))) == config
    with pytest.raises(UserError, match=r"data.path: expected one or several paths, got \[\]"):
        load_config(TrainConfig, None, ["run=r", "data=[]"])


def test_a_null_among_settings_is_a_value():
    arguments = ["run=r", "data=d", "detector.settings.groups=null", "detector.settings.style=caffe"]
    assert load_config(TrainConfig, None, arguments).detector.settings == {"groups": None, "style": "caffe"}


def test_a_key_that_is_given_twice_with_other_values_is_refused():
    with pytest.raises(UserError) as found:
        load_config(
            TrainConfig,
            None,
            ["run=a", "data=coco", "data.path=yolo", "seed=1", "seed=1", "optimizer={lr: 1}", "optimizer.lr=2"],
        )
    assert str(found.value).splitlines()[1:] == [
        "  - data.path: given twice, with the values coco and yolo; leave one out",
        "  - optimizer.lr: given twice, with the values 1 and 2; leave one out",
    ]
