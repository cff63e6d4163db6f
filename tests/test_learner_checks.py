"""Mistakes of a training loop that train on, but train nothing or the wrong thing."""

import re
from dataclasses import replace

import pytest
import torch
from small_detectors import IMAGES, SIZES, TARGETS, small

from understudy import METHODS, Learner
from understudy.detectors import Detector
from understudy.errors import MethodError, UserError
from understudy.learner_checks import CHECK_EVERY
from understudy.outputs import Origin

NORMED = {"norm": "batch"}


@pytest.fixture(scope="module")
def teacher() -> Detector:
    return small("fcos", neck_channels=24).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def theirs(teacher):
    with torch.no_grad():
        return teacher(IMAGES, SIZES)


@pytest.fixture
def learner(teacher) -> Learner:
    student = small("fcos", **NORMED)
    return Learner(student, [METHODS["hint"](student.spec, teacher.spec)])


def target(boxes=((4, 4, 40, 50),), labels=(0,)):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}


def changed(**parts):
    return [target(**parts), TARGETS[1]]


def test_a_right_loop_passes_every_check(learner, teacher, theirs):
    learner.calls = CHECK_EVERY
    losses = learner(IMAGES, TARGETS, theirs, SIZES, teacher=teacher)
    assert all(value.isfinite() for value in losses.values())
    learner(IMAGES, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2, theirs, SIZES)
    odd = [target(labels=(9,)), TARGETS[1]]  # of an unlabelled image nothing is read
    learner.calls = 0
    learner(IMAGES, odd, theirs, SIZES, labelled=[False, True])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (changed(labels=(-1,)), "targets[0]: labels from -1 to -1, expected 0 to 2 (there is no label for the backg"),
        (changed(labels=(3,)), "targets[0]: labels from 3 to 3, expected 0 to 2"),
        (changed(boxes=((4, 4, float("nan"), 50),)), "targets[0]: box 0 is [4.0, 4.0, nan, 50.0], expected xyxy in pi"),
        (changed(boxes=((60, 30, 20, 10),)), "of the padded batch, 96 wide and 64 high, with x1 < x2 and y1 < y2 (not"),
        (changed(boxes=((200, 30, 220, 60),)), "targets[0]: box 0 is [200.0, 30.0, 220.0, 60.0], expected xyxy"),
        (changed(boxes=((0.1, 0.1, 0.5, 0.9),)), "every box is within 0 to 1, expected xyxy in pixels"),
        (changed(labels=(0, 1)), "boxes and labels have the shapes (1, 4) and (2,), expected (M, 4) and (M,)"),
        ([{"boxes": torch.zeros(1, 4)}, TARGETS[1]], "targets[0] has no labels: expected boxes (M, 4) and labels"),
    ],
)
def test_wrong_targets_are_named(targets, message, learner, theirs):
    with pytest.raises(UserError, match=re.escape(message)):
        learner(IMAGES, targets, theirs, SIZES)


def test_all_faults_of_a_batch_at_once(learner, theirs):
    with pytest.raises(UserError) as refused:
        learner(255 * IMAGES, [target(labels=(7,)), target(boxes=((9, 9, 1, 1),))], theirs, SIZES)
    first, *faults = str(refused.value).splitlines()
    assert first == "Invalid input of the learner:"
    assert len(faults) == 3
    assert re.match(
        r"  - the images have values from [\d.]+ to 2\d\d[\d.]*: expected 0 to 1 \(divide them by", faults[0]
    )


def test_images_that_are_normalised_and_bytes(learner, teacher, theirs):
    with pytest.raises(UserError, match=r"values from -2.* expected 0 to 1 \(a detector normalises them itself\)"):
        learner((IMAGES - 0.5) / 0.22, TARGETS, theirs, SIZES)
    with torch.no_grad():
        other = teacher(255 * IMAGES, SIZES)
    with pytest.raises(UserError, match="the images of the teacher's outputs have values from"):
        learner(IMAGES, TARGETS, other, SIZES)


