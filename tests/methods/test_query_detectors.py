"""Teachers and students with queries: features serve every method that reads features, and the others say why not."""

import pytest
import torch
from pairs import OBJECTS, tiny_detector
from query_detectors import CODE, DETR, RTDETR

from understudy.boxes import decode
from understudy.errors import UserError
from understudy.learner import Learner
from understudy.methods import METHODS
from understudy.methods.loading import build_methods
from understudy.outputs import Truth
from understudy.pairing import pair

OF_FEATURES = {"features", "objects", "stages", "student_anchors"}
DENSE = {"class_logits", "cell_scores", "teacher_scores", "boxes", "box_raw", "predictions"}
IMAGES = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
NAMES = ("cat", "dog", "cow")


def frozen(kind, **options):
    torch.manual_seed(1)
    return kind(**options).requires_grad_(False).eval()


def entries(method, common) -> dict:
    """All terms that the pair serves, with weight 1."""
    obstacles = method.obstacles(common.student, common.teacher)
    return {f"{term}_weight": 0 if term in obstacles else 1 for term in method.all_terms()}


def test_specs_state_the_kind_of_predictions():
    detr, both = DETR().spec, RTDETR().spec
    assert (detr.dense, detr.num_anchors, detr.queries, detr.decoder_layers, detr.num_classes) == (False, 0, 100, 2, 3)
    assert (both.dense, both.num_anchors, both.queries, both.box_code) == (True, 1, 20, CODE)
    assert detr.predictions == "a set of 100 queries"
    assert both.predictions == "dense predictions and a set of 20 queries"


def test_a_record_of_queries_is_cut_to_images_and_to_common_classes():
    teacher = frozen(DETR)
    outputs = teacher(IMAGES)
    common = pair(tiny_detector("fcos", 16, 0).spec, teacher.spec, NAMES, ("cow", "horse", "cat"))
    record = common.teacher_record(outputs.of_images([1]))
    assert record.class_logits == []
    assert common.teacher.strides == (32,)
    assert common.unknown == ("dog",)
    torch.testing.assert_close(record.queries.class_logits[-1], outputs.queries.class_logits[-1][1:][..., [2, 0]])
    torch.testing.assert_close(record.queries.boxes[0], outputs.queries.boxes[0][1:])


@pytest.mark.parametrize("kind", [DETR, RTDETR])
@pytest.mark.parametrize("name", METHODS)
def test_methods_of_features_train_a_student_and_the_others_say_what_they_miss(name, kind):
    student, teacher = tiny_detector("fcos", 16, seed=5), frozen(kind)
    common, method = pair(student.spec, teacher.spec), METHODS[name]
    obstacles = method.obstacles(common.student, common.teacher)
    for term, reads in method.reads.items():
        if set(reads) <= OF_FEATURES and name != "pkd":  # which compares equal channels, and is served below
            assert term not in obstacles, obstacles
        elif kind is DETR and set(reads) & DENSE:
            assert "the teacher detr_tiny has no dense predictions: it has a set of 100 queries" in obstacles[term]
    given = entries(method, common)
    if not any(given.values()):
        with pytest.raises(UserError, match=r"(?s)Invalid method configuration.*detr_tiny"):
            build_methods({name: dict.fromkeys(given, 1)}, common.student, common.teacher)
        return
    if name == "overhaul":
        return  # the margins of a network without batch normalisation: refused in words by its own test
    methods, weights = build_methods({name: given}, common.student, common.teacher)
    learner = Learner(student, methods, common)
    with torch.no_grad():
        teacher_outputs = teacher(IMAGES)
    losses = learner(IMAGES, OBJECTS, teacher_outputs, teacher=teacher)
    for term in weights:
        gradients = torch.autograd.grad(losses[term], list(student.parameters()), retain_graph=True, allow_unused=True)
        assert losses[term].isfinite()
        assert any(gradient is not None and gradient.any() for gradient in gradients), term


def test_pkd_serves_equal_channels():
    student, teacher = tiny_detector("fcos", 16, seed=5), frozen(DETR)
    common = pair(student.spec, teacher.spec)
    (method,), _ = build_methods({"pkd": {}}, common.student, common.teacher)
    losses = Learner(student, [method], common)(IMAGES, OBJECTS, teacher(IMAGES))
    assert losses["pkd_feature"] > 0


@pytest.mark.parametrize("kind", [DETR, RTDETR])
def test_they_are_students_too_and_get_the_targets(kind):
    torch.manual_seed(2)
    student, teacher = kind(), frozen(kind, channels=24)
    common = pair(student.spec, teacher.spec)
    methods, _ = build_methods({"hint": {}, "mgd": {"feature_weight": 1}}, common.student, common.teacher)
    learner = Learner(student, methods, common)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    history = []
    for _ in range(20):
        losses = learner(IMAGES, OBJECTS, teacher(IMAGES))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(losses["hint_feature"].item())
    assert history[-1] < 0.9 * history[0]
    only_unlabelled = learner(IMAGES, OBJECTS, teacher(IMAGES), labelled=[False, False])
    assert set(only_unlabelled) == {"hint_feature", "mgd_feature"}


def test_denoising_queries_see_the_targets_in_training_only():
    torch.manual_seed(2)
    detector = DETR()
    with_targets, without = (detector(IMAGES, targets=targets) for targets in (OBJECTS, None))
    assert not torch.equal(with_targets.queries.boxes[0], without.queries.boxes[0])
    detector.eval()
    with_targets, without = (detector(IMAGES, targets=targets) for targets in (OBJECTS, None))
    assert torch.equal(with_targets.queries.boxes[0], without.queries.boxes[0])


def test_a_new_box_code_is_one_entry():
    teacher = frozen(RTDETR)
    outputs = teacher(IMAGES)
    for ours, theirs in zip(decode(outputs, teacher.spec), teacher.decode(outputs), strict=True):
        assert torch.equal(ours, theirs)
    detr = frozen(DETR)
    with pytest.raises(UserError, match="detr_tiny has no dense boxes to decode: it has a set of 100 queries"):
        detr.decode(detr(IMAGES))


def test_an_unlabelled_image_of_a_set_is_ignored():
    truth = Truth([{"boxes": torch.zeros(0, 4)}] * 2, torch.tensor([[-1, 0, -1], [-2, -2, -2]]))
    assert truth.labelled.tolist() == [True, False]
