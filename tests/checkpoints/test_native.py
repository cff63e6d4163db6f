"""Checkpoints of understudy: their content, and files that are refused without executing anything."""

import contextlib
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import understudy
from understudy.analysis.swap import swap_test
from understudy.checkpoints import FORMAT, STUDENT, load_checkpoint, read_checkpoint, write_checkpoint
from understudy.data import open_data
from understudy.detectors.backbone_weights import not_finite
from understudy.errors import RunError, UserError
from understudy.evaluation import evaluate
from understudy.evaluation.prediction import predict
from understudy.export import export


@pytest.fixture(scope="module")
def content(trained) -> dict:
    """The content of the best checkpoint of a run."""
    return read_checkpoint(trained / "best.ckpt")


def changed(content: dict, folder: Path, **meta) -> Path:
    write_checkpoint(folder / "changed.ckpt", {**content, "understudy": content["understudy"] | meta})
    return folder / "changed.ckpt"


# --- content ----------------------------------------------------------------------------------------------------------


def parts(value):
    """Every value in nested containers."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts(item)
    else:
        yield value


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_only_tensors_and_plain_values(name, distilled):
    content = torch.load(distilled / name, weights_only=True)
    kinds = {type(value) for value in parts(content)}
    assert kinds <= {torch.Tensor, str, int, float, bool, type(None)}


def test_no_weights_of_the_teacher(tiny, trained, tmp_path):
    """Every tensor is the student's, by name and number; the adapters of the methods are in last.ckpt only."""
    keys = {"methods": "frs", "schedule.epochs": 1}
    distilled = understudy.distill(tiny, teacher=trained, run=tmp_path / "run", **keys)
    student = load_checkpoint(distilled).detector
    wanted = {STUDENT + key for key in student.network.state_dict()}
    last, best = (read_checkpoint(distilled / name)["state_dict"] for name in ("last.ckpt", "best.ckpt"))
    assert set(best) == wanted
    beside = set(last) - wanted
    assert beside == {f"learner.methods.0.adapters.{i}.{name}" for i in range(5) for name in ("weight", "bias")}
    assert not [key for key in last if "teacher" in key]


