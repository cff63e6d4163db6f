import json
import math
from pathlib import Path

import pytest
import yaml

from understudy.config import (
    DataConfig,
    DistillConfig,
    TrainConfig,
    closest_key,
    commented_yaml,
    dump_config,
    keys,
    load_config,
)
from understudy.errors import UserError

NEEDED = ["run=runs/a", "data=photos"]
DOCS = Path(__file__).parents[1] / "docs" / "config.md"


def faults(cls, overrides, source=None) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(cls, source, overrides)
    summary, *lines = str(caught.value).splitlines()
    assert summary.startswith("This config cannot be used")
    return [line.removeprefix("  - ") for line in lines]


def fault(argument: str, cls=TrainConfig) -> str:
    """The only fault of one override."""
    (line,) = faults(cls, [*NEEDED, *(["teacher=t"] if cls is DistillConfig else []), argument])
    return line


def option(*arguments: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*NEEDED, *arguments])


# --- defaults and what is filled in -----------------------------------------------------------------------------------


def test_defaults():
    config = option()
    assert (config.run, config.data.path) == (Path("runs/a"), Path("photos"))
    assert (config.data.shorter_side, config.data.longer_side, config.data.flip) == ([800], 1333, 0.5)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (0.01, 1e-4)
    assert (config.schedule.epochs, config.batch_size, config.precision) == (12, 16, "32")
    assert load_config(DistillConfig, None, [*NEEDED, "teacher=t"]).methods == {"frs": {}}


def test_what_depends_on_another_key_is_filled_in():
    assert option("optimizer=adamw").optimizer.lr == 1e-4
    assert option("optimizer=adamw").optimizer.weight_decay == 0.05
    assert option("optimizer=adamw", "optimizer.lr=1e-3").optimizer.lr == 1e-3
    assert option("optimizer.lr=null").optimizer.lr == 0.01
    assert [option(f"schedule={name}").schedule.epochs for name in ("1x", "2x", "cosine")] == [12, 24, 12]
    assert option().detector.norm == "batch"
    assert option("detector.backbone_weights=IMAGENET1K_V1").detector.norm == "frozen"
    assert option("detector.backbone_weights=w.pth", "detector.norm=batch").detector.norm == "batch"


def test_finished_configs_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        option().seed = 3


# --- spelling: arguments, YAML and Python -----------------------------------------------------------------------------


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
        ("data.shorter_side.0=640", "data", "shorter_side", [640]),
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
            "methods.pkd: pkd is not among --method frs; add --method pkd, or leave its k",
        ),
        (["frs"], "methods=pkd", "methods=pkd takes the place of --method frs: name the methods by one of the two"),
        (["frs", "pkd"], "methods=[pkd]", 'methods=["pkd"] takes the place of --method frs --method pkd: name'),
        (["frs", "frs"], "seed=1", "--method frs is given twice: once is enough"),
    ):
        with pytest.raises(UserError) as failure:
            methods(names, argument)
        (line,) = str(failure.value).splitlines()[1:]
        assert line.startswith(f"  - {message}")


