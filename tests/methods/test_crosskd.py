"""CrossKD: the end of the teacher's head run on the student's maps, and the losses of its predictions."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import predictions
import pytest
import torch
from references import sigmoid
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from tower_detectors import IMAGES, KINDS, tiny, tiny_teacher

from understudy.boxes import decode
from understudy.detectors import Detector, build_detector, open_detector
from understudy.errors import UserError
from understudy.functional import align_scale
from understudy.learner import Learner
from understudy.methods import METHODS
from understudy.methods.base import Layers
from understudy.methods.loading import build_methods
from understudy.outputs import Outputs, Truth
from understudy.pairing import pair

EVERY = pytest.mark.parametrize("kind", KINDS)
TARGETS = [
    {"boxes": torch.tensor([[6.0, 8, 50, 54]]), "labels": torch.tensor([1])},
    {"boxes": torch.tensor([[3.0, 4, 30, 40], [20, 20, 62, 60]]), "labels": torch.tensor([0, 1])},
]


def step(kind: str, student: Detector | None = None, teacher: Detector | None = None, **options):
    """A method on real detectors: the method, and what it is given in one step."""
    student, teacher = student or tiny(kind, 5), teacher or tiny_teacher(kind)
    method = METHODS["crosskd"](student.spec, teacher.spec, **options)
    own = student(IMAGES)
    with torch.no_grad():
        theirs = teacher(IMAGES)
    truth = Truth(TARGETS, student.assign(own, TARGETS))
    return method, own, theirs, truth, Layers(student, teacher, None, own, theirs)


# ------------------------------------------------------------------------------------------------- against a slow loop


def convolved(tower: nn.Module, feature: Tensor, first: int, last: int) -> Tensor:
    """Run a tower from behind the map of one convolution (-1: the input) to the map of another (4: to the end)."""
    number = -1
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            number += 1
        runs = first <= number < last if isinstance(layer, nn.ReLU) else first < number <= last
        if runs and isinstance(layer, nn.Conv2d | nn.GroupNorm | nn.ReLU):
            feature = torch.relu(feature) if isinstance(layer, nn.ReLU) else layer(feature)
    return feature


def by_hand(student: Detector, teacher: Detector, own: Outputs, theirs: Outputs, number: int):
    """What the teacher's predictors emit for the student's maps, each level (N, X, H, W), by half of the head."""
    found = {}
    for half, predictor in (("classification_head", "cls_logits"), ("regression_head", "bbox_reg")):
        mine, others = (getattr(detector.network.head, half) for detector in (student, teacher))
        found[predictor] = []
        for feature, target in zip(own.features, theirs.features, strict=True):
            raw, model = convolved(mine.conv, feature, -1, number), convolved(others.conv, target, -1, number)
            aligned = torch.empty_like(raw)
            for channel in range(raw.shape[1]):
                values, scale = raw[:, channel], model[:, channel]
                count = values.numel()
                mean, goal = values.sum() / count, scale.sum() / count
                spread = math.sqrt(((values - mean) ** 2).sum().item() / (count - 1)) + 1e-6
                wanted = math.sqrt(((scale - goal) ** 2).sum().item() / (count - 1))
                aligned[:, channel] = (values - mean) / spread * wanted + goal
            found[predictor].append(getattr(others, predictor)(convolved(others.conv, aligned, number, 4)))
    return found


def overlap(box: list[float], other: list[float]) -> tuple[float, float, float]:
    """Intersection, union and the area of the smallest box round both."""
    width = max(min(box[2], other[2]) - max(box[0], other[0]), 0)
    height = max(min(box[3], other[3]) - max(box[1], other[1]), 0)
    areas = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    hull = (max(box[2], other[2]) - min(box[0], other[0])) * (max(box[3], other[3]) - min(box[1], other[1]))
    return width * height, areas - width * height, hull


def slow_terms(kind: str, crossed: dict[str, list[Tensor]], teacher: Detector, theirs: Outputs, truth: Truth):
    """Both terms from their definition, anchor by anchor."""
    classes = boxes = amount = mass = 0.0
    first = 0
    family = kind.split(",")[0]
    head = teacher.network.head
    for level, (logits, raw) in enumerate(zip(crossed["cls_logits"], crossed["bbox_reg"], strict=True)):
        anchors, target, target_raw = theirs.anchors[level], theirs.class_logits[level], theirs.box_raw[level]
        height, width, per_cell = anchors.shape[:3]
        stride = teacher.spec.strides[level]
        shown = theirs.box_raw[level]
        for n, y, x, a in itertools.product(range(2), range(height), range(width), range(per_cell)):
            index = truth.gt_index[n, first + (y * width + x) * per_cell + a].item()
            anchor = anchors[y, x, a].tolist()
            middle = [(anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2]
            scores = [sigmoid(z) for z in target[n, y, x, a].tolist()]
            for k, soft in enumerate(scores):
                score = 1 / (1 + math.exp(-logits[n, a * 2 + k, y, x].item()))
                entropy = -(soft * math.log(score) + (1 - soft) * math.log(1 - score))
                classes += abs(score - soft) * entropy if index > -2 else 0
            if index == -2:
                continue
            if index >= 0:
                box = truth.targets[n]["boxes"][index].tolist()
                sides = [middle[0] - box[0], box[2] - middle[0], middle[1] - box[1], box[3] - middle[1]]
                across, down = sides[:2], sides[2:]
                central = math.sqrt(min(across) / max(across) * min(down) / max(down))
                amount += central if family == "fcos" else 1
            mass += max(scores)
            numbers = raw[n, a * (raw.shape[1] // per_cell) : (a + 1) * (raw.shape[1] // per_cell), y, x]
            if family == "gfl":
                numbers = (numbers * head.regression_head.scales[level]).view(4, -1)
                goal = target_raw[n, y, x, a].view(4, -1)
                for side in range(4):
                    p, q = goal[side].softmax(0).tolist(), numbers[side].softmax(0).tolist()
                    boxes += max(scores) * sum(i * math.log(i / j) for i, j in zip(p, q, strict=True)) / 4
                continue
            if family == "retinanet":
                pair_of_boxes = [of_deltas(deltas, anchor) for deltas in (numbers.tolist(), shown[n, y, x, a].tolist())]
                common, union, hull = overlap(*pair_of_boxes)
                boxes += max(scores) * (1 - common / union + (hull - union) / hull)
                continue
            if "mmdet" in kind:
                numbers = numbers * head.regression_head.scales[level]
                numbers, unit = (numbers.clamp(min=0) * stride if head.norm_on_bbox else numbers.exp()), 1
            else:
                numbers, unit = numbers.clamp(min=0), stride
            sides = [[unit * side for side in each.tolist()] for each in (numbers, shown[n, y, x, a])]
            own, goal = ([middle[0] - s[0], middle[1] - s[1], middle[0] + s[2], middle[1] + s[3]] for s in sides)
            common, union, _ = overlap(own, goal)
            if overlap(goal, goal)[0]:
                boxes += max(scores) * -math.log(max(common / max(union, 1e-7), 1e-6))
        first += height * width * per_cell
    return classes / max(amount, 1), boxes / (mass if family == "gfl" else max(amount, 1))


def of_deltas(deltas: list[float], anchor: list[float]) -> list[float]:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = (anchor[0] + anchor[2]) / 2 + deltas[0] * width, (anchor[1] + anchor[3]) / 2 + deltas[1] * height
    half = width * math.exp(deltas[2]) / 2, height * math.exp(deltas[3]) / 2
    return [x - half[0], y - half[1], x + half[0], y + half[1]]


@EVERY
def test_against_a_slow_loop_over_anchors(kind):
    number = 1 if kind.startswith("fcos") else 0 if "GroupNorm" in kind else 2
    method, own, theirs, truth, layers = step(kind, convolution=1 if "GroupNorm" in kind else None)
    assert method.index == number
    assert (truth.gt_index >= 0).sum() > 2
    assert (truth.gt_index == -2).any() == kind.startswith("retinanet")
    with torch.no_grad():
        terms = method(own, theirs, truth, layers)
        crossed = by_hand(layers.student, layers.teacher, own, theirs, number)
    classes, boxes = slow_terms(kind, crossed, layers.teacher, theirs, truth)
    assert terms["crosskd_class"].item() == pytest.approx(classes, rel=1e-4)
    assert terms["crosskd_box"].item() == pytest.approx(boxes, rel=1e-4)


@EVERY
@pytest.mark.parametrize("convolution", [None, 1, 4])
def test_the_teacher_runs_the_convolutions_after_the_crossed_one(kind, convolution):
    """Of four by default one, of an FCOS two, as in the authors' code; and its predictors once, on all five levels."""
    method, _, _, _, layers = step(kind, convolution=convolution)
    theirs = layers.teacher.tower_maps(layers.teacher_outputs, method.index)
    runs: list[str] = []
    head = layers.teacher.network.head
    parts = {"class": head.classification_head.conv, "box": head.regression_head.conv}
    parts |= {"class predictor": head.classification_head.cls_logits, "box predictor": head.regression_head.bbox_reg}
    for name, part in parts.items():
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda *_, name=name: runs.append(name))
    layers.teacher_outputs.tower_maps[method.index] = theirs  # as in training, where the teacher's step keeps them
    method.crossed(layers)
    later = 4 - (convolution or (2 if kind.startswith("fcos") else 3))
    levels = len(layers.teacher.spec.strides)
    for name in parts:
        assert runs.count(name) == levels * (1 if "predictor" in name else later)


