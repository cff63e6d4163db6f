"""The learner: what it is given, what it asks of a method, and images without labels."""

import pytest
import torch
from small_detectors import BACKBONES, IMAGES, NAMES, TARGETS, small

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.learner import Learner
from understudy.methods import Method
from understudy.methods.loading import build_methods
from understudy.pairing import pair

NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}


def test_with_a_pairing_of_equals_the_losses_are_those_without():
    student, teacher = small("fcos_resnet18"), small("fcos_resnet18", neck_channels=64).eval()
    pairing = pair(student.spec, teacher.spec, NAMES, NAMES)
    (method,), _ = build_methods({"frs": {}}, student.spec, teacher.spec)
    with torch.no_grad():
        theirs = teacher(IMAGES)
    student.eval()
    without = Learner(student, [method])(IMAGES, TARGETS, theirs)
    for name, value in Learner(student, [method], pairing)(IMAGES, TARGETS, theirs).items():
        assert torch.equal(value, without[name]), name


def test_a_learner_without_the_pairing_of_its_methods_is_refused():
    student, teacher = small("fcos_resnet18"), small("faster_rcnn_resnet18")
    pairing = pair(student.spec, teacher.spec, NAMES, NAMES)
    methods, _ = build_methods({"frs": {"class_weight": 0}}, pairing.student, pairing.teacher)
    with pytest.raises(UserError, match=r"strides \(8, 16, 32, 64\), not .* or pass the pairing it was built from"):
        Learner(student, methods)


def test_wrong_arguments_are_refused_and_named():
    student, teacher = small("fcos_resnet18"), small("fcos_resnet18").requires_grad_(False).eval()
    methods, _ = build_methods({"hint": {}}, student.spec, teacher.spec)
    images, targets = torch.rand(2, 3, 64, 64), [NOTHING] * 2
    with pytest.raises(UserError, match=r"expects an opened detector, got FCOS\. Open it with open_detector"):
        Learner(student.network, methods)
    assert len(Learner(student, (method for method in methods)).methods) == 1
    for wrong in ("hint", ["hint"], methods[0], None):
        with pytest.raises(UserError, match="expects a list of methods"):
            Learner(student, wrong)
    wide = small("fcos_resnet18", neck_channels=24)
    with pytest.raises(
        UserError, match=r"hint was built for .* fcos_resnet18.*channels \(32, 32, 32, 32, 32\), not \(24"
    ):
        Learner(wide, methods)
    learner = Learner(student, methods)
    with torch.no_grad():
        outputs = teacher(images)
    learner(images, targets, outputs)
    for wrong, message in (
        ((images, targets, None), "teacher.images.; got NoneType"),
        ((images, targets, teacher), "got FCOSDetector"),
        ((images, targets, outputs.of_images([0])), "are of 1 images, the batch has 2"),
        ((images, targets[:1], outputs), "targets has 1 entries for 2 images"),
        ((images, targets, outputs, None, [True]), "labelled has 1 entries for 2 images"),
        ((torch.rand(2, 3, 128, 64), targets, outputs), "Level sizes differ"),  # also in a later step
    ):
        with pytest.raises(UserError, match=message):
            learner(*wrong)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small("fcos_resnet18")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"odd_one": torch.zeros(())}, r"terms, odd_term; got odd_one of shape \(\)"),
        ({"odd_term": torch.zeros(2)}, r"got odd_term of shape \(2,\)"),
        ({"odd_term": 0.5}, "got odd_term = 0.5"),
        ({}, "got none"),
        (torch.zeros(()), "must return a dict of odd_term, got Tensor"),
        (None, "got NoneType"),
    ],
)
def test_a_method_has_to_return_a_scalar_for_each_term(detector, found, message):
    class Odd(Method):
        name, terms, source, weights, reads = "odd", ("term",), "none", {}, {"term": ("features",)}

        def forward(self, student, teacher, truth, layers=None):
            return found

    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        outputs = detector.eval()(images)
    with pytest.raises(UserError, match=message):
        Learner(detector, [Odd(detector.spec, detector.spec)])(images, [NOTHING], outputs)


# --- images without labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("labelled", [(True, True, False), (False, True, False, True)])
def test_task_losses_are_those_of_the_labelled_images_alone(family, labelled):
    student = small(family)
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


def test_methods_get_unlabelled_images_whose_anchors_are_all_ignored():
    student, teacher = small("fcos"), small("fcos").eval()
    (method,), _ = build_methods({"frs": {}}, student.spec, teacher.spec)
    learner, given = Learner(student, [method]), []
    method.register_forward_hook(lambda module, arguments, result: given.append(arguments))
    with torch.no_grad():
        theirs = teacher(IMAGES)
    learner(IMAGES, TARGETS, theirs, labelled=[False, True])
    (own, _, truth, _) = given.pop()
    assert len(own.features[0]) == 2
    assert (truth.gt_index[0] == -2).all()
    assert torch.equal(truth.gt_index[1], student.assign(own, TARGETS)[1])
    assert (truth.gt_index[1] >= 0).any()
    assert [len(target["labels"]) for target in truth.targets] == [0, 1]

    losses = learner(IMAGES, TARGETS, theirs, labelled=[False, False])
    assert list(losses) == ["frs_feature", "frs_class"]
    assert (given.pop()[2].gt_index == -2).all()
    sum(losses.values()).backward()
    assert Learner(student)(IMAGES, TARGETS, labelled=[False, False]) == {}


# --- one forward pass -------------------------------------------------------------------------------------------------


class Two(Method):
    """A method that computes both of its terms, whichever were asked for."""

    name, terms, source, weights = "two", ("mean", "peak"), "none", {}
    reads = {"mean": ("features",), "peak": ("features",)}

    def forward(self, student, teacher, truth, layers=None):
        return {"two_mean": student.features[0].mean(), "two_peak": student.features[0].amax()}


def test_the_student_runs_once_and_the_teacher_is_no_member():
    student, teacher = small("fcos"), small("fcos", neck_channels=24).requires_grad_(False).eval()
    methods, _ = build_methods({"frs": {}}, student.spec, teacher.spec)
    learner, passes = Learner(student, methods), []
    student.network.head.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        theirs = teacher(IMAGES)
    losses = learner(IMAGES, TARGETS, theirs)
    assert list(losses) == ["classification", "bbox_regression", "bbox_ctrness", "frs_feature", "frs_class"]
    assert learner.distillation_terms == ("frs_feature", "frs_class")
    assert len(passes) == 1
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters() if parameter.requires_grad)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in key for key in learner.state_dict())


def test_a_term_that_was_not_asked_for_is_dropped_and_a_name_comes_once():
    detector = small("fcos")
    with torch.no_grad():
        outputs = detector.eval()(IMAGES)
    terms = Learner(detector, [Two(detector.spec, detector.spec, terms=("mean",))])(IMAGES, TARGETS, outputs)
    assert [name for name in terms if name.startswith("two")] == ["two_mean"]
    with pytest.raises(UserError, match="Several methods have the name two"):
        Learner(detector, [Two(detector.spec, detector.spec) for _ in range(2)])
