"""A training step: terms without effect stop the run, and the optimizer does what the config states."""

import json
import math

import pytest
import torch
from arguments import arguments_of
from small_detectors import small
from training_runs import assert_same, at_step, ctrl_c, saved_step

import understudy
from understudy.cli import main
from understudy.errors import RunError
from understudy.files import read_rows
from understudy.methods import Method
from understudy.training.engine import Engine, suits_channels_last

LOSSES_OF_FIVE_STEPS = [2.80456, 3.92093, 4.99709, 5.00517, 4.96732]
"""Total loss of a tiny student's first steps with FRS (whose ramp is two steps long); a change of it needs a reason."""

# --- terms without effect ---------------------------------------------------------------------------------------------


class Culprit(Method):
    """A method with one fault."""

    name = "culprit"
    terms = ("term",)
    weights = {"*": {"term": 1.0}}
    source = "none"
    reads = {"term": ("features",)}


class Zero(Culprit):
    def forward(self, student, teacher, truth, layers=None):
        return {"culprit_term": 0 * student.features[0].sum()}


class ZeroWhereObjectsAreSmall(Zero):
    """Some steps with nothing to compare are no fault of a method that compares at objects."""

    reads = {"term": ("features", "objects")}


class NotANumber(Culprit):
    calls = 0

    def forward(self, student, teacher, truth, layers=None):
        NotANumber.calls += 1
        return {"culprit_term": student.features[0].mean() * (math.nan if NotANumber.calls > 5 else 1)}


class Detached(Culprit):
    def forward(self, student, teacher, truth, layers=None):
        return {"culprit_term": (student.features[0].detach() - teacher.features[0]).square().mean()}


class OnlyTheAdapter(Culprit):
    def __init__(self, student, teacher, **options):
        super().__init__(student, teacher, **options)
        self.adapter = torch.nn.Conv2d(student.channels[0], teacher.channels[0], 1)

    def forward(self, student, teacher, truth, layers=None):
        return {"culprit_term": (self.adapter(student.features[0].detach()) - teacher.features[0]).square().mean()}


class DetachedLater(Culprit):
    """Zero at first, which is allowed; later without a gradient to the student."""

    calls = 0

    def forward(self, student, teacher, truth, layers=None):
        DetachedLater.calls += 1
        return {"culprit_term": teacher.features[0].abs().mean() * (DetachedLater.calls > 2)}


@pytest.mark.parametrize(
    ("culprit", "message", "saved"),
    [
        (Zero, "culprit_term was exactly zero in 3 steps. It has no effect. Possible causes: the teacher", None),
        (NotANumber, "Step 5: total is nan, culprit_term is nan. Possible remedies: lower optimizer.lr", 4),
        (Detached, "culprit_term has no gradient with respect to any weight of the student", None),
        (OnlyTheAdapter, "culprit_term has no gradient with respect to any weight of the student", None),
        (DetachedLater, "culprit_term has no gradient with respect to any weight of the student", None),
    ],
)
def test_a_term_without_effect_stops_the_run(culprit, message, saved, tiny, trained, tmp_path, capsys):
    culprit.calls = 0
    method = {f"{__name__}:{culprit.__name__}": {}}
    keys = {**tiny, "teacher": trained, "run": tmp_path / "run", "methods": json.dumps(method)}
    with pytest.raises(SystemExit) as stop:
        main(["distill", *arguments_of(keys)])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert saved_step(tmp_path / "run") == saved
    assert not (tmp_path / "run" / "result.json").exists()


class Raises(Culprit):
    calls = 0

    def forward(self, student, teacher, truth, layers=None):
        Raises.calls += 1
        return {"culprit_term": student.features[0].mean() / (Raises.calls < 3 or [][0])}


def test_a_method_that_raises_is_named_with_the_step_before_its_traceback(tiny, trained, tmp_path, capsys):
    Raises.calls = 0
    keys = {**tiny, "teacher": trained, "run": tmp_path / "run", "methods": json.dumps({f"{__name__}:Raises": {}})}
    with pytest.raises(SystemExit) as stop:
        main(["distill", *arguments_of(keys)])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    first = f"Error: Step 2: The method culprit ({__name__}:Raises) raised IndexError: list index out of range "
    first += "(of the teacher, `reads` names features)\n"
    assert f"{first}Traceback (most recent call last):" in err
    assert "(Raises.calls < 3 or [][0])" in err
    assert err.rstrip().endswith("IndexError: list index out of range")


class FallsSilent(Culprit):
    """Negative from the second step on, without a gradient from the fourth; it reads no ground truth."""

    calls = 0

    def forward(self, student, teacher, truth, layers=None):
        FallsSilent.calls += 1
        value = student.features[0].square().mean() * (1 if FallsSilent.calls == 1 else -1)
        return {"culprit_term": value if FallsSilent.calls < 4 else value.detach()}