# ---------------------------------------------------------------------------------------------------- the authors' code


def as_distances(outputs: Outputs) -> Outputs:
    """The same record with boxes whose sides lie beyond their points."""
    return replace(outputs, box_raw=[2 + 5 * level for level in outputs.box_raw])


def within_boxes() -> Truth:
    """An assignment of points that lie inside the boxes, as the centre-ness of mmdet needs."""
    truth = predictions.truth(num_anchors=1)
    truth.gt_index[:] = -1
    truth.gt_index[0, [9, 17, 52]], truth.gt_index[0, [20, 28, 54]], truth.gt_index[1, [10, 11]] = 0, 1, 0
    return truth


@pytest.mark.parametrize(
    ("family", "code", "classes", "boxes"),
    [
        ("gfl", "distributions", 8.3701063752, 0.1272245639),
        ("retinanet", "deltas", 17.4303740020, 8.8064621691),
        ("fcos", "distances in strides", 15.4261426493, 15.3350669994),
    ],
)
def test_the_values_of_the_authors_code_for_crossed_predictions(family, code, classes, boxes, monkeypatch):
    """The values are those of jbwang1997/CrossKD @ 87e156a with weights 1, for predictions in place of crossed ones.

    They are of CrossKDGFL and CrossKDRetinaNet, pred_mimicking_loss_single, and CrossKDFCOS, loss_by_feat.
    """
    points = family == "fcos"
    changes = {"family": family, "num_anchors": 2 if family == "retinanet" else 1, "centerness": points}
    changes["tower_channels"] = (8,) * 4
    student, teacher = (predictions.spec(name, code, **changes) for name in ("little", "big"))
    own, theirs = predictions.waves(student, 0.1), predictions.waves(teacher, 0.9)
    own, theirs = (as_distances(outputs) if points else outputs for outputs in (own, theirs))
    truth = within_boxes() if points else predictions.truth(student.num_anchors)
    monkeypatch.setattr(METHODS["crosskd"], "crossed", lambda *_: own)
    layers = SimpleNamespace(teacher=SimpleNamespace(decode=lambda outputs: decode(outputs, teacher)))
    terms = METHODS["crosskd"](student, teacher)(own, theirs, truth, layers)
    assert terms["crosskd_class"].item() == pytest.approx(classes, rel=1e-6)
    assert terms["crosskd_box"].item() == pytest.approx(boxes, rel=1e-6)


