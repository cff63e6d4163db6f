"""Teacher and student of different kinds: levels by stride, classes by name, and records reduced to what both have."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from understudy.detectors import Detector, build_detector
from understudy.errors import UserError
from understudy.learner import Learner
from understudy.methods import METHODS, Method, build_methods
from understudy.methods.base import anchor_differences
from understudy.outputs import Outputs, Spec, Truth, flatten_levels
from understudy.pairing import Pairing, match_names, pair

COCO = ("person", "bicycle", "car", "dog", "cat")
STUDENT = Spec((6, 6, 6), (8, 16, 32), 2, 3, stage_channels=(3, 4), stage_strides=(8, 16), name="little")
TEACHER = Spec((9, 9, 9), (4, 8, 16), 1, 5, stage_channels=(3, 4, 5), stage_strides=(4, 8, 16), name="big")
CLASSES = ("Cat ", "unicorn", "person")


def record(spec: Spec, side: int = 64, images: int = 2) -> Outputs:
    """A record in which every number is another."""
    generator = torch.Generator().manual_seed(1)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    cells = [side // stride for stride in spec.strides]
    logits = [some(images, n, n, spec.num_anchors, spec.num_classes) for n in cells]
    return Outputs(
        stages=[
            some(images, c, side // s, side // s) for c, s in zip(spec.stage_channels, spec.stage_strides, strict=True)
        ],
        features=[some(images, c, n, n) for c, n in zip(spec.channels, cells, strict=True)],
        class_logits=logits,
        box_raw=[some(images, n, n, spec.num_anchors, 4) for n in cells],
        anchors=[some(n, n, spec.num_anchors, 4) for n in cells],
        extra={"centerness": flatten_levels(logits)[..., 0].clone()},
        image_sizes=((64, 64), (60, 50)),
    )


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_match_without_regard_to_case_blanks_and_order():
    assert match_names((" Person", "cat", "bus"), COCO) == [0, 4, None]
    assert match_names(("cat", "Cat"), ("Cat", "cat")) == [1, 0]  # where the case tells two apart, it does
    assert match_names((), COCO) == []


def test_no_class_in_common_shows_both_label_spaces_and_what_is_close():
    with pytest.raises(UserError) as failure:
        pair(STUDENT, TEACHER, ("persons", "tree", "Bycicle"), COCO)
    message = str(failure.value)
    assert "the student has persons, tree, Bycicle; the teacher has person, bicycle, car, dog, cat" in message
    assert "'persons' of the student is close to 'person' of the teacher" in message
    assert "'Bycicle' of the student is close to 'bicycle' of the teacher" in message
    assert "'tree'" not in message


def test_everything_that_cannot_be_paired_is_said_at_once():
    with pytest.raises(UserError) as failure:
        pair(replace(STUDENT, strides=(32, 64, 128)), TEACHER, ("a", "b"), COCO)
    message = str(failure.value)
    assert "no level of the same stride: the student little has (32, 64, 128), the teacher big (4, 8, 16)" in message
    assert "little has 3 classes, and 2 names were given for them: a, b" in message
    assert "no class of the same name" in message
    with pytest.raises(
        UserError, match=r"numbers of classes: the student little has 3, the teacher big 5. Give the na"
    ):
        pair(STUDENT, TEACHER)
    with pytest.raises(UserError, match="of one of the two"):
        pair(STUDENT, TEACHER, CLASSES)


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
        "classes the teacher does not know, learned from labels alone: unicorn; classes of the teacher that are not "
        "used: bicycle, car, dog; levels are compared at strides 8, 16, not at 4, 32, which only one of the two has"
    )
    assert pairing.facts()["classes"] == ["Cat ", "person"]


def test_neighbouring_classes_are_a_view():
    whole = record(TEACHER)
    logits = pair(STUDENT, TEACHER, ("bicycle", "car", "tree"), COCO).teacher_record(whole).class_logits[0]
    assert logits.data_ptr() == whole.class_logits[1][..., 1:].data_ptr()
    assert torch.equal(logits, whole.class_logits[1][..., 1:3])


def test_the_truth_keeps_what_the_teacher_knows():
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
    two_stage = replace(STUDENT, num_classes=1, objectness=True, family="faster_rcnn", name="two_stage")
    pairing = pair(two_stage, TEACHER, CLASSES, COCO)
    assert (pairing.student.num_classes, pairing.teacher.num_classes) == (1, 2)
    assert pairing.student_record(record(two_stage)).class_logits[0].shape[-1] == 1
    assert pair(STUDENT, two_stage, CLASSES, CLASSES).teacher.num_classes == 1
    assert pair(STUDENT, two_stage).note == ""  # without names nothing is known of the RPN's classes


# --- detectors --------------------------------------------------------------------------------------------------------


def tiny(name: str, classes: int = 3, **options: Any) -> Detector:
    torch.manual_seed(0)
    smallest: dict[str, Any] = {"neck_channels": 32, "width_mult": 0.25, "norm": "frozen"}
    return build_detector(name, classes, **smallest | options)


FAMILIES = {
    "retinanet": lambda **o: tiny("retinanet_resnet18", **o),
    "fcos": lambda **o: tiny("fcos_mobilenet_v2", **o),
    "gfl": lambda **o: tiny("gfl_resnet18", **o),
    "faster_rcnn": lambda **o: tiny("faster_rcnn_resnet18", **o),
}
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 40, 50], [30, 20, 90, 60]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.tensor([[8.0, 8, 50, 50]]), "labels": torch.tensor([1])},
]
NAMES = ("a", "b", "c")


def step(student: Detector, teacher: Detector, pairing: Pairing, **options) -> dict[str, torch.Tensor]:
    """The losses of a step of FRS, after checking that its gradient reaches the student and every adapter."""
    entries = {"frs": {"feature_weight": 1, "class_weight": 1, **options}}
    methods, weights = build_methods(entries, pairing.student, pairing.teacher)
    learner = Learner(student, methods, pairing)
    with torch.no_grad():
        theirs = teacher.eval()(IMAGES, [(64, 96), (50, 80)])
    losses = learner(IMAGES, TARGETS, theirs, [(64, 96), (50, 80)])
    assert set(weights) == set(learner.distillation_terms) < set(losses)
    for name in weights:
        assert losses[name].isfinite()
        assert losses[name] > 0
        wanted = [parameter for parameter in student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(losses[name], wanted, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients), name
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in learner.methods.parameters())
    return losses


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
def test_detectors_of_different_kinds(teacher, student, options):
    names = ("c", "B ", "other", "a")
    teaching, learning = FAMILIES[teacher](classes=4, neck_channels=64), FAMILIES[student]()
    pairing = pair(learning.spec, teaching.spec, NAMES, names)
    assert pairing.unused == ("other",)
    step(learning, teaching, pairing, **options)


@pytest.mark.parametrize(("teacher", "student"), [("gfl", "retinanet"), ("retinanet", "fcos"), ("faster_rcnn", "fcos")])
def test_what_cannot_be_compared_is_refused_with_the_way_out(teacher, student):
    pairing = pair(FAMILIES[student]().spec, FAMILIES[teacher]().spec, NAMES, NAMES)
    weights = {"feature_weight": 1, "class_weight": 1}
    with pytest.raises(UserError, match=r"frs can serve with methods.frs.class_weight=0") as failure:
        build_methods({"frs": weights}, pairing.student, pairing.teacher)
    assert pairing.student.name in str(failure.value)
    assert pairing.teacher.name in str(failure.value)


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
    student = tiny("fcos_resnet18")
    teacher = tiny(**{"name": "fcos_resnet18"} | of_teacher)
    names = ("x", "c", "a", "y", "b") if "classes" in of_teacher else NAMES
    step(student, teacher, pair(student.spec, teacher.spec, NAMES, names))


def test_with_a_pairing_of_equals_the_losses_are_those_without():
    student, teacher = tiny("fcos_resnet18"), tiny("fcos_resnet18", neck_channels=64).eval()
    pairing = pair(student.spec, teacher.spec, NAMES, NAMES)
    (method,), _ = build_methods({"frs": {}}, student.spec, teacher.spec)
    with torch.no_grad():
        theirs = teacher(IMAGES)
    student.eval()
    without = Learner(student, [method])(IMAGES, TARGETS, theirs)
    for name, value in Learner(student, [method], pairing)(IMAGES, TARGETS, theirs).items():
        assert torch.equal(value, without[name]), name


def test_a_learner_without_the_pairing_of_its_methods_is_refused():
    student, teacher = tiny("fcos_resnet18"), tiny("faster_rcnn_resnet18")
    pairing = pair(student.spec, teacher.spec, NAMES, NAMES)
    methods, _ = build_methods({"frs": {"class_weight": 0}}, pairing.student, pairing.teacher)
    with pytest.raises(UserError, match=r"strides \(8, 16, 32, 64\), not .* or give the Learner the pairing"):
        Learner(student, methods)


def test_a_learner_says_what_it_was_given_wrong():
    student, teacher = tiny("fcos_resnet18"), tiny("fcos_resnet18").requires_grad_(False).eval()
    methods, _ = build_methods({"hint": {}}, student.spec, teacher.spec)
    images, targets = torch.rand(2, 3, 64, 64), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2
    with pytest.raises(UserError, match="trains an opened detector, got FCOS: open_detector"):
        Learner(student.network, methods)
    assert len(Learner(student, (method for method in methods)).methods) == 1
    for wrong in ("hint", ["hint"], methods[0], None):
        with pytest.raises(UserError, match="takes a list of methods"):
            Learner(student, wrong)
    wide = tiny("fcos_resnet18", neck_channels=24)
    with pytest.raises(UserError, match=r"hint was built for fcos_resnet18.*channels \(32, 32, 32, 32, 32\), not \(24"):
        Learner(wide, methods)
    learner = Learner(student, methods)
    with torch.no_grad():
        outputs = teacher(images)
    learner(images, targets, outputs)
    for wrong, message in (
        ((images, targets, None), "teacher.images., got NoneType"),
        ((images, targets, teacher), "got FCOSDetector"),
        ((images, targets, outputs.of_images([0])), "are of 1 images, and the batch has 2"),
        ((images, targets[:1], outputs), "targets has 1 entries for 2 images"),
        ((images, targets, outputs, None, [True]), "labelled has 1 entries for 2 images"),
        ((torch.rand(2, 3, 128, 64), targets, outputs), "Level sizes differ"),  # also in a later step
    ):
        with pytest.raises(UserError, match=message):
            learner(*wrong)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"odd_one": torch.zeros(())}, r"terms, odd_term; it returned odd_one of shape \(\)"),
        ({"odd_term": torch.zeros(2)}, r"it returned odd_term of shape \(2,\)"),
        ({"odd_term": 0.5}, "it returned odd_term = 0.5"),
        ({}, "it returned none"),
        (torch.zeros(()), "has to return a dict of odd_term, got Tensor"),
        (None, "got NoneType"),
    ],
)
def test_a_method_has_to_return_a_scalar_for_each_term(found, message):
    class Odd(Method):
        name, terms, source, weights = "odd", ("term",), "none", {}

        def forward(self, student, teacher, truth):
            return found

    student = tiny("fcos_resnet18")
    images, targets = torch.rand(1, 3, 64, 64), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]
    with torch.no_grad():
        outputs = student(images)
    with pytest.raises(UserError, match=message):
        Learner(student, [Odd(student.spec, student.spec)])(images, targets, outputs)


# --- anchors ---------------------------------------------------------------------------------------------------------

COMPARING = ("frs", "soft_labels", "rank_mimicking", "bckd", "pfi", "crosskd")


@pytest.mark.parametrize("name", COMPARING)
def test_anchors_of_other_sizes_are_not_compared(name):
    student, teacher = (tiny("retinanet_resnet18", anchor_scale=scale) for scale in (4, 8))
    method = METHODS[name]
    assert not set(method.obstacles(student.spec, student.spec)) & set(method.terms)
    message = " ".join(method.obstacles(student.spec, teacher.spec).values())
    assert "in the first cell of stride 8 the student retinanet_resnet18 has an anchor of 46 x 22 pixels" in message


def test_anchors_that_were_rounded_are_the_same():
    for family in ("retinanet", "faster_rcnn"):
        rounded, exact = (tiny(f"{family}_resnet18", conventions=name) for name in ("torchvision", "mmdet"))
        assert rounded.spec.first_anchors != exact.spec.first_anchors
        assert anchor_differences(rounded.spec, exact.spec, raw=True) == []


def test_distances_are_compared_from_the_same_points_only():
    corner, middle = (tiny("fcos_resnet18", conventions=name).spec for name in ("torchvision", "mmdet"))
    corner = replace(corner, box_code=middle.box_code)
    assert anchor_differences(corner, middle) == []  # scores, and decoded boxes
    (message,) = anchor_differences(corner, middle, raw=True)
    assert "the point (0, 0)" in message
    assert "the point (4, 4)" in message
    assert "box" not in METHODS["soft_labels"].obstacles(corner, middle)
    for obstacles in (
        METHODS["soft_labels"].obstacles(corner, middle, boxes="raw"),
        METHODS["frs"].obstacles(corner, middle),
    ):
        assert "the point (4, 4)" in obstacles["box"]
        assert "class" not in obstacles


def test_anchors_go_with_their_levels():
    student, teacher = tiny("fcos_resnet18").spec, tiny("faster_rcnn_resnet18").spec
    common = pair(replace(student, objectness=True, num_classes=1), teacher)
    assert common.teacher.first_anchors == teacher.first_anchors[1:]
    assert common.student.first_anchors == student.first_anchors[:4]


# --- images without labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labelled", [(True, True, False), (False, True, False, True)])
def test_task_losses_are_those_of_the_labelled_images_alone(family, labelled):
    student = FAMILIES[family]()
    images = torch.rand(len(labelled), 3, 64, 96, generator=torch.Generator().manual_seed(5))
    sizes = [(64, 96), (60, 90), (50, 80), (64, 70)][: len(labelled)]
    targets = [TARGETS[number % 2] for number in range(len(labelled))]
    chosen = [number for number, known in enumerate(labelled) if known]
    student.eval()
    torch.manual_seed(7)  # a two-stage detector draws what it learns from
    mixed = Learner(student)(images, targets, image_sizes=sizes, labelled=labelled)
    torch.manual_seed(7)
    alone = Learner(student)(images[chosen], [targets[i] for i in chosen], image_sizes=[sizes[i] for i in chosen])
    assert list(mixed) == list(alone)
    for name in alone:
        torch.testing.assert_close(mixed[name], alone[name], rtol=1e-5, atol=1e-6, msg=name)


def test_unlabelled_images_are_seen_by_the_methods_and_ignored_in_the_truth():
    student, teacher = FAMILIES["fcos"](), FAMILIES["fcos"]().eval()
    (method,), _ = build_methods({"frs": {}}, student.spec, teacher.spec)
    learner, seen = Learner(student, [method]), []
    method.register_forward_hook(lambda module, arguments, result: seen.append(arguments))
    with torch.no_grad():
        theirs = teacher(IMAGES)
    learner(IMAGES, TARGETS, theirs, labelled=[False, True])
    (own, _, truth) = seen.pop()
    assert len(own.features[0]) == 2
    assert (truth.gt_index[0] == -2).all()
    assert torch.equal(truth.gt_index[1], student.assign(own, TARGETS)[1])
    assert (truth.gt_index[1] >= 0).any()
    assert [len(target["labels"]) for target in truth.targets] == [0, 1]

    losses = learner(IMAGES, TARGETS, theirs, labelled=[False, False])
    assert list(losses) == ["frs_feature", "frs_class"]
    assert (seen.pop()[2].gt_index == -2).all()
    sum(losses.values()).backward()
    assert Learner(student)(IMAGES, TARGETS, labelled=[False, False]) == {}