def test_outputs_of_another_order_are_named_and_of_other_colours_are_not(learner, teacher, theirs):
    swapped = theirs.of_images([1, 0])
    with pytest.raises(UserError, match="image 0 of the batch is image 1 of theirs; compute them from the same batch"):
        learner(IMAGES, TARGETS, swapped)
    with torch.no_grad():
        darker = teacher(0.8 * IMAGES, SIZES)
    for call in (darker, replace(swapped, origin=None), theirs.of_images([0, 1])):
        learner.calls = 0
        learner(IMAGES, TARGETS, call, SIZES)
    same = IMAGES[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        twice = teacher(same, SIZES)
    learner.calls = 0
    learner(same, TARGETS, twice, SIZES)


def test_modes_are_checked_in_every_call(learner, teacher, theirs):
    learner(IMAGES, TARGETS, theirs, SIZES)
    learner.student.eval()
    with pytest.raises(
        UserError, match=r"student fcos_mobilenet_v2 is in eval\(\) while it is trained: call student.tr"
    ):
        learner(IMAGES, TARGETS, theirs, SIZES)
    learner.train()
    with (
        torch.no_grad(),
        pytest.raises(UserError, match=r"without gradients \(torch.no_grad or inference_mode\), so no"),
    ):
        learner(IMAGES, TARGETS, theirs, SIZES)
    with torch.inference_mode(), pytest.raises(UserError, match="without gradients"):
        learner(IMAGES, TARGETS, theirs, SIZES)
    trained = replace(theirs, origin=Origin(theirs.origin.pixels, training=True))
    with pytest.raises(UserError, match=r"teacher's outputs were computed in train\(\).* call teacher.eval\(\) first"):
        learner(IMAGES, TARGETS, trained, SIZES)
    learner.eval()
    with torch.no_grad():
        assert learner(IMAGES, TARGETS, theirs, SIZES)["hint_feature"] > 0  # a loss is measured


def test_the_student_is_not_its_own_teacher(learner):
    student = learner.student
    with torch.no_grad():
        own = student(IMAGES, SIZES)
    with pytest.raises(UserError, match=r"computed in train\(\)"):
        learner(IMAGES, TARGETS, own, SIZES)
    hint = METHODS["hint"](student.spec, student.spec)
    learner = Learner(student.eval(), [hint]).eval()
    with torch.no_grad():
        own = student(IMAGES, SIZES)
    with pytest.raises(UserError, match="The student is its own teacher, so there is nothing to learn from it"):
        learner(IMAGES, TARGETS, own, SIZES, teacher=student)
    learner(IMAGES, TARGETS, own, SIZES)  # a copy of the student may be the start of an average of its weights
    learner.calls = CHECK_EVERY
    with pytest.raises(UserError, match="The teacher's features equal the student's, after steps of training"):
        learner(IMAGES, TARGETS, own, SIZES)


def test_values_are_checked_at_first_and_now_and_then(learner, theirs, monkeypatch):
    checked = []
    monkeypatch.setattr("understudy.learner.check_values", lambda *_: checked.append(learner.calls))
    for _ in range(3):
        learner(IMAGES, TARGETS, theirs, SIZES)
    assert checked == [0]
    learner.calls = CHECK_EVERY
    learner(IMAGES, TARGETS, theirs, SIZES)
    assert checked == [0, CHECK_EVERY]
    assert "calls" not in "".join(learner.state_dict())


def test_labels_of_a_second_stage():
    """The record of a Faster R-CNN scores objectness alone; its labels are those of its second stage."""
    detector = small("faster_rcnn")
    assert (detector.spec.num_classes, detector.num_labels) == (1, 3)
    with pytest.raises(UserError, match="labels from 3 to 3, expected 0 to 2"):
        Learner(detector)(IMAGES, changed(labels=(3,)), image_sizes=SIZES)
    detector.network.roi_heads.box_predictor = torch.nn.Identity()
    assert detector.num_labels is None


def test_an_optimizer_that_lacks_parameters_is_refused(learner):
    learner.check_optimizer(torch.optim.SGD(learner.parameters(), lr=0.1))
    message = r"The optimizer lacks 10 of the \d+ trained parameters, .*: methods.0.adapters.0.weight, .* and 6 more\."
    with pytest.raises(UserError, match=message):
        learner.check_optimizer(torch.optim.SGD(learner.student.parameters(), lr=0.1))
    learner.methods.requires_grad_(False)
    learner.check_optimizer(torch.optim.SGD(learner.student.parameters(), lr=0.1))


def test_a_method_that_raises_is_named_and_its_error_is_the_cause(learner, theirs, monkeypatch):
    monkeypatch.setattr(METHODS["hint"], "forward", lambda *_: {}["nothing"])
    with pytest.raises(
        MethodError, match=r"The method hint \(understudy.methods.hint:Hint\) raised KeyError: 'nothing'"
    ) as e:
        learner(IMAGES, TARGETS, theirs, SIZES)
    assert isinstance(e.value.__cause__, KeyError)
