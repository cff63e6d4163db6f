"""Training runs: resumed runs equal uninterrupted ones, two processes equal one, and what stops a run says why."""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

import understudy
from understudy import callbacks
from understudy.callbacks import LogLosses, ShowProgress, Validate
from understudy.cli import main
from understudy.config import DistillConfig, TrainConfig, dump_config, load_config
from understudy.engine import LearningRate
from understudy.errors import RunError, UserError
from understudy.evaluation import evaluate
from understudy.methods import Method
from understudy.runs import read_rows

LOSSES_OF_FIVE_STEPS = [2.80456, 3.92093, 4.99709, 5.00517, 4.96732]
"""Total loss of a tiny student's first steps with FRS (whose ramp is two steps long); a change of it needs a reason."""


# --- what a run left behind -------------------------------------------------------------------------------------------


def left_by(run: Path) -> dict:
    """Everything that a run wrote, except how long it took; tensors as bytes."""
    last, best = (torch.load(run / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": as_bytes(last["state_dict"]),
        "optimizer": as_bytes(last["optimizer_states"]),
        "schedule": last["lr_schedulers"],
        "best": as_bytes(best["state_dict"]),
        "best of": (best["understudy"]["epoch"], best["understudy"]["step"], best["understudy"]["AP"]),
        "losses": (run / "losses.csv").read_text(),
        "metrics": [{**row, "seconds": ""} for row in read_rows(run / "metrics.csv")],
        "result": {**result, "train_seconds": None},
    }


def as_bytes(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bytes(item) for key, item in value.items()}
    return [as_bytes(item) for item in value] if isinstance(value, list) else value


def assert_same(run: Path, other: Path) -> None:
    found, expected = left_by(run), left_by(other)
    assert [key for key in expected if found[key] != expected[key]] == []


# --- interrupting -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def at_step(step: int, act, during: str = "step"):
    """Do something at the end of a step, or in the evaluation after it."""
    owner, name = (LogLosses, "on_train_batch_end") if during == "step" else (Validate, "on_train_epoch_end")
    original = getattr(owner, name)

    def hooked(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, hooked)
        yield


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def ctrl_c_twice():
    ctrl_c()
    ctrl_c()


def crash():
    raise ZeroDivisionError("a fault of nobody's")


@pytest.mark.parametrize("kind", ["train", "distill"])
@pytest.mark.parametrize(
    ("step", "during"),
    [(5, "step"), (4, "step"), (8, "evaluation")],
    ids=["within an epoch", "at its last step", "in the evaluation"],
)
def test_interrupted_and_resumed_equals_uninterrupted(kind, step, during, tiny, trained, distilled, tmp_path):
    run, whole = tmp_path / "run", trained if kind == "train" else distilled
    start = understudy.train if kind == "train" else understudy.distill
    more = {} if kind == "train" else {"teacher": trained}
    before = signal.getsignal(signal.SIGINT)
    with at_step(step, ctrl_c, during), pytest.raises(KeyboardInterrupt, match=f"after step {step}.*resume {run}"):
        start(tiny, run=run, **more)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == step
    assert not (run / "result.json").exists()
    assert understudy.resume(run) == run
    assert_same(run, whole)


def test_it_does_so_with_workers_and_more_than_once(tiny, distilled, trained, tmp_path):
    run = tmp_path / "run"
    with at_step(6, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained, **{"data.workers": 2})
    with at_step(11, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.resume(run)
    assert_same(understudy.resume(run), distilled)


@pytest.mark.parametrize(("step", "saved"), [(7, 4), (9, 8)])
def test_a_crash_costs_the_steps_since_the_last_checkpoint(step, saved, tiny, trained, tmp_path):
    run = tmp_path / "run"
    with at_step(step, crash), pytest.raises(ZeroDivisionError):
        understudy.train(tiny, run=run)
    with (run / "losses.csv").open("a") as stream:
        stream.write("2.5,10,0.0")  # a row that was cut short
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == saved
    assert_same(understudy.resume(run), trained)


def test_a_crash_after_the_last_step_costs_nothing(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "result.json").unlink()
    assert_same(understudy.resume(run), trained)


def test_a_second_ctrl_c_stops_at_once(tiny, trained, tmp_path):
    run = tmp_path / "run"
    with (
        at_step(6, ctrl_c_twice),
        pytest.raises(KeyboardInterrupt, match=f"at once; step 4 was the last to be saved.*understudy resume {run}"),
    ):
        understudy.train(tiny, run=run)
    assert_same(understudy.resume(run), trained)


def test_a_second_ctrl_c_before_anything_was_saved(tiny, tmp_path):
    with at_step(2, ctrl_c_twice), pytest.raises(KeyboardInterrupt, match=r"Nothing was saved yet: delete .*/run"):
        understudy.train(tiny, run=tmp_path / "run")
    with pytest.raises(UserError, match="stopped before it saved a checkpoint; delete it"):
        understudy.resume(tmp_path / "run")


def command(*arguments: object, **keys: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "understudy",
        *map(str, arguments),
        *(f"{key}={value}" for key, value in keys.items()),
    ]


def wait_for(condition, process: subprocess.Popen, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_on_the_command_line_saves_and_says_how_to_go_on(tiny, distilled, trained, tmp_path):
    """The signal goes to all processes of the run, as a terminal sends it; the workers must not die of it."""
    run = tmp_path / "run"
    keys = {**tiny, "teacher": trained, "run": run, "data.workers": 1}
    process = subprocess.Popen(
        command("distill", **keys),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for((run / "losses.csv").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"Go on with: understudy resume {run}" in err.splitlines()[-1]
    assert "Finishing this step" in err
    assert "Traceback" not in err
    assert "arning" not in err
    assert err.count("Finishing") == 1
    assert not out
    assert 3 <= torch.load(run / "last.ckpt", weights_only=True)["global_step"] < 12
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(run)])
    assert not stop.value.code
    assert_same(run, distilled)


# --- with images that nobody labelled ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    """A folder of five drawn images, of another size than the labelled ones."""
    from understudy.data.scenes import make_scenes

    folder = make_scenes(tmp_path_factory.mktemp("data") / "more", train=4, val=1, size=48, seed=9)
    return folder / "images"


@pytest.fixture(scope="module")
def mixed(tiny, trained, unlabelled, tmp_path_factory) -> Path:
    """A finished run with one unlabelled image a step."""
    keys = {"data.unlabelled": unlabelled, "data.unlabelled_batch": 1}
    return understudy.distill(tiny, teacher=trained, run=tmp_path_factory.mktemp("runs") / "mixed", **keys)


def test_unlabelled_images_change_the_distillation(mixed, distilled, unlabelled):
    first, plain = (read_rows(run / "losses.csv")[0] for run in (mixed, distilled))
    assert list(first) == list(plain)
    assert first["step"] == plain["step"]
    assert first["frs_feature"] != plain["frs_feature"]
    assert len(read_rows(mixed / "losses.csv")) == len(read_rows(distilled / "losses.csv"))  # the same budget
    assert json.loads((mixed / "environment.json").read_text())["unlabelled_images"] == 5


@pytest.mark.parametrize(("step", "workers"), [(5, 0), (4, 2)])
def test_a_run_with_unlabelled_images_is_resumed_to_the_bit(step, workers, tiny, trained, mixed, unlabelled, tmp_path):
    run = tmp_path / "run"
    keys = {"data.unlabelled": unlabelled, "data.unlabelled_batch": 1, "data.workers": workers}
    with at_step(step, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained, **keys)
    assert_same(understudy.resume(run), mixed)


def test_other_unlabelled_images_are_not_resumed_on(tiny, trained, unlabelled, tmp_path):
    run, folder = tmp_path / "run", shutil.copytree(unlabelled, tmp_path / "more")
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained, **{"data.unlabelled": folder})
    assert load_config(DistillConfig, run / "config.yaml").data.unlabelled_batch == 2  # as many as labelled ones
    next(folder.glob("*.*")).unlink()
    with pytest.raises(UserError, match="there were 5 unlabelled images and are 4"):
        understudy.resume(run)


def test_unlabelled_images_are_for_distillation(tiny, unlabelled, tmp_path):
    with pytest.raises(UserError, match=r"data.unlabelled=.*in a run without a teacher they teach nothing"):
        understudy.train(tiny, run=tmp_path / "run", **{"data.unlabelled": unlabelled})
    assert not (tmp_path / "run").exists()


# --- a teacher of another kind ----------------------------------------------------------------------------------------


def test_a_teacher_of_another_kind_and_label_space(tiny, scenes, confident, tmp_path, capsys):
    """Other anchors, one class of another name, one in capitals; it is resumed to the bit like any other run."""
    names = ["unicorn", " RING"]
    keys = {
        **tiny,
        **renamed(scenes, tmp_path / "other", names),
        "teacher": confident("retinanet_mobilenet_v2"),
        "methods": {"frs": {"scores": "cell"}},
    }
    whole = understudy.distill(keys, run=tmp_path / "whole")
    note = "classes the teacher does not know, learned from labels alone: unicorn; classes of the teacher that are not"
    assert note in capsys.readouterr().err
    facts = json.loads((whole / "environment.json").read_text())["pairing"]
    assert facts["classes_unknown_to_the_teacher"] == ["unicorn"]
    assert facts["classes"] == [" RING", "cross", "arrow"]
    assert facts["classes_of_the_teacher_not_used"] == ["star"]
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(keys, run=tmp_path / "run")
    capsys.readouterr()
    assert_same(understudy.resume(tmp_path / "run"), whole)
    assert note in capsys.readouterr().err
    with pytest.raises(UserError, match=r"frs can serve with methods.frs.class_weight=0"):
        understudy.distill(keys, run=tmp_path / "third", methods="frs")


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_give_the_gradients_of_one(tiny, confident, unlabelled, tmp_path):
    """With losses that are divided per image: RetinaNet's, and FRS' with the normaliser of an image."""
    teacher = confident("retinanet_mobilenet_v2")
    keys = {
        **tiny,
        "teacher": teacher,
        "data.unlabelled": unlabelled,
        "data.unlabelled_batch": 1,
        "detector.name": "retinanet_mobilenet_v2",
        "detector.norm": "frozen",
        "schedule.epochs": 1,
        "optimizer.clip_norm": 350,
        "methods": json.dumps({"frs": {"normaliser": "image", "class_weight": 200, "ramp_steps": 0}}),
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


# --- what stops a run -------------------------------------------------------------------------------------------------


class Culprit(Method):
    """A method that does one thing wrong."""

    name, terms, source = "culprit", ("term",), "none"
    weights = {"fcos": {"term": 1.0}}  # noqa: RUF012


class Zero(Culprit):
    def forward(self, student, teacher, truth):
        return {"culprit_term": 0 * student.features[0].sum()}


class ZeroWhereObjectsAreSmall(Zero):
    """Twelve steps of nothing to compare are no fault of a method that compares where there are objects."""

    reads = ("features", "truth")


class NotANumber(Culprit):
    calls = 0

    def forward(self, student, teacher, truth):
        NotANumber.calls += 1
        return {"culprit_term": student.features[0].mean() * (math.nan if NotANumber.calls > 5 else 1)}


class Detached(Culprit):
    def forward(self, student, teacher, truth):
        return {"culprit_term": (student.features[0].detach() - teacher.features[0]).square().mean()}


class OnlyTheAdapter(Culprit):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.adapter = torch.nn.Conv2d(student.channels[0], teacher.channels[0], 1)

    def forward(self, student, teacher, truth):
        return {"culprit_term": (self.adapter(student.features[0].detach()) - teacher.features[0]).square().mean()}


class DetachedLater(Culprit):
    """Nothing to say at first, which is allowed; what it says then reaches nobody."""

    calls = 0

    def forward(self, student, teacher, truth):
        DetachedLater.calls += 1
        return {"culprit_term": teacher.features[0].abs().mean() * (DetachedLater.calls > 2)}


@pytest.mark.parametrize(
    ("culprit", "message", "saved"),
    [
        (Zero, "culprit_term was exactly zero in 3 steps", None),
        (NotANumber, "Step 5: total is nan, culprit_term is nan. Lower optimizer.lr", 4),
        (Detached, "culprit_term has no gradient to any weight of the student", None),
        (OnlyTheAdapter, "culprit_term has no gradient to any weight of the student", None),
        (DetachedLater, "culprit_term has no gradient to any weight of the student", None),
    ],
)
def test_a_dead_distillation_term_stops_the_run(culprit, message, saved, tiny, trained, tmp_path, capsys):
    culprit.calls = 0
    method = {f"{__name__}:{culprit.__name__}": {}}
    keys = {**tiny, "teacher": trained, "run": tmp_path / "run", "methods": json.dumps(method)}
    with pytest.raises(SystemExit) as stop:
        main(["distill", *(f"{key}={value}" for key, value in keys.items())])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    last = tmp_path / "run" / "last.ckpt"
    assert (torch.load(last, weights_only=True)["global_step"] if last.exists() else None) == saved
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_method_that_reads_the_truth_may_have_nothing_to_compare_for_longer(
    tiny, trained, tmp_path, monkeypatch, capsys
):
    method = {f"{__name__}:{ZeroWhereObjectsAreSmall.__name__}": {}}
    understudy.distill(tiny, run=tmp_path / "run", teacher=trained, methods=method)
    assert "culprit_term: exactly zero in every step since the start" in capsys.readouterr().err
    monkeypatch.setattr("understudy.engine.PATIENCE_WITH_TRUTH", 8)
    with pytest.raises(RunError, match=r"exactly zero in 8 steps.*the objects are so small"):
        understudy.distill(tiny, run=tmp_path / "stopped", teacher=trained, methods=method)


class Dice(Culprit):
    """Nothing wrong with it: chance is a function of seed and step."""

    def forward(self, student, teacher, truth):
        return {"culprit_term": student.features[0].square().mean() * torch.rand(())}


def test_what_a_method_draws_at_random_is_drawn_again(tiny, trained, tmp_path):
    keys = {"teacher": trained, "methods": {f"{__name__}:Dice": {}}, "schedule.epochs": 1, "log_every": 1}
    whole = understudy.distill(tiny, run=tmp_path / "whole", **keys)
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=tmp_path / "run", **keys)
    torch.rand(7)  # whatever else the process draws does not matter
    assert_same(understudy.resume(tmp_path / "run"), whole)


def test_a_method_with_nothing_to_say_at_first_goes_on(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        DetachedLater,
        "forward",
        lambda self, student, teacher, truth: {"culprit_term": student.features[0].mean() * next(factors)},
    )
    factors = iter([0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    understudy.distill(tiny, teacher=trained, run=tmp_path / "run", methods={f"{__name__}:DetachedLater": {}})


def test_a_loss_that_is_not_a_number_stops_the_run(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"Step \d+: total is (nan|inf).*Lower optimizer.lr"):
        understudy.train(tiny, run=run, **{"optimizer.lr": 1e20})
    assert not (run / "last.ckpt").exists()


# --- a full disk ------------------------------------------------------------------------------------------------------


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("file", ["last.ckpt", "best.ckpt", "losses.csv", "metrics.csv"])
def test_a_full_disk_leaves_the_last_checkpoint(file, tiny, trained, tmp_path, capsys):
    """The disk fills up when `file` is written the second time; with room again the run goes on as if nothing was."""
    run, opened, writes = tmp_path / "run", Path.open, []

    def open_(path, mode="r", *args, **kwargs):
        stream = opened(path, mode, *args, **kwargs)
        if path.name in (file, f".{file}.part") and mode in ("wb", "ab"):
            writes.append(path)
            if len(writes) == 2:
                stream.write(b"half a ro")
                stream.close()
                return contextlib.nullcontext(types.SimpleNamespace(write=no_room))
        return stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_)
        with pytest.raises(SystemExit) as stop:
            main(["train", *(f"{key}={value}" for key, value in {**tiny, "run": run}.items())])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert "Error: The disk is full" in err
    assert str(run / file) in err
    assert f"understudy resume {run}" in err
    assert not list(run.glob(".*.part"))
    assert "half" not in (run / "losses.csv").read_text() + (run / "metrics.csv").read_text()
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    assert_same(understudy.resume(run), trained)


def test_a_full_disk_by_a_limit_of_the_system(tiny, trained, tmp_path, capsys):
    """The same with a system that truly refuses: from step 6 on no file may grow beyond 1.5 MB, and last.ckpt would."""
    resource = pytest.importorskip("resource")
    run, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        shrink = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
        with at_step(6, shrink), pytest.raises(SystemExit) as stop:
            main(["train", *(f"{key}={value}" for key, value in {**tiny, "run": run}.items())])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 1
    assert f"{run / 'last.ckpt'} could not be saved (File too large); the previous" in capsys.readouterr().err
    assert not list(run.glob(".*.part"))
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    assert_same(understudy.resume(run), trained)


# --- found before anything is written ---------------------------------------------------------------------------------


def single_file(scenes, tmp_path):
    return {"data.path": scenes / "instances_train.json"}


def renamed(scenes, folder, names):
    """The same scenes with other names for the classes."""
    shutil.copytree(scenes, folder)
    for file in folder.glob("instances_*.json"):
        content = json.loads(file.read_text())
        for category, name in zip(content["categories"], names, strict=False):
            category["name"] = name
        file.write_text(json.dumps(content))
    return {"data.path": folder}


def other_classes(scenes, tmp_path):
    return renamed(scenes, tmp_path / "other", ["unicorn", "yeti", "zombie", "ogre", "elf", "troll", "orc", "imp"])


def different_splits(scenes, tmp_path):
    folder = other_classes(scenes, tmp_path)["data.path"]
    shutil.copy(scenes / "instances_train.json", folder)
    return {"data.path": folder}


def only_crowds(scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "other")
    content = json.loads((folder / "instances_val.json").read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    (folder / "instances_val.json").write_text(json.dumps(content))
    return {"data.path": folder}


MISTAKES = [
    (single_file, r"is one split, and would be trained on and evaluated on. Name two files .*data.train=instances_tr"),
    (other_classes, r"no class of the same name: the student has unicorn, [^;]*; the teacher has star"),
    (different_splits, r"'train' and 'val' of .* have different classes"),
    (only_crowds, r"none of the 4 images has an annotated object"),
    ({"data.path": "nowhere"}, r"No data set at .*nowhere"),
    ({"data.val": "test"}, r'no split "test"; it has: train, val'),
    ({"detector.name": "fcos_resnet51"}, r"no detector 'fcos_resnet51'; did you mean 'fcos_resnet50'"),
    ({"methods": {"fsr": {}}}, r"no method 'fsr'; did you mean 'frs'"),
    ({"methods": {"frs": {"featur_weight": 1}}}, r'has no option "featur_weight"; did you mean "feature_weight"'),
    ({"data.unlabelled": "nowhere"}, r"No unlabelled images at .*nowhere"),
    ({"data.unlabelled_batch": 2}, r"data.unlabelled_batch=2 without any such images"),
    ({"teacher": "nowhere"}, r"nowhere does not exist; expected a checkpoint"),
    ({"batch_size": 9}, r"8 images in split 'train', fewer than one batch of 9"),
    ({"precision": "16"}, r"precision=16 needs a GPU.*use precision=32, or bf16"),
    ({"accelerator": "warp"}, r"accelerator=warp .* cannot be had on this machine"),
    ({"strategy": "warp"}, r"strategy=warp .* cannot be had on this machine"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_leaves_no_run_folder(change, message, tiny, trained, scenes, tmp_path):
    run = tmp_path / "run"
    changes = change(scenes, tmp_path) if callable(change) else change
    with pytest.raises(UserError, match=message):
        understudy.distill(tiny, run=run, **{"teacher": trained, **changes})
    assert not run.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tiny, tmp_path):
    with pytest.raises(UserError, match=r"accelerator=gpu .* cannot be had on this machine"):
        understudy.train(tiny, run=tmp_path / "run", accelerator="gpu")
    assert not (tmp_path / "run").exists()


def test_one_split_may_be_named_twice(tiny, scenes, tmp_path):
    file = scenes / "instances_train.json"
    keys = {"data.path": file, "data.train": "train", "data.val": "train", "schedule.epochs": 1}
    run = understudy.train(tiny, run=tmp_path / "run", **keys)
    assert json.loads((run / "result.json").read_text())["images"] == 8


# --- resuming refuses what would be another run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tiny, trained, tmp_path_factory) -> Path:
    """A distillation run that was interrupted after step 5."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=trained)
    return run


def test_a_finished_run_is_not_resumed(trained):
    with pytest.raises(UserError, match=r"is finished; its evaluation is in .*result.json"):
        understudy.resume(trained)


def test_no_run_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder: it holds no config\.yaml"):
        understudy.resume(tmp_path)


def test_an_edited_config_is_not_resumed(stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    config = load_config(DistillConfig, run / "config.yaml", {"batch_size": 1, "optimizer.lr": 0.1, "data.workers": 1})
    (run / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError) as caught:
        understudy.resume(run)
    assert "batch_size: 2 in the checkpoint, 1 now" in str(caught.value)
    assert "optimizer.lr: 0.01 in the checkpoint, 0.1 now" in str(caught.value)
    assert "workers" not in str(caught.value)


def test_a_run_is_resumed_where_its_data_were_moved_to(stopped, distilled, scenes, tmp_path, monkeypatch):
    run, data = shutil.copytree(stopped, tmp_path / "moved"), shutil.copytree(scenes, tmp_path / "data")
    config = load_config(DistillConfig, run / "config.yaml", {"data.path": tmp_path / "missing"})
    (run / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match=f"No data set at {tmp_path}/missing"):
        understudy.resume(run)
    (run / "config.yaml").write_text(dump_config(load_config(DistillConfig, config, {"data.path": data})))
    assert_same(understudy.resume(run), distilled)


def test_other_data_are_not_resumed_on(stopped, scenes, tmp_path):
    run, data = shutil.copytree(stopped, tmp_path / "run"), shutil.copytree(scenes, tmp_path / "data")
    content = json.loads((data / "instances_train.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] <= 6]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] <= 6]
    (data / "instances_train.json").write_text(json.dumps(content))
    config = load_config(DistillConfig, run / "config.yaml", {"data.path": data})
    (run / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match="an epoch had 4 steps and has 3"):
        understudy.resume(run)


def test_relative_paths_lead_there_from_another_folder(tiny, trained, scenes, distilled, tmp_path, monkeypatch):
    monkeypatch.chdir(scenes.parent)
    run, teacher = tmp_path / "run", os.path.relpath(trained, scenes.parent)
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=run, teacher=teacher, **{"data.path": scenes.name})
    monkeypatch.chdir(tmp_path)
    assert_same(understudy.resume(Path("run")), distilled)


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_resolved_config_reproduces_the_run(distilled, tmp_path):
    assert_same(understudy.distill(distilled / "config.yaml", run=tmp_path / "again"), distilled)


def test_losses_by_name_and_metrics_by_epoch(distilled):
    rows = read_rows(distilled / "losses.csv")
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    assert [row["epoch"] for row in rows] == ["0.750", "1.500", "2.250", "3.000"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    names = ["classification", "bbox_regression", "bbox_ctrness", "frs_feature", "frs_class"]
    weights = ["frs_feature_weight", "frs_class_weight"]
    assert list(rows[0]) == ["epoch", "step", "lr", "total", *names, "distillation_share", *weights]
    # Of the row's last step: FRS grows over 500 steps, and the first of these counts as 0.
    assert [float(row[weights[0]]) for row in rows] == pytest.approx([0.01 * step / 500 for step in (2, 5, 8, 11)])
    assert all(float(row[name]) > 0 for row in rows for name in names)
    assert rows[0]["distillation_share"] == "0.0000"  # the ramp starts at nothing
    metrics = read_rows(distilled / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in metrics] == [("1", "4"), ("2", "8"), ("3", "12")]
    assert list(metrics[0]) == ["epoch", "step", "AP", "AP50", "AP75", "seconds"]
    best = max(metrics, key=lambda row: float(row["AP"]))
    result = json.loads((distilled / "result.json").read_text())
    assert result["coco"]["AP"] == pytest.approx(float(best["AP"]))
    assert result["epoch"] == int(best["epoch"])
    assert result["parameters"] > 1e5


def test_the_share_of_the_distillation(tiny, trained, tmp_path, capsys):
    """Without a ramp, and with a weight so high that hardly anything else counts."""
    keys = {"teacher": trained, "schedule.epochs": 1, "log_every": 1, "optimizer.lr": 1e-6}
    methods = {"frs": {"ramp_steps": 0, "class_weight": 1e4}}
    run = understudy.distill(tiny, run=tmp_path / "run", methods=methods, **keys)
    rows = read_rows(run / "losses.csv")
    assert 0.99 < float(rows[0]["distillation_share"]) < 1
    assert {row["distillation_share"] for row in rows[1:]} == {""}
    first = {name: float(rows[0][name]) for name in rows[0] if name not in ("epoch", "step", "distillation_share")}
    task = first["classification"] + first["bbox_regression"] + first["bbox_ctrness"]
    assert first["total"] == pytest.approx(task + 0.01 * first["frs_feature"] + 1e4 * first["frs_class"], rel=1e-4)
    said = capsys.readouterr().err
    assert said.count("of the student's gradient comes from the distillation. Its largest term is frs_class") == 1
    assert "x 1e+04 =" in said


def test_evaluations_every_few_epochs_and_at_the_end(tiny, tmp_path):
    run = understudy.train(tiny, run=tmp_path / "run", evaluate_every=2)
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["2", "3"]


def test_tensorboard_where_it_is_installed(trained):
    pytest.importorskip("tensorboard")
    assert len(list((trained / "tensorboard").glob("events.out.*"))) == 1


def test_the_first_five_steps_are_what_they_were(tiny, confident, tmp_path):
    """With frozen normalisation: statistics of two 2x2 maps would amplify the last digits, which machines differ in."""
    keys = {"log_every": 1, "schedule.epochs": 2, "optimizer.lr": 0.001, "detector.norm": "frozen"}
    teacher = confident("fcos_mobilenet_v2")
    run = understudy.distill(tiny, run=tmp_path / "run", teacher=teacher, methods={"frs": {"ramp_steps": 2}}, **keys)
    found = [float(row["total"]) for row in read_rows(run / "losses.csv")[:5]]
    assert found == pytest.approx(LOSSES_OF_FIVE_STEPS, rel=1e-4)


def test_progress_is_readable_where_no_terminal_is(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ShowProgress, "SECONDS_BETWEEN_LINES", 0.0)
    understudy.train(tiny, run=tmp_path / "run", **{"schedule.epochs": 1})
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert len(lines) == 5
    assert lines[0].startswith("epoch 1/1  step 1/4  0 min left  total 2.")
    assert "bbox_ctrness 0." in lines[0]
    assert lines[-1].startswith("epoch   1  AP 0.0  AP50 ")
    assert "\x1b" not in err


def test_the_bar_shows_every_loss_and_goes_away_when_a_run_fails(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(callbacks, "CONSOLE", Console(stderr=True, force_terminal=True, width=120))
    with (
        at_step(2, lambda: time.sleep(0.6)),  # long enough to be drawn
        at_step(3, crash),
        pytest.raises(ZeroDivisionError),
    ):
        understudy.train(tiny, run=tmp_path / "run")
    err = capsys.readouterr().err
    assert "epoch 1/3" in err
    assert "/12" in err
    assert "left" in err
    assert "bbox_ctrness 0." in err
    assert err.endswith("\x1b[2K")  # the bar's last line is wiped


# --- how the weights are changed --------------------------------------------------------------------------------------


def learning_rate(epochs_steps: int = 10, **schedule):
    config = load_config(TrainConfig, {"run": "r", "data": "d", "schedule": schedule})
    total = config.schedule.epochs * epochs_steps
    return [LearningRate(config, epochs_steps).at(step) for step in range(total)]


@pytest.mark.parametrize(("name", "epochs", "drops"), [("1x", 12, (8, 11)), ("2x", 24, (16, 22))])
def test_the_papers_schedules(name, epochs, drops):
    factors = learning_rate(name=name, warmup_steps=0)
    assert len(factors) == 10 * epochs
    expected = [1.0] * 10 * drops[0] + [0.1] * 10 * (drops[1] - drops[0]) + [0.01] * 10 * (epochs - drops[1])
    assert factors == pytest.approx(expected)


def test_the_warm_up_is_linear_and_at_most_a_tenth_of_the_run():
    factors = learning_rate(100, name="1x", warmup_steps=50, warmup_factor=0.2)
    assert factors[0] == pytest.approx(0.2)
    assert factors[25] == pytest.approx(0.6)
    assert factors[50:800] == [1.0] * 750
    assert learning_rate(10, warmup_steps=500)[11] < 1 == learning_rate(10, warmup_steps=500)[12]


def test_the_cosine_falls_to_zero():
    factors = learning_rate(name="cosine", epochs=12, warmup_steps=20)
    after = factors[12:]  # a tenth of 120 steps
    assert after[0] == 1
    assert after == sorted(after, reverse=True)
    assert after[54] == pytest.approx(0.5)
    assert 0 < after[-1] < 0.001


def one_step(tiny, run, **keys) -> tuple[dict, dict]:
    """The learner's weights and the last checkpoint after one step of 8 images."""
    keys = {"batch_size": 8, "schedule.epochs": 1, "log_every": 1, "detector.norm": "frozen"} | keys
    folder = understudy.train(tiny, run=run, **keys)
    last = torch.load(folder / "last.ckpt", weights_only=True)
    return last["state_dict"], last


def test_the_learning_rate_grows_with_the_batch(tiny, tmp_path):
    _, last = one_step(tiny, tmp_path / "run", **{"optimizer.lr": 0.01, "optimizer.scale_lr": True})
    assert last["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.01 * 8 / 16])
    assert float(read_rows(tmp_path / "run" / "losses.csv")[0]["lr"]) == pytest.approx(0.005)


def test_the_gradient_is_clipped(tiny, tmp_path):
    start, _ = one_step(tiny, tmp_path / "start", **{"optimizer.lr": 1e-30})
    keys = {"optimizer.lr": 1.0, "optimizer.weight_decay": 0.0}
    free, _ = one_step(tiny, tmp_path / "free", **keys)
    clipped, _ = one_step(tiny, tmp_path / "clipped", **keys, **{"optimizer.clip_norm": 0.01})
    moved = [math.sqrt(sum(float((new[k] - start[k]).square().sum()) for k in start)) for new in (free, clipped)]
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(0.01, rel=1e-3)


def test_adamw(tiny, tmp_path):
    keys = {"optimizer.name": "adamw", "optimizer.lr": 0.001, "optimizer.weight_decay": 0.05}
    _, last = one_step(tiny, tmp_path / "run", **keys)
    assert last["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.05
    assert {"exp_avg", "exp_avg_sq", "step"} <= set(last["optimizer_states"][0]["state"][0])


def test_bf16_is_close_to_32_bits(tiny, trained, tmp_path):
    keys = {"schedule.epochs": 1, "log_every": 1, "teacher": trained}
    whole = understudy.distill(tiny, run=tmp_path / "32", **keys)
    half = understudy.distill(tiny, run=tmp_path / "bf16", precision="bf16", **keys)
    expected, found = (read_rows(run / "losses.csv")[0] for run in (whole, half))
    for name in ("total", "frs_feature", "frs_class"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.02)
    assert found["total"] != expected["total"]
    weights = torch.load(half / "last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.int64}