def test_the_best_is_small_and_the_last_can_be_resumed(distilled):
    last, best = (torch.load(distilled / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    assert set(best) == {"understudy", "state_dict"}
    assert {"optimizer_states", "lr_schedulers", "loops", "callbacks"} <= set(last)
    weights = sum(value.nbytes for value in best["state_dict"].values())
    assert (distilled / "best.ckpt").stat().st_size < 1.2 * weights + 200_000


def test_all_facts_for_its_use(trained, scenes):
    found = load_checkpoint(trained)
    data = open_data(scenes)
    assert found.path == trained / "best.ckpt"
    assert found.classes == data.classes
    assert found.meta["category_ids"] == list(data.category_ids)
    assert found.meta["build"]["name"] == "fcos_mobilenet_v2"
    assert found.config["data"]["shorter_side"][-1] == found.meta["build"]["shorter_side"] == 64
    assert found.config["seed"] == 0
    assert not found.detector.training
    outputs = found.detector(torch.rand(1, 3, 64, 64))
    assert len(found.detector.detect(outputs, [(64, 64)])) == 1


def test_a_file_or_a_folder_whose_best_checkpoint_comes_first(trained, tmp_path):
    one, other = load_checkpoint(trained), load_checkpoint(trained / "best.ckpt")
    for key, value in one.detector.state_dict().items():
        assert torch.equal(value, other.detector.state_dict()[key])
    (tmp_path / "last.ckpt").write_bytes((trained / "last.ckpt").read_bytes())
    assert load_checkpoint(str(tmp_path)).path == tmp_path / "last.ckpt"
    assert understudy.load_checkpoint is load_checkpoint


# --- other files ------------------------------------------------------------------------------------------------------


def refused(file: Path) -> str:
    """Load a file that must be refused; return the message, which names the file."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


class Malice:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_a_malicious_pickle_is_not_executed(tmp_path, content):
    trace = tmp_path / "executed"
    plain, zipped, disguised = tmp_path / "plain.ckpt", tmp_path / "zipped.ckpt", tmp_path / "disguised.ckpt"
    plain.write_bytes(pickle.dumps({"understudy": Malice(trace), "state_dict": {}}))
    torch.save({"understudy": Malice(trace), "state_dict": {}}, zipped)
    torch.save({**content, "callbacks": {"more": Malice(trace)}}, disguised)
    for file in (plain, zipped, disguised):
        assert "Nothing in it was executed" in refused(file)
    assert not trace.exists()
    pickle.loads(plain.read_bytes())
    assert trace.exists()  # so it is malicious


def test_a_truncated_file(trained, tmp_path):
    whole = (trained / "best.ckpt").read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file = tmp_path / f"{length}.ckpt"
        file.write_bytes(whole[:length])
        assert re.search("damaged|not a checkpoint", refused(file))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
@example(b"")
@example(b"PK\x03\x04")
@example(b"\x80\x02}q\x00.")
@example(b"(lp0\nI1\na.")
def test_random_bytes(tmp_path, data):
    (tmp_path / "random.ckpt").write_bytes(data)
    refused(tmp_path / "random.ckpt")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 60_000), data=st.binary(min_size=1, max_size=30))
def test_a_damaged_description(trained, tmp_path, position, data):
    """Overwritten bytes of the pickle give a UserError, or still a detector."""
    whole = bytearray((trained / "best.ckpt").read_bytes())
    whole[position : position + len(data)] = data
    (tmp_path / "damaged.ckpt").write_bytes(whole)
    with contextlib.suppress(UserError):
        load_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize(
    ("other", "holds"),
    [
        ({"model": {}}, "got the keys 'model'"),
        ({}, "an empty dict"),
        ([1, 2], "a list"),
        (torch.zeros(2), "a Tensor"),
        (
            {"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1)},
            "Use weights of a backbone by detector.backbone_weights=",
        ),
        ({"understudy": {"format": FORMAT}, "state_dict": 3}, "was not written by understudy"),
        ({"understudy": 3, "state_dict": {}}, "format null"),
    ],
)
def test_a_torch_file_that_is_not_ours(other, holds, tmp_path):
    torch.save(other, tmp_path / "other.pt")
    assert holds in refused(tmp_path / "other.pt")


def test_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("not a checkpoint\n")
    refused(tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a/b.txt", "text")
    refused(tmp_path / "archive.zip")
    assert "does not exist; expected a checkpoint" in refused(tmp_path / "missing.ckpt")
    assert "neither best.ckpt nor last.ckpt" in refused(tmp_path)


# --- checkpoints that do not fit --------------------------------------------------------------------------------------


def test_a_format_of_the_future(content, tmp_path):
    file = changed(content, tmp_path, format=FORMAT + 1)
    assert f"format {FORMAT + 1}, but this version of understudy reads {FORMAT}: update understudy" in refused(file)
    file = changed(content, tmp_path, format=0)
    assert "train again, or use the version that wrote it" in refused(file)


def test_weights_of_another_architecture(content, tmp_path):
    message = refused(changed(content, tmp_path, build=content["understudy"]["build"] | {"neck_channels": 24}))
    assert "The weights in" in message
    assert "do not fit its detector, fcos_mobilenet_v2:" in message
    assert "(24, " in message
    assert "and " in message.splitlines()[-1]
    assert "more" in message.splitlines()[-1]
    message = refused(changed(content, tmp_path, build=content["understudy"]["build"] | {"name": "retinanet_resnet18"}))
    assert "missing" in message
    weights = dict(content["state_dict"])
    weights.pop(STUDENT + "head.classification_head.cls_logits.bias")
    weights[STUDENT + "head.regression_head.bbox_reg.bias"] = "four"
    write_checkpoint(tmp_path / "less.ckpt", {**content, "state_dict": weights})
    message = refused(tmp_path / "less.ckpt")
    assert "head.classification_head.cls_logits.bias: missing" in message
    assert "head.regression_head.bbox_reg.bias: expected (4,), got no tensor" in message


@pytest.mark.parametrize("build", [{}, {"name": "fcos_nothing", "num_classes": 3}, {"name": "x"}, None, {"name": 1}])
def test_a_detector_that_cannot_be_built(build, content, tmp_path):
    message = refused(changed(content, tmp_path, build=build))
    assert "cannot be built by this version of understudy" in message or "build: expected the options" in message


def test_half_precision_weights_are_read(content, tmp_path):
    weights = {
        key: value.half() if value.is_floating_point() else value for key, value in content["state_dict"].items()
    }
    write_checkpoint(tmp_path / "half.ckpt", {**content, "state_dict": weights})
    assert {parameter.dtype for parameter in load_checkpoint(tmp_path / "half.ckpt").detector.parameters()} == {
        torch.float32
    }


def test_a_checkpoint_is_written_whole_or_not_at_all(content, tmp_path, monkeypatch):
    file = tmp_path / "best.ckpt"
    write_checkpoint(file, content)
    before = file.read_bytes()

    def no_room(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(RunError, match=r"best.ckpt \(No space left on device\). The previous version is unchanged"):
        write_checkpoint(file, {**content, "more": torch.zeros(100)})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


# --- weights that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "swap", "distill"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(command, value, content, trained, scenes, tiny, tmp_path):
    name = next(key for key in content["state_dict"] if key.endswith("conv.0.weight"))
    weights = {**content["state_dict"], name: torch.full_like(content["state_dict"][name], value)}
    write_checkpoint(tmp_path / "bad.ckpt", {**content, "state_dict": weights})
    calls = {
        "evaluate": lambda file: evaluate(file, scenes),
        "predict": lambda file: predict(file, scenes, tmp_path / "out"),
        "export": lambda file: export(file, tmp_path / "out"),
        "swap": lambda file: swap_test(trained, file),
        "distill": lambda file: understudy.distill(tiny, teacher=file, run=tmp_path / "out"),
    }
    short = name.removeprefix(STUDENT)
    with pytest.raises(
        UserError, match=rf"bad\.ckpt cannot be used(.|\n)*{re.escape(short)}: contains nan or infinity"
    ):
        calls[command](tmp_path / "bad.ckpt")
    assert not (tmp_path / "out").exists()


def test_a_constant_of_the_network_may_be_infinite():
    mask = torch.tensor([0.0, -torch.inf])
    assert not_finite({"mask": mask}, {"mask": mask.clone()}) == []
    many = {f"layer{number}": mask for number in range(7)}
    assert not_finite(many)[-2:] == ["layer4: contains nan or infinity", "... and 2 more"]


def test_files_of_other_formats_are_named(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("run: runs/teacher\nseed: 0\n")
    with pytest.raises(
        UserError, match=r"config\.yaml is not a checkpoint of understudy: it is a text file\. Expected"
    ):
        load_checkpoint(file)


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    file = tmp_path / "best.ckpt"
    file.write_bytes(b"PK")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file), "open", refuse)
    with pytest.raises(UserError, match=r"best\.ckpt cannot be read: Permission denied\.$"):
        load_checkpoint(file)