def test_dump_reproduces_the_config(tmp_path):
    arguments = [*NEEDED, "teacher=null.ckpt", "data.train=no", "optimizer=adamw", "optimizer.lr=1e-5", "precision=16"]
    config = load_config(DistillConfig, None, [*arguments, "methods.frs.feature_weight=1e-7", "detector.image_std.0=1"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(DistillConfig, file) == config
    assert config.methods["frs"]["feature_weight"] == 1e-7
    assert yaml.safe_load(dump_config(config))["optimizer"]["weight_decay"] == 0.05


# --- faults -----------------------------------------------------------------------------------------------------------


def test_all_faults_at_once():
    assert faults(TrainConfig, ["data.flip=3", "optimizer.lrr=1", "epochs:5", "optimizer=adam", "seed=-1"]) == [
        '"epochs:5": expected key=value, e.g. schedule.epochs=12',
        "run: missing; expected a path, e.g. run=runs/first",
        "data.path: missing; expected a path, e.g. data.path=path/to/photos",
        "data.flip: expected a number from 0 to 1, got 3",
        "optimizer.name: expected sgd or adamw, got adam; did you mean adamw?",
        "optimizer.lrr: no such key; did you mean optimizer.lr?",
        "seed: expected a whole number of at least 0, got -1",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lr=0.1", "lr: no such key; did you mean optimizer.lr?"),
        ("optimzer.lr=0.1", "optimzer: no such key; did you mean optimizer?"),
        ("data.epochs=1", "data.epochs: no such key; did you mean schedule.epochs?"),
        ("data.qqq=1", "data.qqq: no such key; the keys of data are path, train, val, "),
        ("qqq=1", "qqq: no such key; the keys are run, data, detector, "),
        ("teacher=t", "teacher: a key of `understudy distill`, not of `understudy train`"),
        ("seed.x=1", "seed: expected a whole number of at least 0, got "),
        ("data.shorter_side.4=640", "data.shorter_side.4: no such place; data.shorter_side is a list, "),
        ("data.shorter_side.x=640", "data.shorter_side.x: no such place; "),
        (
            "data.shorter_side=[640, big]",
            "data.shorter_side: expected a list, each item a whole number of at least 32, got ",
        ),
        ("data.shorter_side=[]", "data.shorter_side: expected a list, "),
        ("data.path=", "data.path: expected a path, got null"),
        ("run=null", "run: expected a path, got null"),
        ("optimizer.lr=nan", "optimizer.lr: expected a number above 0 or null, got nan"),
        ("optimizer.lr=0", "optimizer.lr: expected a number above 0 or null, got 0"),
        ("optimizer.momentum=1", "optimizer.momentum: expected a number of at least 0 and below 1, got 1"),
        ("devices=some", "devices: expected a whole number above 0 or auto, got some"),
        ("devices=0", "devices: expected a whole number above 0 or auto, got 0"),
        ("precision=64", "precision: expected 32, bf16 or 16, got 64"),
        ("batch_size=8.5", "batch_size: expected a whole number above 0, got 8.5"),
        ("optimizer.scale_lr=maybe", "optimizer.scale_lr: expected true or false, got maybe"),
        ("detector.image_std=[1, 1, 0]", "detector.image_std: expected 3 values, each a number above 0, got "),
        ("detector.norm=[a]", "detector.norm: expected auto, batch, sync, eval or frozen, got [a]"),
        ("log_every=[", "log_every: [ cannot be read as a YAML value"),
        ("--lr=0.1", '"--lr=0.1": no such option (see --help); keys have no dashes, e.g. optimizer.lr=0.01'),
        ("=3", '"=3": expected key=value, e.g. data.flip=0.5'),
        ("photos/train", '"photos/train": expected key=value, e.g. '),
    ],
)
def test_each_fault_says_what_was_expected_and_what_came(argument, message):
    assert fault(argument).startswith(message)


def test_faults_of_methods():
    assert fault("methods={}", DistillConfig) == "methods: expected names, each with its options, got {}"
    assert fault("methods.frs=3", DistillConfig) == "methods.frs: expected keys and values, got 3"
    assert fault("methods={frs: {}, pfi: 3}", DistillConfig) == "methods.pfi: expected keys and values, got 3"
    for wrong, shown in ((3, "3"), ({"pfi": {"power": 1}}, '{"pfi": {"power": 1}}')):
        (line,) = faults(DistillConfig, {"run": "r", "data": "d", "teacher": "t", "methods": ["frs", wrong]})
        assert line == (
            f'methods: expected names, each with its options, got ["frs", {shown}]; {shown} is no name; options are '
            "given by methods={NAME: {OPTION: VALUE}, ...}"
        )
    (line,) = faults(DistillConfig, {"run": "r", "data": "d", "teacher": "t", "methods": {int: {}}})
    assert line == "methods: expected names, each with its options, got {<class 'int'>: {}}"


def test_a_method_given_twice(tmp_path):
    twice = (
        'methods: expected names, each with its options, got ["frs", "frs"]; '
        "frs is given twice: once is enough, with methods.frs.OPTION=..."
    )
    assert fault('methods=["frs", "frs"]', DistillConfig) == twice
    assert faults(DistillConfig, {"run": "r", "data": "d", "teacher": "t", "methods": ["frs", "frs"]}) == [twice]
    argument = "methods={frs: {}, frs: {threshold: 0.1}}"
    assert fault(argument, DistillConfig) == "methods: frs is given twice"
    file = tmp_path / "a.yaml"
    file.write_text("methods:\n  frs: {}\n  frs: {threshold: 0.1}\n")
    with pytest.raises(UserError, match=r"the config file .*a\.yaml, line 3: frs is given twice"):
        load_config(DistillConfig, file)


def test_faults_from_python_are_the_same():
    assert faults(TrainConfig, {"run": "", "data": {"path": 3.5, "flip": "x"}, "seed": True, "batch_size": None}) == [
        'run: expected a path, got ""',
        "data.path: expected a path, got 3.5",
        "data.flip: expected a number from 0 to 1, got x",
        "batch_size: expected a whole number above 0, got null",
    ]
    assert faults(TrainConfig, {"run": "r", "data": "p", "optimizer": {"lr": math.inf}})[0].startswith("optimizer.lr: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"the config file .*a\.yaml does not exist"),
        (b"run: [", r"a\.yaml is not YAML, line 1: "),
        (b"- run\n- data\n", r"a\.yaml must hold `key: value` lines"),
        (b"run: r\ndata: x\nrun: s\n", r"a\.yaml, line 3: run is given twice"),
        (b"\xff\xfe\x00run", r"a\.yaml cannot be read: "),
        (b"run: !!python/object/apply:os.system [echo]\ndata: x\n", r"run: expected a path, got \["),
    ],
)
def test_files_that_are_no_config(tmp_path, content, message):
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(TrainConfig, file)


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_config(TrainConfig, tmp_path)