def test_a_term_that_loses_its_gradient_and_a_negative_one_are_named_once(tiny, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("understudy.balance.EVERY", 1)
    FallsSilent.calls = 0
    understudy.distill(
        tiny, teacher=trained, run=tmp_path / "run", methods={f"{__name__}:FallsSilent": {}}, balance="off"
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "loss culprit" in line or "term culprit" in line]
    assert len(lines) == 2
    assert lines[0].startswith("step 2: the loss culprit_term is negative (-")
    assert lines[1].startswith("step 6: the distillation term culprit_term (-")
    assert "has no gradient any more with respect to any weight of the student, in 3 measurements" in lines[1]


def test_a_method_that_reads_the_truth_may_be_zero_for_longer(tiny, trained, tmp_path, monkeypatch):
    keys = {"teacher": trained, "schedule.epochs": 1}
    keys["methods"] = {f"{__name__}:{ZeroWhereObjectsAreSmall.__name__}": {}}
    understudy.distill(tiny, run=tmp_path / "run", **keys)  # four steps
    monkeypatch.setattr("understudy.training.engine.PATIENCE_WITH_TRUTH", 4)
    with pytest.raises(RunError, match=r"exactly zero in 4 steps.*the objects are too small"):
        understudy.distill(tiny, run=tmp_path / "stopped", **keys)


def test_a_term_that_is_zero_at_first_goes_on(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        DetachedLater,
        "forward",
        lambda self, student, *_: {"culprit_term": student.features[0].mean() * next(factors)},
    )
    factors = iter([0, 0, 1, 0, 0, 1, 1, 1])
    keys = {"batch_size": 1, "schedule.epochs": 1, "methods": {f"{__name__}:DetachedLater": {}}}
    understudy.distill(tiny, teacher=trained, run=tmp_path / "run", **keys)
    assert next(factors, None) is None


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"Step \d+: total is (nan|inf).*lower optimizer.lr"):
        understudy.train(tiny, run=run, **{"optimizer.lr": 1e20})
    assert not (run / "last.ckpt").exists()


# --- random numbers ---------------------------------------------------------------------------------------------------


class Dice(Culprit):
    """A method without a fault: its random numbers depend on seed and step."""

    def forward(self, student, teacher, truth, layers=None):
        return {"culprit_term": student.features[0].square().mean() * torch.rand(())}


def test_a_resumed_run_draws_the_same_random_numbers(tiny, trained, tmp_path):
    keys = {"teacher": trained, "methods": {f"{__name__}:Dice": {}}, "schedule.epochs": 1, "log_every": 1}
    whole = understudy.distill(tiny, run=tmp_path / "whole", **keys)
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, run=tmp_path / "run", **keys)
    torch.rand(7)  # other random numbers of the process do not matter
    assert_same(understudy.resume(tmp_path / "run", [f"{__name__}:Dice"]), whole)


# --- values that are read together, as on a GPU ---


@pytest.fixture
def waits(monkeypatch) -> list[int]:
    """The steps in which values are read, on a device on which reading is not free."""
    steps, read = [], Engine.read_losses

    def counted(engine: Engine) -> None:
        steps.extend([engine.unread[-1].number] if engine.unread else [])
        read(engine)

    monkeypatch.setattr("understudy.training.engine.reading_is_free", lambda values: False)
    monkeypatch.setattr(Engine, "read_losses", counted)
    return steps


def test_losses_are_read_for_each_row_and_at_the_end_of_an_epoch(waits, tiny, trained, distilled, tmp_path):
    """And where a run is interrupted, within a row."""
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(tiny, teacher=trained, run=tmp_path / "run")
    assert_same(understudy.resume(tmp_path / "run"), distilled)
    assert waits == [0, 2, 3, 4, 5, 7]  # each third, the ends of the epochs, and the last before the interruption


def test_a_loss_of_nan_is_named_with_its_step_before_anything_is_saved(waits, tiny, trained, tmp_path):
    NotANumber.calls = 0
    methods = {f"{__name__}:NotANumber": {}}
    with pytest.raises(RunError, match=r"Step 5: total is nan, culprit_term is nan"):
        understudy.distill(tiny, teacher=trained, run=tmp_path / "run", methods=methods, log_every=20)
    assert waits[-1] == 5  # a measurement of the shares, before the checkpoint of step 7
    assert saved_step(tmp_path / "run") == 4


def test_backbones_are_compiled_in_place(tiny, trained, distilled, tmp_path, monkeypatch):
    """Here by a compiler that changes nothing; the real one takes a minute."""
    compiled, used = [], set()

    def compile_(call, **options):
        compiled.append(call)
        return lambda *arguments: used.add(len(compiled)) or call(*arguments)

    monkeypatch.setattr(torch, "compile", compile_)
    run = understudy.distill(tiny, teacher=trained, run=tmp_path / "run", compile=True)
    assert len(compiled) == 4  # backbone and neck of student and teacher
    assert used == {4}
    assert_same(run, distilled)


