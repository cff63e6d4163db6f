"""The teacher's detections on unlabelled images are objects of the student's own loss."""

import pytest
import torch
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.data import Batch
from understudy.errors import UserError
from understudy.files import read_rows
from understudy.outputs import Outputs, Spec
from understudy.pairing import pair
from understudy.training.pseudo_labels import PseudoLabels


class Teacher:
    """Finds the same in every image, and counts the images."""

    def __init__(self, boxes, scores, labels):
        self.found = {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}
        self.images: list[int] = []

    def detect(self, outputs, image_sizes):
        self.images.append(len(image_sizes))
        return [self.found] * len(image_sizes)


def batch_of(labelled: list[bool]) -> tuple[Batch, Outputs]:
    own = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([1])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    count = len(labelled)
    targets = [own if known else nothing for known in labelled]
    batch = Batch(torch.zeros(count, 3, 32, 32), targets, [(32, 32)] * count, [(32, 32)] * count, [0] * count, labelled)
    return batch, Outputs([], [torch.zeros(count, 1, 4, 4)], [], [])


def pairing(student: list[str], teacher: list[str]):
    specs = [
        Spec(channels=(8,), strides=(8,), num_anchors=1, num_classes=len(names), name=role)
        for role, names in (("student", student), ("teacher", teacher))
    ]
    return pair(*specs, student, teacher)


BOXES = [[1.0, 1, 8, 8], [2.0, 2, 6, 6], [3.0, 3, 9, 9], [4.0, 4, 4, 9]]


def test_detections_above_the_score_are_objects_of_the_students_classes():
    teacher = Teacher(BOXES, [0.5, 0.9, 0.49, 0.9], [2, 0, 2, 2])
    labels = PseudoLabels(0.5, teacher, pairing(["cat", "dog"], ["cow", "cat", "dog"]), 3)
    batch, outputs = batch_of([True, False, False])
    found = labels.added_to(batch, outputs)
    assert teacher.images == [2]
    assert found.labelled == [True, True, True]
    assert found.targets[0] is batch.targets[0]
    for target in found.targets[1:]:  # the cow is of no class of the student, the last box is empty
        assert target["boxes"].tolist() == [[1, 1, 8, 8]]
        assert target["labels"].tolist() == [1]
    assert batch.labelled == [True, False, False]


def test_an_image_without_one_stays_unlabelled_and_many_of_them_are_remarked_on_once(capsys):
    labels = PseudoLabels(0.95, Teacher(BOXES, [0.9] * 4, [0] * 4), pairing(["cat"], ["cat"]), 1)
    for _ in range(60):
        batch, outputs = batch_of([True, False, False])
        assert labels.added_to(batch, outputs).labelled == [True, False, False]
    said = capsys.readouterr().err
    assert said.count("pseudo_labels=0.95: the teacher has no detection of this score in the first 100 unlabelled") == 1


def test_a_run_trains_on_them_and_is_resumed_to_the_bit(tiny, trained, unlabelled, tmp_path):
    keys = {**tiny, "teacher": trained, "data.unlabelled": unlabelled, "data.unlabelled_batch": 1, "log_every": 1}
    without = understudy.distill(keys, run=tmp_path / "without")
    keys["pseudo_labels"] = 0.06
    run = understudy.distill(keys, run=tmp_path / "run")
    first, other = (read_rows(folder / "losses.csv")[0] for folder in (run, without))
    assert first["classification"] != other["classification"]
    assert first["pkd_feature"] == other["pkd_feature"]
    with at_step(3, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.distill(keys, run=tmp_path / "stopped")
    assert_same(understudy.resume(tmp_path / "stopped"), run)


def test_without_unlabelled_images_they_are_refused(tiny, trained, tmp_path):
    with pytest.raises(UserError, match=r"pseudo_labels=0.5 has no effect without unlabelled images. Add data.unlab"):
        understudy.distill(tiny, run=tmp_path / "run", teacher=trained, pseudo_labels=0.5)
