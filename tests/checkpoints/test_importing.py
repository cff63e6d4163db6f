"""Imports of detectors: the checkpoint, its use, the command, and weights that do not fit."""

import re
from pathlib import Path

import pytest
import torch
from foreign_files import HARMLESS, as_mmdet, mmdet_state, plain, refusal, save

import understudy
from understudy.checkpoints import import_checkpoint, load_checkpoint
from understudy.cli import main
from understudy.errors import UserError
from understudy.networks import build_network


def command(*arguments: str) -> object:
    """Run ``understudy import``; return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(["import", *arguments])
    return stop.value.code


# --- use of an imported detector --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(scenes, tmp_path_factory) -> Path:
    """An imported FCOS with the classes of the drawn scenes."""
    folder = tmp_path_factory.mktemp("imported")
    classes = understudy.open_data(scenes).classes
    file = save(folder, as_mmdet(plain("fcos", classes=len(classes), neck_channels=64), "fcos", bgr=True))
    settings = {"shorter_side": 64, "longer_side": 64}
    return import_checkpoint(file, folder / "teacher.ckpt", classes=classes, settings=settings).path


def records(detector) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = detector(torch.rand(1, 3, 64, 96))
    return [*outputs.features, *outputs.class_logits, *outputs.box_raw, *outputs.anchors, *outputs.extra.values()]


def test_an_imported_detector_is_used_like_ours(teacher, scenes, tiny, tmp_path):
    from understudy.evaluation import evaluate
    from understudy.evaluation.prediction import predict
    from understudy.export import export

    with pytest.raises(UserError, match=r"No data set to evaluate on: .*was imported"):
        evaluate(teacher)
    assert evaluate(teacher, scenes, device="cpu").to_dict()
    predict(teacher, scenes, tmp_path / "predicted", device="cpu")
    assert (tmp_path / "predicted" / "detections.json").is_file()

    exported = export(teacher, tmp_path / "exported")
    again = import_checkpoint(exported, tmp_path / "again.ckpt")
    assert all(map(torch.equal, records(again.detector), records(load_checkpoint(teacher).detector)))
    assert again.classes == load_checkpoint(teacher).classes

    run = understudy.distill(tiny, teacher=teacher, run=tmp_path / "run", **{"schedule.epochs": 1})
    assert (run / "last.ckpt").is_file()


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_understudy_needs_no_import(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(str(teacher)) == 0
    assert "is already a checkpoint of understudy" in capsys.readouterr().out
    for ignored in (["-o", "x.ckpt"], ["--classes", "a,b"], ["--set", "shorter_side=320"]):
        assert command(str(teacher), *ignored) == 2
        assert "use it as it is, without import. An output or options have no effect" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_summary(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path, mmdet_state("gfl"), message_hub=HARMLESS)
    arguments = [str(file), "--classes", "cat,dog,cow", "--set", "shorter_side=320", "--mean", "1,2,3"]
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"model.pth \(mmdet\): gfl_resnet18, 0\.\d M parameters\n3 classes: cat, dog, cow\n", printed)
    assert "\n  - the network takes the colours as red, green, blue (--style)\n" in printed
    assert "\n  - settings of mmdet's own config: longer_side of images is 1333 pixels, extra_levels is" in printed
    assert "(--set NAME=VALUE)" in printed
    assert "shorter_side" not in printed
    assert "skipped, not executed: posix.system\n" in printed
    assert printed.endswith("Written: model.ckpt\nNext: understudy evaluate model.ckpt DATA\n")
    assert load_checkpoint(tmp_path / "model.ckpt").meta["build"]["shorter_side"] == 320

    assert command(*arguments) == 2
    assert "model.ckpt exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nonsense"], "--set: expected KEY=VALUE, got 'nonsense'"),
        (["--mean", "a,b,c"], "--mean: expected three numbers from 0 to 255 (red,green,blue), got 'a,b,c'"),
        (["--std", "1,2"], "--std: expected three numbers from 0 to 255 (red,green,blue), got [1.0, 2.0]"),
    ],
)
def test_invalid_arguments(tmp_path, capsys, arguments, message):
    assert command(str(tmp_path / "model.pth"), *arguments) == 2
    assert message in capsys.readouterr().err


def test_all_invalid_options_are_listed_at_once(tmp_path):
    message = refusal(tmp_path / "model.pth", tmp_path, style="odd", mean=(1, 2), std=(0, 1, 1))
    assert message.splitlines() == [
        "Invalid import options:",
        "  - --style: expected caffe or pytorch, got 'odd'",
        "  - --mean: expected three numbers from 0 to 255 (red,green,blue), got [1, 2]",
        "  - --std: expected numbers above 0, got 0",
    ]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_another_kind(tmp_path):
    assert "a folder without detector.json" in refusal(tmp_path, tmp_path)


def test_a_detector_of_another_library(tmp_path):
    yolo = {"model.0.conv.weight": torch.ones(1), "model.24.m.0.weight": torch.ones(1)}
    message = refusal(save(tmp_path, yolo), tmp_path)
    assert "its 2 parameters are below model.0, model.24" in message
    assert "supported: RetinaNet, FCOS, Faster R-CNN of torchvision" in message


def test_a_backbone_alone(tmp_path):
    state = {key: value for key, value in mmdet_state("gfl").items() if key.startswith("backbone.")}
    assert "it is a backbone: use it by detector.backbone_weights=" in refusal(save(tmp_path, state), tmp_path)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    assert "detector.backbone_weights=" in refusal(save(tmp_path, state), tmp_path)


def test_all_weights_that_do_not_fit_are_listed_at_once(tmp_path):
    state = mmdet_state("gfl")
    del state["bbox_head.gfl_cls.bias"]
    state["bbox_head.novel.weight"] = torch.ones(1)
    file = save(tmp_path, state)
    message = refusal(file, tmp_path)
    assert "1 missing: head.classification_head.cls_logits.bias" in message
    assert "1 left over: bbox_head.novel.weight" in message
    assert "--partial" in message
    found = import_checkpoint(file, tmp_path / "partial.ckpt", classes="a,b,c", partial=True)
    assert found.meta["imported"]["faults"] == [line.removeprefix("  - ") for line in message.splitlines()[1:]]

    state["neck.fpn_convs.0.conv.weight"] = torch.ones(32, 16, 3, 3)
    state["bbox_head.gfl_reg.bias"][1] = torch.nan
    state |= {f"bbox_head.novel.{number}": torch.ones(1) for number in range(98)}
    message = refusal(save(tmp_path, state), tmp_path, partial=True)
    assert "1 missing" in message
    assert "99 left over" in message
    assert "and 87 more" in message
    assert (
        "1 of another shape: backbone.fpn.layer_blocks.0.0.weight is (32, 16, 3, 3) in the file, (32, 32, 3, 3)"
        in message
    )
    assert "1 not finite: head.regression_head.bbox_reg.bias" in message
    assert "--partial" not in message


def test_a_detector_that_would_be_mostly_random_is_refused(tmp_path):
    """With --architecture the detector is not identified by its tensors."""
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    state = build_network(f"torchvision/{name}", 3).state_dict()
    file = save(tmp_path, {key: value for key, value in state.items() if not key.startswith("backbone.body.")})
    message = refusal(file, tmp_path, architecture=name, partial=True)
    assert "Most of it would be randomly initialised: it is another detector (--architecture)." in message
    assert "--partial" not in message