def test_bf16_is_slower_for_mobilenets_on_cpus_which_is_said(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # In bf16, PyTorch 2.13 leaves the gradient of a strided convolution of a single cell, P7's at 64 pixels, as memory
    # was: any number. At 160 pixels it has nine cells.
    keys = {"schedule.epochs": 1, "data.shorter_side": 160, "data.longer_side": 160}
    understudy.train(tiny, run=tmp_path / "run", precision="bf16", **keys)
    assert "precision=bf16: on CPUs, MobileNets trained 1.6 x slower" in capsys.readouterr().err


# --- losses and weights -----------------------------------------------------------------------------------------------


def test_the_first_five_steps_are_what_they_were(tiny, confident, tmp_path):
    """With frozen normalisation: statistics of two 2x2 maps would amplify the last digits, which machines differ in."""
    keys = {"log_every": 1, "optimizer.name": "sgd", "optimizer.lr": 0.001, "detector.norm": "frozen"}
    teacher = confident("fcos_mobilenet_v2")
    run = understudy.distill(
        tiny, run=tmp_path / "run", teacher=teacher, methods={"frs": {"ramp_steps": 2}}, balance="off", **keys
    )
    found = [float(row["total"]) for row in read_rows(run / "losses.csv")[:5]]
    assert found == pytest.approx(LOSSES_OF_FIVE_STEPS, rel=1e-4)


def one_step(tiny, run, **keys) -> tuple[dict, dict]:
    """The learner's weights and the last checkpoint after one step of 8 images."""
    keys = {"batch_size": 8, "schedule.epochs": 1, "optimizer.name": "sgd", "detector.norm": "frozen"} | keys
    keys |= {"log_every": 1, "ema": "off"}
    folder = understudy.train(tiny, run=run, **keys)
    last = torch.load(folder / "last.ckpt", weights_only=True)
    return last["state_dict"], last


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 8 / 16), ("adamw", math.sqrt(8 / 16))])
def test_the_learning_rate_grows_with_the_batch(tiny, tmp_path, optimizer, factor):
    keys = {"optimizer.name": optimizer, "optimizer.lr": 0.01, "optimizer.scale_lr": True}
    _, last = one_step(tiny, tmp_path / "run", **keys)
    assert last["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.01 * factor])
    assert float(read_rows(tmp_path / "run" / "losses.csv")[0]["lr"]) == pytest.approx(0.01 * factor, rel=1e-3)


def test_the_gradient_is_clipped(tiny, tmp_path):
    start, _ = one_step(tiny, tmp_path / "start", **{"optimizer.lr": 1e-30})
    keys = {"optimizer.lr": 1.0, "optimizer.weight_decay": 0.0}
    free, _ = one_step(tiny, tmp_path / "free", **keys)
    clipped, _ = one_step(tiny, tmp_path / "clipped", **keys, **{"optimizer.clip_norm": 0.01})
    moved = [math.sqrt(sum(float((new[k] - start[k]).square().sum()) for k in start)) for new in (free, clipped)]
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(0.01, rel=1e-3)


def test_the_norm_is_that_of_student_and_adapters_together(tiny, trained, tmp_path):
    """SGD without momentum moves all weights together by the learning rate times the clipped norm."""
    keys = {"batch_size": 8, "schedule.epochs": 1, "optimizer.name": "sgd", "detector.norm": "frozen", "log_every": 1}
    keys |= {
        "methods": {"mgd": {"feature_weight": 0.05}},
        "optimizer.weight_decay": 0.0,
        "optimizer.clip_norm": 0.01,
        "ema": "off",
        "teacher": trained,
    }
    runs = [understudy.distill(tiny, run=tmp_path / f"run{lr}", **keys, **{"optimizer.lr": lr}) for lr in (1e-30, 1.0)]
    start, end = (torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in runs)
    moved = {key: float((end[key] - start[key]).square().sum()) for key in start}
    assert math.sqrt(sum(moved.values())) == pytest.approx(0.01, rel=1e-3)
    of_adapters = sum(value for key, value in moved.items() if ".methods." in key)
    assert 0.05 < of_adapters / sum(moved.values()) < 0.95


def test_adamw(tiny, tmp_path):
    keys = {"optimizer.name": "adamw", "optimizer.lr": 0.001, "optimizer.weight_decay": 0.05}
    _, last = one_step(tiny, tmp_path / "run", **keys)
    assert last["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.05
    assert {"exp_avg", "exp_avg_sq", "step"} <= set(last["optimizer_states"][0]["state"][0])


def test_bf16_is_close_to_32_bits(tiny, trained, tmp_path):
    keys = {"schedule.epochs": 1, "batch_size": 8, "log_every": 1, "teacher": trained, "balance": "off"}
    whole = understudy.distill(tiny, run=tmp_path / "32", **keys)
    half = understudy.distill(tiny, run=tmp_path / "bf16", precision="bf16", **keys)
    expected, found = (read_rows(run / "losses.csv")[0] for run in (whole, half))
    for name in ("total", "frs_feature", "frs_class"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.02)
    assert found["total"] != expected["total"]
    weights = torch.load(half / "last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize(("width", "crashes"), [(0.125, True), (0.25, False)])
def test_a_network_that_pytorch_crashes_on_keeps_its_memory_format(width, crashes):
    network = small("retinanet", width_mult=width).network
    assert suits_channels_last(network) is not crashes
