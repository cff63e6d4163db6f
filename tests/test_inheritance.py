"""A student that starts with its teacher's neck and head."""

import copy
import json
from typing import Any

import pytest
import torch
from training_runs import at_step, ctrl_c

import understudy
from understudy.checkpoints import STUDENT, read_checkpoint, write_checkpoint
from understudy.compare import table as results
from understudy.detectors import Detector, build_detector
from understudy.errors import UserError
from understudy.inheritance import inherit
from understudy.pairing import pair
from understudy.training.folder import RunFolder

CLASSES = ("circle", "square", "star")


def small(family: str, seed: int = 0, **options: Any) -> Detector:
    torch.manual_seed(seed)
    return build_detector(f"{family}_resnet18", 3, **{"neck_channels": 16, "width_mult": 0.125, **options})


def test_a_student_inherits_neck_and_head_where_they_fit():
    teacher, student = small("fcos", 1, width_mult=0.25), small("fcos", 2)
    before = copy.deepcopy(student.network.state_dict())
    found = inherit(student, teacher, pair(student.spec, teacher.spec, CLASSES, CLASSES))
    after, theirs = student.network.state_dict(), teacher.network.state_dict()
    others = [f"backbone.fpn.inner_blocks.{n}.0.{part}" for n in range(3) for part in ("weight", "bias")]
    assert found.own == tuple(others)  # made for other stages
    assert all(torch.equal(after[name], theirs[name]) for name in found.taken)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in found.taken)
    assert "head.classification_head.cls_logits.weight" in found.taken
    assert found.parameters == sum(theirs[name].numel() for name in found.taken)
    assert {*found.taken, *found.own} == {name for name in after if not name.startswith("backbone.body.")}


def test_what_means_something_else_is_not_inherited():
    teacher = small("fcos", 1)
    student = small("fcos", 2)
    found = inherit(student, teacher, pair(student.spec, teacher.spec, CLASSES, CLASSES[::-1]))
    left = [name for name in found.own if "cls_logits" in name]
    assert len(left) == 2  # the same classes in another order
    student = small("gfl", 2)
    found = inherit(student, teacher, pair(student.spec, teacher.spec, CLASSES, CLASSES))
    assert all(name.startswith("backbone.fpn.") for name in found.taken)  # another head
    for student in (small("fcos", 2, neck_channels=8), small("faster_rcnn", 2)):
        with pytest.raises(UserError, match="inherit=true: no layer of the teacher's neck and head fits the student"):
            inherit(student, teacher, pair(student.spec, teacher.spec, CLASSES, CLASSES))


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"norm_on_bbox": True}, "head."),  # the same tensors, another box: strides for logarithms of pixels
        ({"extra_relu": False}, "backbone.fpn.extra_blocks."),
    ],
)
def test_tensors_of_the_same_shape_with_another_meaning_are_not_inherited(changed, left):
    options = {"conventions": "mmdet", "neck_channels": 32, "width_mult": 1 / 8}
    teacher = build_detector("fcos_resnet18", 3, **options)
    student = build_detector("fcos_resnet18", 3, **options, settings=changed)
    found = inherit(student, teacher, pair(student.spec, teacher.spec, CLASSES, CLASSES))
    assert found.taken
    assert {name for name in found.own if name.startswith("head.")} == (
        {name for name in student.network.state_dict() if name.startswith("head.")} if left == "head." else set()
    )
    assert not [name for name in found.taken if name.startswith(left)]


def test_the_head_of_other_anchors_is_not_inherited():
    teacher, student = (build_detector("retinanet_resnet18", 3, width_mult=1 / 8, anchor_scale=size) for size in (4, 8))
    found = inherit(student, teacher, pair(student.spec, teacher.spec, CLASSES, CLASSES))
    assert found.taken
    assert all(name.startswith("backbone.fpn.") for name in found.taken)


def test_a_run_reports_and_records_what_it_inherited_and_a_resumed_one_does_not_inherit_again(
    tiny, trained, tmp_path, capsys
):
    run = tmp_path / "run"
    keys = tiny | {"schedule.epochs": 2, "optimizer.lr": 1e-9, "ema": "off", "teacher": str(trained), "inherit": True}
    with at_step(4, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(keys, run=run)
    assert "the student inherits 54 of the 54 tensors of its neck and head" in capsys.readouterr().err
    facts = json.loads(RunFolder(run).environment.read_text())["inherited"]
    assert len(facts["taken"]) == 54
    content = read_checkpoint(run / "last.ckpt")
    theirs = read_checkpoint(trained / "best.ckpt")["state_dict"]
    name = STUDENT + "head.classification_head.cls_logits.weight"
    torch.testing.assert_close(content["state_dict"][name], theirs[name], rtol=0, atol=1e-4)
    content["state_dict"][name] += 1
    write_checkpoint(run / "last.ckpt", content)
    understudy.resume(run)
    assert "inherits" not in capsys.readouterr().err
    last = read_checkpoint(run / "last.ckpt")["state_dict"]
    torch.testing.assert_close(last[name], theirs[name] + 1, rtol=0, atol=1e-4)
    assert results.summarise([run]).rows[0].name == "pkd + frs + inherit"
