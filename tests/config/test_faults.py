import math

import pytest

from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.config.faults import closest_key
from understudy.errors import UserError

NEEDED = ["run=runs/a", "data=photos"]


def faults(cls, overrides, source=None) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(cls, source, overrides)
    summary, *lines = str(caught.value).splitlines()
    assert summary.startswith("Invalid config")
    return [line.removeprefix("  - ") for line in lines]


def fault(argument: str, cls=TrainConfig) -> str:
    """The only fault of one override."""
    source = {"run": "runs/a", "data": "photos", **({"teacher": "t"} if cls is DistillConfig else {})}
    (line,) = faults(cls, [argument], source)
    return line


def test_all_faults_at_once():
    assert faults(TrainConfig, ["data.flip=3", "optimizer.lrr=1", "epochs:5", "optimizer=adam", "seed=-1"]) == [
        '"epochs:5": expected key=value, e.g. schedule.epochs=12',
        "run: missing; expected a path, e.g. run=runs/first",
        "data.path: missing; expected one or several paths, e.g. data.path=path/to/photos",
        "data.flip: expected a number from 0 to 1, got 3",
        "optimizer.name: expected sgd or adamw, got adam; did you mean adamw?",
        "optimizer.lrr: no such key; did you mean optimizer.lr?",
        "seed: expected an integer of at least 0, got -1",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lr=0.1", "lr: no such key; did you mean optimizer.lr?"),
        ("optimzer.lr=0.1", "optimzer: no such key; did you mean optimizer?"),
        ("data.epochs=1", "data.epochs: no such key; did you mean schedule.epochs?"),
        ("data.qqq=1", "data.qqq: no such key; the keys of data are path, train, val, "),
        ("qqq=1", "qqq: no such key; the keys are run, data, detector, "),
        ("teacher=t", "teacher: a key of `understudy distill` only"),
        ("seed.x=1", "seed: expected an integer of at least 0, got "),
        ("data.shorter_side.4=640", "data.shorter_side.4: no such item; data.shorter_side is a list, "),
        ("data.shorter_side.x=640", "data.shorter_side.x: no such item; "),
        (
            "data.shorter_side=[640, big]",
            "data.shorter_side: expected a list, each item an integer from 32 to 32768 or null, got ",
        ),
        ("data.shorter_side=[]", "data.shorter_side: expected a list, "),
        ("data.path=", "data.path: expected one or several paths, got null"),
        ("run=null", "run: expected a path, got null"),
        ("optimizer.lr=nan", "optimizer.lr: expected a finite number above 0 or null, got nan"),
        ("optimizer.lr=0", "optimizer.lr: expected a number above 0 or null, got 0"),
        ("optimizer.momentum=1", "optimizer.momentum: expected a number of at least 0 and below 1, got 1"),
        ("devices=some", "devices: expected an integer above 0 or auto, got some"),
        ("devices=0", "devices: expected an integer above 0 or auto, got 0"),
        ("precision=64", "precision: expected 32, bf16 or 16, got 64"),
        ("batch_size=8.5", "batch_size: expected an integer above 0 or null, got 8.5"),
        ("optimizer.scale_lr=maybe", "optimizer.scale_lr: expected true or false, got maybe"),
        (
            "detector.image_std=[1, 1, 0]",
            "detector.image_std: expected a list of 3 values, each a number above 0 and at most 1, got ",
        ),
        (
            "detector.image_mean=[123.7, 116, 103.5]",
            "detector.image_mean: expected a list of 3 values, each a number from 0 to 1, got "
            '["123.7", "116", "103.5"]; divide values of pixels from 0 to 255 by 255',
        ),
        ("detector.norm=[a]", "detector.norm: expected auto, batch, sync, eval or frozen, got [a]"),
        ("log_every=[", "log_every: [ is not valid YAML: "),
        ("--lr=0.1", '"--lr=0.1": no such option (see --help); write keys without dashes, e.g. optimizer.lr=0.01'),
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
            f'methods: expected names, each with its options, got ["frs", {shown}]; {shown} is not a name; '
            "give options as methods={NAME: {OPTION: VALUE}, ...}"
        )
    (line,) = faults(DistillConfig, {"run": "r", "data": "d", "teacher": "t", "methods": {int: {}}})
    assert line == "methods: expected names, each with its options, got {<class 'int'>: {}}"


def test_a_method_given_twice(tmp_path):
    twice = (
        'methods: expected names, each with its options, got ["frs", "frs"]; '
        "frs is given twice; give options as methods.frs.OPTION=..."
    )
    assert fault('methods=["frs", "frs"]', DistillConfig) == twice
    assert faults(DistillConfig, {"run": "r", "data": "d", "teacher": "t", "methods": ["frs", "frs"]}) == [twice]
    argument = "methods={frs: {}, frs: {threshold: 0.1}}"
    assert fault(argument, DistillConfig) == "methods: frs is given twice"
    file = tmp_path / "a.yaml"
    file.write_text("methods:\n  frs: {}\n  frs: {threshold: 0.1}\n")
    with pytest.raises(UserError, match=r"The config file .*a\.yaml is not valid YAML, line 3: frs is given twice"):
        load_config(DistillConfig, file)


def test_faults_from_python_are_the_same():
    assert faults(TrainConfig, {"run": "", "data": {"path": 3.5, "flip": "x"}, "seed": True, "log_every": None}) == [
        'run: expected a path, got ""',
        "data.path: expected one or several paths, got 3.5",
        "data.flip: expected a number from 0 to 1, got x",
        "log_every: expected an integer above 0, got null",
    ]
    assert faults(TrainConfig, {"run": "r", "data": "p", "optimizer": {"lr": math.inf}}) == [
        "optimizer.lr: expected a finite number above 0 or null, got Infinity"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"The config file .*a\.yaml does not exist"),
        (b"run: [", r"a\.yaml is not valid YAML, line 1: "),
        (b"- run\n- data\n", r"a\.yaml must contain `key: value` lines"),
        (b"run: r\ndata: x\nrun: s\n", r"a\.yaml is not valid YAML, line 3: run is given twice"),
        (b"\xff\xfe\x00run", r"a\.yaml is not UTF-8 text \(UTF-16\)"),
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
    with pytest.raises(UserError, match="is a folder"):
        load_config(TrainConfig, tmp_path)


def test_the_file_is_named_in_the_error(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("run: r\n")
    with pytest.raises(UserError, match=r"Invalid config \(.*a\.yaml\):\n  - data.path: missing"):
        load_config(TrainConfig, file)


def test_closest_key():
    assert closest_key(TrainConfig, "data.worker") == "data.workers"
    assert closest_key(TrainConfig, "warmup_step") == "schedule.warmup_steps"
    assert closest_key(TrainConfig, "nothing_like_it") is None