# ----------------------------------------------------------------------------------------------------------- properties


@EVERY
def test_a_student_that_is_the_teacher_has_nothing_to_learn(kind):
    teacher = tiny_teacher(kind)
    _, _, _, truth, layers = step(kind, teacher, teacher)
    method, outputs = METHODS["crosskd"](teacher.spec, teacher.spec), layers.teacher_outputs
    terms = method(outputs, outputs, truth, layers)
    assert terms["crosskd_class"] < 1e-2  # linear in what is left of the 1e-6, over some thousand anchors
    assert terms["crosskd_box"] < 1e-3
    other = tiny_teacher(kind, neck_channels=16)
    method, *inputs = step(kind, tiny(kind, 5), other)
    for name, value in method(*inputs).items():
        assert value > 100 * terms[name]


@EVERY
def test_gradient_reaches_the_student_up_to_the_map_and_never_the_teacher(kind):
    method, *inputs = step(kind)
    student, teacher = inputs[3].student, inputs[3].teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for term in method.terms:
        student.zero_grad()
        method(*inputs)[f"crosskd_{term}"].backward(retain_graph=True)
        head = student.network.head
        own, other = ("classification_head", "regression_head")[:: 1 if term == "class" else -1]
        towers = {
            half: [layer for layer in getattr(head, half).conv.modules() if isinstance(layer, nn.Conv2d)]
            for half in (own, other)
        }
        for place, layer in enumerate(towers[own]):
            assert (layer.weight.grad is not None) == (place <= method.index)
        assert all(layer.weight.grad is None or not layer.weight.grad.any() for layer in towers[other]) or term == "box"
        assert head.classification_head.cls_logits.weight.grad is None  # the predictor learns from the labels alone
        assert any(weight.grad is not None and weight.grad.any() for weight in student.network.backbone.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_the_end_of_the_teachers_head_without_gradient_teaches_nothing():
    method, own, theirs, truth, layers = step("gfl", teacher=tiny("gfl", 6).requires_grad_(False).eval())
    end = layers.teacher.head_from

    class Careless(type(layers.teacher)):
        def head_from(self, *given):
            with torch.no_grad():
                return end(*given)

    layers.teacher.__class__ = Careless
    terms = method(own, theirs, truth, layers)
    assert not any(term.requires_grad for term in terms.values())


@EVERY
def test_images_without_objects_or_without_labels(kind):
    method, own, theirs, truth, layers = step(kind)
    nothing = [{name: value[:0] for name, value in target.items()} for target in TARGETS]
    for gt_index in (torch.full_like(truth.gt_index, -1), torch.full_like(truth.gt_index, -2)):
        terms = method(own, theirs, Truth(nothing, gt_index), layers)
        sum(terms.values()).backward(retain_graph=True)
        assert all(term.isfinite() and term.requires_grad for term in terms.values())
        assert all((term == 0) == bool((gt_index == -2).all()) for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in layers.student.parameters())


@EVERY
def test_what_stands_in_ignored_anchors_does_not_matter(kind):
    """Of an unlabelled image all are ignored: FCOS, which ignores none of its own, has some there alone."""
    method, own, theirs, truth, layers = step(kind)
    unlabelled = truth.gt_index.clone()
    unlabelled[0] = -2
    nothing = {name: value[:0] for name, value in TARGETS[0].items()}
    partly, whole = Truth([nothing, TARGETS[1]], unlabelled), Truth(TARGETS, truth.gt_index)
    before = [method(own, theirs, each, layers) for each in (partly, whole)]
    for level in (*theirs.class_logits, *theirs.box_raw):
        level[0] += 0.5
    after = [method(own, theirs, each, layers) for each in (partly, whole)]
    for term in before[0]:
        assert torch.equal(after[0][term], before[0][term])
        assert not torch.equal(after[1][term], before[1][term])


def test_boxes_are_divided_by_positives_or_centerness_and_those_of_a_gfl_by_scores():
    """So a teacher that is half as sure of everything halves the term of all but a GFL."""
    for kind, divided_by_scores in (("retinanet", False), ("fcos", False), ("gfl", True)):
        method, own, theirs, truth, layers = step(kind)
        values = []
        for score in (0.4, 0.2):
            logits = [torch.full_like(level, math.log(score / (1 - score))) for level in theirs.class_logits]
            values.append(method(own, replace(theirs, class_logits=logits), truth, layers)["crosskd_box"].item())
        assert values[1] == pytest.approx(values[0] if divided_by_scores else values[0] / 2, rel=1e-4)


def test_a_level_of_one_cell():
    student, teacher = tiny("gfl", 5), tiny_teacher("gfl")
    own, theirs = student(IMAGES[:1]), teacher(IMAGES[:1])
    assert own.level_sizes[-1] == (1, 1)
    truth = Truth(TARGETS[:1], student.assign(own, TARGETS[:1]))
    terms = METHODS["crosskd"](student.spec, teacher.spec)(
        own, theirs, truth, Layers(student, teacher, None, own, theirs)
    )
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


# -------------------------------------------------------------------------------------------------------------- learner


@EVERY
def test_the_learner_runs_every_layer_of_the_students_head_once(kind):
    student, teacher = tiny(kind, 5), tiny_teacher(kind)
    methods, weights = build_methods({"crosskd": {}}, student.spec, teacher.spec)
    learner = Learner(student, methods)
    assert learner.keeps == (methods[0].index,)
    runs = dict.fromkeys(("student", "teacher"), 0)

    def count(whose):
        def hook(*_):
            runs[whose] += 1

        return hook

    first = [
        next(m for m in d.network.head.classification_head.conv.modules() if isinstance(m, nn.Conv2d))
        for d in (student, teacher)
    ]
    first[0].register_forward_hook(count("student"))
    first[1].register_forward_hook(count("teacher"))
    losses = []
    for keeps in ((), learner.keeps):
        runs.update(student=0, teacher=0)
        with torch.no_grad(), teacher.keeping(*keeps):
            theirs = teacher(IMAGES)
        losses.append(learner(IMAGES, TARGETS, theirs, teacher=teacher))
        assert runs == {"student": 5, "teacher": 5 if keeps else 10}  # of five levels
    assert set(weights) == {"crosskd_class", "crosskd_box"} < set(losses[0])
    for name in weights:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    sum(losses[1].values()).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    with pytest.raises(UserError, match="recorded outputs are not enough: pass the teacher"):
        learner(IMAGES, TARGETS, theirs)


def test_classes_that_the_teacher_has_in_another_order_and_levels_that_only_one_has():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = build_detector("fcos_mobilenet_v2", 3, neck_channels=16, width_mult=0.35).network
        body = plain.backbone
        body.fpn.extra_blocks = None
        anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
        student = open_detector(FCOS(body, 3, head=plain.head, anchor_generator=anchors), "three_levels")
    teacher = tiny_teacher("fcos", num_classes=2)
    pairing = pair(student.spec, teacher.spec, ["cat", "dog", "cow"], ["cow", "cat"])
    assert pairing.dropped_strides == (64, 128)
    methods, _ = build_methods({"crosskd": {}}, pairing.student, pairing.teacher)
    learner = Learner(student, methods, pairing)
    with torch.no_grad():
        theirs = teacher(IMAGES)
    losses = learner(IMAGES, TARGETS, theirs, teacher=teacher)
    own = student(IMAGES)
    layers = Layers(student, teacher, pairing, own, theirs)
    crossed = methods[0].crossed(layers)
    whole = teacher.head_from(
        replace(
            maps := teacher.tower_maps(theirs, 1),
            classes=[
                align_scale(level, other)
                for level, other in zip(student.tower_maps(own, 1).classes, maps.classes[:3], strict=True)
            ]
            + maps.classes[3:],
        ),
        1,
        theirs,
    )
    assert len(crossed.class_logits) == 3
    torch.testing.assert_close(crossed.class_logits[0], whole.class_logits[0][..., [1, 0]])
    truth = pairing.truth(Truth(TARGETS, student.assign(own, TARGETS)), own)
    terms = methods[0](pairing.student_record(own), pairing.teacher_record(theirs), truth, layers)
    for name, value in terms.items():
        torch.testing.assert_close(losses[name], value)


def test_a_few_steps_make_the_teachers_head_agree():
    student, teacher = tiny("gfl", 5), tiny_teacher("gfl")
    (method,), _ = build_methods({"crosskd": {}}, student.spec, teacher.spec)
    learner = Learner(student, [method])
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    with torch.no_grad(), teacher.keeping(2):
        theirs = teacher(IMAGES)
    values = []
    for _ in range(12):
        losses = learner(IMAGES, TARGETS, theirs, teacher=teacher)
        loss = losses["crosskd_class"] + 4 * losses["crosskd_box"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.75 * values[0]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_pairs_that_cannot_be_served_are_refused_and_both_are_named():
    student, teacher = (replace(tiny("gfl", 1).spec, name=name) for name in ("little", "big"))
    cases = {
        r"the student little has 16 channels in its head, the teacher big has 24 channels": {
            "tower_channels": (24,) * 4
        },
        r"little has 4 convolutions in each tower of its head, the teacher big 2; both need convolution 3": {
            "tower_channels": (16, 16)
        },
        r"the student little has a head of the family gfl, .* big has a head of the family faster_rcnn; .* big 0": {
            "family": "faster_rcnn",
            "tower_channels": (),
        },
        r"little has 1 anchor per cell, the teacher big has 9": {"num_anchors": 9},
        r"little has 2 classes, the teacher big has 80": {"num_classes": 80},
        r"levels at strides \(8, .* levels at strides \(4, ": {"strides": (4, 8, 16, 32, 64)},
    }
    for message, differing in cases.items():
        with pytest.raises(UserError, match=message):
            build_methods({"crosskd": {}}, student, replace(teacher, **differing))
    with pytest.raises(UserError, match="both need convolution 5"):
        build_methods({"crosskd": {"convolution": 5}}, student, teacher)
    with pytest.raises(UserError, match=r"crosskd\.convolution: expected .* got 0"):
        build_methods({"crosskd": {"convolution": 0}}, student, teacher)
    build_methods({"crosskd": {"convolution": 1}}, student, replace(teacher, tower_channels=(16, 16)))


def test_published_weights():
    weights = {"retinanet": (1, 1), "fcos": (0.4, 0.75), "gfl": (1, 4)}
    expected = {family: {"class": classes, "box": box} for family, (classes, box) in weights.items()}
    assert METHODS["crosskd"].weights == expected


def test_narrower_precision_is_close():
    method, own, theirs, truth, layers = step("retinanet")
    exact = method(own, theirs, truth, layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(own, theirs, truth, layers)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], value, rtol=0.03, atol=1e-3)
