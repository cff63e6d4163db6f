"""The common ground of teacher and student: levels by stride, classes by name, and records reduced to it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_detectors import IMAGES, NAMES, SIZES, TARGETS, small

from understudy.class_matching import match_names
from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.learner import Learner
from understudy.methods.loading import build_methods
from understudy.outputs import Outputs, QueryOutputs, Spec, Truth, flatten_levels
from understudy.pairing import Pairing, pair

COCO = ("person", "bicycle", "car", "dog", "cat")
STUDENT = Spec((6, 6, 6), (8, 16, 32), 2, 3, stage_channels=(3, 4), stage_strides=(8, 16), name="little")
STAGES: dict[str, Any] = {
    "stage_channels": (3, 4, 5),
    "stage_strides": (4, 8, 16),
    "stage_relu": (False, True, False),
}
TEACHER = Spec((9, 9, 9), (4, 8, 16), 1, 5, **STAGES, name="big")
SET = replace(TEACHER, num_anchors=0, dense=False, queries=10, decoder_layers=2, name="detr")
CLASSES = ("Cat ", "unicorn", "person")


def record(spec: Spec, side: int = 64, images: int = 2) -> Outputs:
    """A record in which every number is another."""
    generator = torch.Generator().manual_seed(1)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    cells = [side // stride for stride in spec.strides]
    logits = [some(images, n, n, spec.num_anchors, spec.num_classes) for n in cells]
    stages = zip(spec.stage_channels, spec.stage_strides, strict=True)
    dense = {
        "class_logits": logits,
        "box_raw": [some(images, n, n, spec.num_anchors, 4) for n in cells],
        "anchors": [some(n, n, spec.num_anchors, 4) for n in cells],
        "extra": {"centerness": flatten_levels(logits)[..., 0].clone()},
    }
    of_layers = [[some(images, spec.queries, size) for _ in range(2)] for size in (spec.num_classes, 4)]
    return Outputs(
        stages=[some(images, c, side // s, side // s) for c, s in stages],
        features=[some(images, c, n, n) for c, n in zip(spec.channels, cells, strict=True)],
        image_sizes=((64, 64), (60, 50)),
        queries=QueryOutputs(*of_layers) if spec.queries else None,
        **(dense if spec.dense else {}),
    )


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_match_without_regard_to_case_blanks_and_order():
    assert match_names((" Person", "cat", "bus"), COCO) == [0, 4, None]
    assert match_names(("cat", "Cat"), ("Cat", "cat")) == [1, 0]  # where the case tells two apart, it does
    assert match_names((), COCO) == []


def test_another_name_of_a_class_is_said():
    pairing = pair(STUDENT, TEACHER, ("kitty", "unicorn", "person"), COCO, {"kitty": "cat"})
    assert pairing.classes == ("kitty", "person")
    assert pairing.note.startswith("classes matched under another name (student = teacher): kitty = cat; classes that")
    assert pairing.facts()["classes_of_another_name"] == {"kitty": "cat"}
    with pytest.raises(UserError, match=r"(?s)data\.aliases names classes that neither side has:.*- kity: no such cl"):
        pair(STUDENT, TEACHER, ("kitty", "unicorn", "person"), COCO, {"kity": "cat"})


def test_a_name_that_resembles_one_of_the_other_side_is_hinted_at():
    note = pair(STUDENT, TEACHER, ("bicycles", "unicorn", "person"), COCO).note
    assert note.endswith("If bicycles and bicycle are the same class: data.aliases='{bicycles: bicycle}'")


def test_no_common_class_lists_both_label_spaces_and_similar_names():
    with pytest.raises(UserError) as failure:
        pair(STUDENT, TEACHER, ("persons", "tree", "Bycicle"), COCO)
    message = str(failure.value)
    assert "the student has persons, tree, Bycicle; the teacher has person, bicycle, car, dog, cat" in message
    assert "'persons' of the student resembles 'person' of the teacher" in message
    assert "'Bycicle' of the student resembles 'bicycle' of the teacher" in message
    assert "'tree'" not in message


def test_all_reasons_why_two_cannot_be_paired_come_at_once():
    with pytest.raises(UserError) as failure:
        pair(replace(STUDENT, strides=(32, 64, 128)), TEACHER, ("a", "b"), COCO)
    message = str(failure.value)
    assert message.startswith("The student little and the teacher big cannot be paired:\n")
    assert "no level of the same stride: the student little has (32, 64, 128), the teacher big (4, 8, 16)" in message
    assert "little has 3 classes, got 2 names: a, b" in message
    assert "no class of the same name" in message
    with pytest.raises(
        UserError, match=r"numbers of classes: the student little has 3, the teacher big 5. Pass the class names of bo"
    ):
        pair(STUDENT, TEACHER)
    with pytest.raises(UserError, match="names of only one detector: pass both"):
        pair(STUDENT, TEACHER, CLASSES)
    with pytest.raises(UserError, match=r"takes two Specs, student.spec and teacher.spec; got str"):
        pair(STUDENT, "big")


# --- records ----------------------------------------------------------------------------------------------------------


def test_equal_detectors_lose_nothing_and_nothing_is_copied():
    pairing = pair(STUDENT, replace(STUDENT, name="same"), CLASSES, [name.upper() for name in CLASSES])
    whole = record(STUDENT)
    own, theirs = pairing.student_record(whole), pairing.teacher_record(whole)
    truth = Truth([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2, torch.zeros(2, 3))
    assert pairing.student == STUDENT
    assert pairing.note == ""
    assert pairing.truth(truth, whole).gt_index is truth.gt_index
    for reduced in (own, theirs):
        for name in ("stages", "features", "class_logits", "box_raw", "anchors"):
            assert all(a is b for a, b in zip(getattr(reduced, name), getattr(whole, name), strict=True)), name
        assert reduced.extra["centerness"] is whole.extra["centerness"]


def test_records_are_reduced_to_common_levels_and_classes_in_the_students_order():
    pairing = pair(STUDENT, TEACHER, CLASSES, COCO)
    own, theirs = record(STUDENT), record(TEACHER)
    student, teacher = pairing.student_record(own), pairing.teacher_record(theirs)
    assert student.level_sizes == teacher.level_sizes == [(8, 8), (4, 4)]
    for level in range(2):
        assert student.features[level] is own.features[level]
        assert teacher.box_raw[level] is theirs.box_raw[level + 1]
        assert teacher.anchors[level] is theirs.anchors[level + 1]
        assert torch.equal(student.class_logits[level], own.class_logits[level][..., [0, 2]])
        assert torch.equal(teacher.class_logits[level], theirs.class_logits[level + 1][..., [4, 0]])
    assert [stage.shape[1] for stage in student.stages] == [3, 4]
    assert [stage.shape[1] for stage in teacher.stages] == [4, 5]
    assert student.extra["centerness"].shape == (2, 2 * (64 + 16))
    assert torch.equal(teacher.extra["centerness"], theirs.extra["centerness"][:, 256:])
    assert teacher.image_sizes == theirs.image_sizes
    for spec, reduced in ((pairing.student, student), (pairing.teacher, teacher)):
        assert spec.channels == tuple(feature.shape[1] for feature in reduced.features)
        assert spec.strides == spec.stage_strides == (8, 16)
        assert spec.stage_channels == tuple(stage.shape[1] for stage in reduced.stages)
        assert spec.num_classes == reduced.class_logits[0].shape[-1] == 2
    assert pairing.note == (
        "classes that the teacher lacks, learned from labels alone: unicorn; unused classes of the teacher: bicycle, "
        "car, dog; levels are compared at strides 8, 16, not at 4, 32, which only one of the two has"
    )
    assert pairing.facts()["classes"] == ["Cat ", "person"]


def test_records_of_a_set_are_reduced_to_common_levels_and_classes():
    pairing = pair(STUDENT, SET, CLASSES, COCO)
    whole = record(SET)
    teacher = pairing.teacher_record(whole)
    assert [feature.shape[-1] for feature in teacher.features] == [8, 4]
    assert teacher.class_logits == teacher.box_raw == teacher.anchors == []
    for layer in range(2):
        assert torch.equal(teacher.queries.class_logits[layer], whole.queries.class_logits[layer][..., [4, 0]])
        assert teacher.queries.boxes[layer] is whole.queries.boxes[layer]
    assert (pairing.teacher.queries, pairing.teacher.num_classes) == (10, 2)
    back = pair(SET, STUDENT, COCO, CLASSES)  # the assignment of queries is of no level
    gt_index = torch.full((2, 10), -1)
    gt_index[0, :2] = torch.tensor([0, 1])
    targets = [{"boxes": torch.rand(2, 4), "labels": torch.tensor([2, 4])}, {"boxes": torch.rand(0, 4)}]
    targets[1]["labels"] = torch.zeros(0).long()
    truth = back.truth(Truth(targets, gt_index), whole)
    assert truth.gt_index[:, :3].tolist() == [[-2, 0, -1], [-1, -1, -1]]  # the teacher has no car
    assert truth.targets[0]["labels"].tolist() == [1]


def test_neighbouring_classes_are_a_view():
    whole = record(TEACHER)
    logits = pair(STUDENT, TEACHER, ("bicycle", "car", "tree"), COCO).teacher_record(whole).class_logits[0]
    assert logits.data_ptr() == whole.class_logits[1][..., 1:].data_ptr()
    assert torch.equal(logits, whole.class_logits[1][..., 1:3])


def test_the_truth_keeps_the_common_classes():
    whole = record(STUDENT)
    gt_index = torch.full((2, 2 * (64 + 16 + 4)), -1)
    gt_index[0, :6] = torch.tensor([0, 1, 2, 3, -2, -1])  # labels: unicorn, person, unicorn, cat
    gt_index[1, 0] = 0
    gt_index[1, -8:] = 0  # at the level that the teacher does not have
    boxes = torch.arange(16.0).view(4, 4)
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 2, 1, 0])},
        {"boxes": boxes[:1], "labels": torch.tensor([1])},
    ]
    truth = pair(STUDENT, TEACHER, CLASSES, COCO).truth(Truth(targets, gt_index), whole)
    assert truth.gt_index.shape == (2, 2 * (64 + 16))
    assert truth.gt_index[0, :6].tolist() == [-2, 0, -2, 1, -2, -1]
    assert truth.targets[0]["labels"].tolist() == [1, 0]
    assert torch.equal(truth.targets[0]["boxes"], boxes[[1, 3]])
    assert truth.gt_index[1, :2].tolist() == [-2, -1]
    assert (truth.gt_index[1] < 0).all()
    assert truth.targets[1]["boxes"].shape == (0, 4)
    assert [left.tolist() for left in truth.left_out] == [boxes[[0, 2]].tolist(), boxes[[0]].tolist()]
    assert truth.labelled.all()
    assert gt_index[1, -1] == 0  # the student's own truth is untouched


def test_objectness_has_no_classes_to_map():
    two_stage = replace(STUDENT, num_classes=1, objectness=True, two_stage=True, name="two_stage")
    pairing = pair(two_stage, TEACHER, CLASSES, COCO)
    assert (pairing.student.num_classes, pairing.teacher.num_classes) == (1, 2)
    assert pairing.student_record(record(two_stage)).class_logits[0].shape[-1] == 1
    assert pair(STUDENT, two_stage, CLASSES, CLASSES).teacher.num_classes == 1
    assert pair(STUDENT, two_stage).note == ""  # without names nothing is known of the RPN's classes


# --- detectors --------------------------------------------------------------------------------------------------------


def step(student: Detector, teacher: Detector, pairing: Pairing, **options) -> None:
    """Take a step of FRS; its gradient must reach the student and every adapter."""
    entries = {"frs": {"feature_weight": 1, "class_weight": 1, **options}}
    methods, weights = build_methods(entries, pairing.student, pairing.teacher)
    learner = Learner(student, methods, pairing)
    with torch.no_grad():
        theirs = teacher.eval()(IMAGES, SIZES)
    losses = learner(IMAGES, TARGETS, theirs, SIZES)
    assert set(weights) == set(learner.distillation_terms) < set(losses)
    for name in weights:
        assert losses[name].isfinite()
        assert losses[name] > 0
        wanted = [parameter for parameter in student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(losses[name], wanted, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients), name
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in learner.methods.parameters())


PAIRS = [
    ("gfl", "retinanet", {"scores": "cell"}),
    ("gfl", "fcos", {}),
    ("retinanet", "fcos", {"scores": "cell"}),
    ("faster_rcnn", "fcos", {"class_weight": 0}),
    ("faster_rcnn", "faster_rcnn", {}),
    ("retinanet", "faster_rcnn", {"class_weight": 0}),
    ("gfl", "gfl", {}),
]


@pytest.mark.parametrize(("teacher", "student", "options"), PAIRS)
def test_detectors_of_different_families(teacher, student, options):
    names = ("c", "B ", "other", "a")
    teaching, learning = small(teacher, 4, neck_channels=64), small(student)
    pairing = pair(learning.spec, teaching.spec, NAMES, names)
    assert pairing.unused == ("other",)
    step(learning, teaching, pairing, **options)


@pytest.mark.parametrize(
    "of_teacher",
    [
        {"name": "fcos_resnet34"},
        {"neck_channels": 64},
        {"image_mean": (0.4, 0.4, 0.4), "image_std": (1 / 255, 1 / 255, 1 / 255)},
        {"classes": 5},
    ],
    ids=["depth", "neck", "normalisation", "classes"],
)
def test_detectors_of_one_family_that_differ(of_teacher):
    student = small("fcos_resnet18")
    teacher = small(**{"name": "fcos_resnet18"} | of_teacher)
    names = ("x", "c", "a", "y", "b") if "classes" in of_teacher else NAMES
    step(student, teacher, pair(student.spec, teacher.spec, NAMES, names))
