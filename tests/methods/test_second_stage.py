"""The teacher's second stage against slow loops written from the equations, on real detectors."""

import math

import pytest
import torch
from pairs import FAMILIES, OBJECTS, some_objects, tiny_detector, tiny_images, tiny_teacher
from references import sigmoid, softmax
from small_detectors import small
from torchvision.ops import box_iou, generalized_box_iou

from understudy.errors import UserError
from understudy.functional import softmax_label_loss
from understudy.learner import Learner
from understudy.methods import METHODS
from understudy.methods.loading import build_methods
from understudy.pairing import Pairing, pair

ONE_STAGE = [family for family in FAMILIES if family != "faster_rcnn"]
NAMES = ("cat", "dog", "cow")
IMAGES = tiny_images()


def opinionated_teacher():
    """A teacher whose second stage says something else of every box."""
    teacher = tiny_detector("faster_rcnn", 24, seed=7).requires_grad_(False).eval()
    predictor = teacher.network.roi_heads.box_predictor
    torch.nn.init.normal_(predictor.cls_score.weight, std=3.0, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(predictor.bbox_pred.weight, std=2.0, generator=torch.Generator().manual_seed(2))
    return teacher


def terms(student, teacher, common: Pairing | None = None, targets=OBJECTS, labelled=None, **options):
    """The method's terms, in a learner."""
    specs = (common.student, common.teacher) if common else (student.spec, teacher.spec)
    learner = Learner(student, [METHODS["second_stage"](*specs, **options)], common)
    with torch.no_grad():
        outputs = teacher(IMAGES, needs=learner.needs)
    torch.manual_seed(0)  # a Faster R-CNN draws samples for its own loss
    losses = learner(IMAGES, targets, outputs, labelled=labelled, teacher=teacher)
    return {name: losses[name] for name in ("second_stage_class", "second_stage_box")}


def giou(one, other) -> float:
    return generalized_box_iou(one[None], other[None]).item()


def slow(rows, entropy, counts=None, labels=None) -> dict[str, float]:
    """Both terms from (own scores, own boxes, teacher's logits, teacher's boxes) of each compared box."""
    classes = distance = mass = 0.0
    counts = counts or [1.0] * len(rows)
    ious = [
        [box_iou(one[None], other[None]).item() for one, other in zip(own_boxes, boxes, strict=True)]
        for _, own_boxes, _, boxes in rows
    ]
    best = {}
    for row, label in enumerate(labels or ()):
        best[row] = max(ious[other][label] for other in range(len(rows)) if labels[other] == label)
    fits = [[min(1.0, one / best[row]) if best.get(row) else 1.0 for one in ious[row]] for row in range(len(rows))]
    for row, ((own_logits, own_boxes, logits, boxes), count) in enumerate(zip(rows, counts, strict=True)):
        scores = softmax(logits.tolist())
        classes += count * entropy(own_logits.tolist(), scores, fits[row])
        sure = max(scores[1:])
        label = scores[1:].index(sure)
        distance += count * sure * (1 - giou(own_boxes[label], boxes[label]))
        mass += count * sure
    return {"second_stage_class": classes / sum(counts), "second_stage_box": distance / mass}


@pytest.mark.parametrize(("count", "background"), [(128, 1.5), (5, 1.0)])
def test_a_two_stage_student_against_a_slow_loop(count, background):
    student, teacher = tiny_detector("faster_rcnn", 16, seed=5), opinionated_teacher()
    own, theirs = student(IMAGES), teacher(IMAGES)
    regions = [each[:count] for each in student.proposals(own, training=True)]
    assert all(len(each) > 4 for each in regions)
    own_logits, own_boxes = student.score_boxes(own.features, regions)
    logits, boxes = teacher.score_boxes(theirs.features, regions)

    def entropy(one: list[float], scores: list[float], _: list[float]) -> float:
        found = softmax(one)
        weights = [background] + [1.0] * (len(one) - 1)
        return -sum(w * q * math.log(p) for w, q, p in zip(weights, scores, found, strict=True))

    expected = slow(list(zip(own_logits, own_boxes[:, 1:], logits, boxes[:, 1:], strict=True)), entropy)
    found = terms(student, teacher, count=count, background=background)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("balance", "quality"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("family", ONE_STAGE)
def test_a_one_stage_student_against_a_slow_loop(family, balance, quality):
    student, teacher = tiny_detector(family, 16, seed=5), opinionated_teacher()
    own, theirs = student(IMAGES), teacher(IMAGES)
    gt_index = student.assign(own, OBJECTS)
    scores = torch.cat([level.flatten(1, 3) for level in own.class_logits], 1)
    decoded = torch.cat([level.flatten(1, 3) for level in student.decode(own)], 1)
    regions = [decoded[image][gt_index[image] >= 0].detach() for image in range(2)]
    logits, boxes = teacher.score_boxes(theirs.features, regions)
    own_logits = torch.cat([scores[image][gt_index[image] >= 0] for image in range(2)])
    own_boxes = torch.cat(regions)[:, None].expand(-1, 3, -1)
    of_objects = teacher.score_boxes(theirs.features, [target["boxes"] for target in OBJECTS])
    first = (0, len(OBJECTS[0]["boxes"]))
    numbers = [first[image] + each for image in range(2) for each in gt_index[image].tolist() if each >= 0]
    labels = [torch.cat([target["labels"] for target in OBJECTS])[number].item() for number in numbers]
    parts = [labels.count(label) / len(labels) for label in range(3)]
    assert len({*labels}) > 1
    counts = [(1 / 3 + 0.05) / (parts[label] + 0.05) for label in labels]

    def entropy(one: list[float], soft: list[float], fits: list[float]) -> float:
        wanted = [score * (fit if quality else 1.0) for score, fit in zip(soft[1:], fits, strict=True)]
        pairs = zip(map(sigmoid, one), wanted, strict=True)
        return -sum(q * math.log(p) + (1 - q) * math.log(1 - p) for p, q in pairs)

    rows, fits = [], []
    for one, corners, row, number in zip(own_logits, own_boxes, range(len(numbers)), numbers, strict=True):
        answers = [(logits[row], boxes[row, 1:]), (of_objects[0][number], of_objects[1][number, 1:])]
        surest = [scores.softmax(0)[1:].max().item() for scores, _ in answers]  # in float32, where many are 1
        fits.append(surest[0] >= surest[1])
        rows.append((one, corners, *answers[surest.index(max(surest))]))
    assert len({*fits}) == 2  # of some the student's box, of some the object's
    expected = slow(rows, entropy, counts if balance else None, labels)
    found = terms(student, teacher, pair(student.spec, teacher.spec), class_balance=balance, quality=quality)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_the_value_of_other_code():
    """HqWei/Distillation-of-Faster-rcnn @ 2bcdefa, compute_loss_classification with mu=0, which has no other weight."""
    rows = torch.arange(12.0)
    own = 2 * torch.stack([torch.sin(rows * (column + 1) * 0.7) for column in range(4)], 1)
    theirs = 3 * torch.stack([torch.cos(rows * (column + 2) * 0.4) for column in range(4)], 1)
    assert softmax_label_loss(own, theirs.softmax(1), 1.0).mean().item() == pytest.approx(1.573345542, rel=1e-6)


def test_anchors_are_chosen_evenly_from_all_of_an_image():
    student, teacher = tiny_detector("retinanet", 16, seed=5), tiny_teacher("faster_rcnn")
    common = pair(student.spec, teacher.spec)
    seen = []
    score = type(teacher).score_boxes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(teacher), "score_boxes", lambda self, *args: seen.append(args[1]) or score(self, *args))
        for count in (1000, 3):
            terms(student, teacher, common, count=count)
    every, _, some, _ = seen  # its boxes, and the objects'
    assert all(len(each) > 3 for each in every)
    for whole, part in zip(every, some, strict=True):
        assert torch.equal(part, whole[[0, (len(whole) - 1) // 2, len(whole) - 1]])


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_matched_by_name_and_those_that_the_student_lacks_are_background(family):
    student, teacher = tiny_detector(family, 16, seed=5), opinionated_teacher()
    same = terms(student, teacher, pair(student.spec, teacher.spec, NAMES, NAMES))
    shuffled = opinionated_teacher()
    predictor = shuffled.network.roi_heads.box_predictor
    for layer, size in ((predictor.cls_score, 1), (predictor.bbox_pred, 4)):
        for values in (layer.weight.data, layer.bias.data):
            by_class = values.unflatten(0, (-1, size)).clone()
            values.copy_(by_class[[0, 3, 1, 2]].flatten(0, 1))
    renamed = terms(student, shuffled, pair(student.spec, shuffled.spec, NAMES, ("cow", "cat", "dog")))
    for name, value in same.items():
        assert renamed[name].item() == pytest.approx(value.item(), rel=1e-5)
    fewer = pair(student.spec, teacher.spec, NAMES, ("cat", "horse", "cow"))
    assert fewer.unknown == ("dog",)
    others = terms(student, teacher, fewer)
    assert all(value.isfinite() and value > 0 for value in others.values())
    assert others["second_stage_class"].item() != pytest.approx(same["second_stage_class"].item(), rel=1e-3)


@pytest.mark.parametrize("name", ["retinanet_resnet18", "faster_rcnn_resnet18"])
def test_another_number_of_classes_without_their_names_is_refused(name):
    student, teacher = small(name, classes=4), tiny_teacher("faster_rcnn")
    with pytest.raises(UserError, match=r"has 4 classes, the second stage of the teacher .* 3: match them by name"):
        terms(student, teacher, pair(student.spec, teacher.spec))


# --- pairs and batches ------------------------------------------------------------------------------------------------


def test_a_teacher_without_a_second_stage_is_refused():
    student, teacher = tiny_detector("faster_rcnn", 16, seed=5).spec, tiny_detector("retinanet", 16, seed=5)
    with pytest.raises(UserError, match=f"the teacher {teacher.spec.name} has no second stage"):
        build_methods({"second_stage": {}}, student, teacher.spec)
    with pytest.raises(UserError, match=f"{teacher.spec.name} has no second stage"):
        teacher.proposals(teacher(IMAGES))


def test_options_for_students_of_the_other_kind_are_refused():
    student, teacher = tiny_detector("fcos", 16, seed=5).spec, tiny_teacher("faster_rcnn").spec
    common = pair(student, teacher)
    with pytest.raises(UserError, match=r"scores no background: leave out methods\.second_stage\.background"):
        build_methods({"second_stage": {"background": 1.0}}, common.student, common.teacher)
    with pytest.raises(UserError, match=r"have no object: leave out methods\.second_stage\.class_balance"):
        build_methods({"second_stage": {"class_balance": False}}, teacher, teacher)


def test_an_unlabelled_image_takes_part_if_the_student_has_proposals_of_its_own():
    teacher = opinionated_teacher()
    for family in ("faster_rcnn", "retinanet"):
        student = tiny_detector(family, 16, seed=5)
        common = pair(student.spec, teacher.spec)
        whole = terms(student, teacher, common)
        half = terms(student, teacher, common, labelled=[True, False])
        same = half["second_stage_class"].item() == pytest.approx(whole["second_stage_class"].item(), rel=1e-5)
        assert same == (family == "faster_rcnn")


def test_no_box_of_the_student_adds_nothing():
    student, teacher = tiny_detector("retinanet", 16, seed=5), opinionated_teacher()
    found = terms(student, teacher, pair(student.spec, teacher.spec), targets=some_objects((0, 0)))
    assert all(value.item() == 0 and value.requires_grad for value in found.values())