def test_the_file_is_named_in_the_error(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("run: r\n")
    with pytest.raises(UserError, match=r"cannot be used \(.*a\.yaml\):\n  - data.path: missing"):
        load_config(TrainConfig, file)


def test_closest_key():
    assert closest_key(TrainConfig, "data.worker") == "data.workers"
    assert closest_key(TrainConfig, "warmup_step") == "schedule.warmup_steps"
    assert closest_key(TrainConfig, "nothing_like_it") is None


# --- what is printed and written about the keys -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [TrainConfig, DistillConfig])
def test_commented_yaml_loads_back_with_all_defaults(cls, tmp_path):
    file = tmp_path / "default.yaml"
    file.write_text(commented_yaml(cls))
    examples = {key.name: key.example for key in keys(cls) if key.default is None}
    assert load_config(cls, file) == load_config(cls, None, examples)
    assert max(map(len, file.read_text().splitlines())) <= 120


@pytest.mark.parametrize("cls", [TrainConfig, DistillConfig])
def test_every_key_is_described_in_one_sentence(cls):
    for key in keys(cls):
        assert key.description.endswith("."), key.name
        assert ". " not in key.description, key.name
        assert key.example, key.name


def test_schema_takes_the_nulls_that_are_filled_in():
    schema = json.loads(json.dumps(DistillConfig.model_json_schema()))
    kinds = schema["$defs"]["OptimizerConfig"]["properties"]["lr"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["number", "null"]
    assert set(schema["required"]) == {"run", "data", "teacher"}


def test_settings_of_a_detector_are_numbers_and_truths_not_text():
    arguments = ["detector.settings.a=true", "detector.settings.b=1.5", "detector.settings={c: 2, d: on_input}"]
    config = load_config(TrainConfig, None, ["run=r", "data=d", *arguments])
    assert config.detector.settings == {"a": True, "b": 1.5, "c": 2, "d": "on_input"}


def table() -> str:
    """The table of docs/config.md; ``python tests/test_config.py`` prints it."""
    rows = ["| key | default | value | meaning |", "|---|---|---|---|"]
    for key in keys(DistillConfig):
        default = "required" if key.default is None else f"`{key.default}`"
        rows.append(f"| `{key.name}` | {default} | {key.expected} | {key.description} |")
    return "\n".join(rows)


def test_the_docs_list_every_key():
    assert table() in DOCS.read_text(), "run `python tests/test_config.py` and put the table into docs/config.md"


if __name__ == "__main__":
    print(table())
