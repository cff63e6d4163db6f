"""Dist2: a student's maps in a teacher's layers."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import understudy
from understudy.detectors import Detector, build_detector
from understudy.errors import RunError, UserError
from understudy.learner import Learner
from understudy.methods import METHODS, dist2_supervision
from understudy.methods.dist2_layers import ALL2ALL, Transform, strides_served, through_teacher
from understudy.methods.loading import build_methods
from understudy.outputs import Spec
from understudy.pairing import pair

FAMILIES = ("retinanet", "fcos", "gfl", "faster_rcnn")
SIZES = ((64, 64), (52, 64))
CLASSES = ("circle", "square", "star")


def small(family: str, seed: int = 0, classes: int = 3, **options: Any) -> Detector:
    torch.manual_seed(seed)
    return build_detector(f"{family}_resnet18", classes, **{"neck_channels": 16, "width_mult": 0.125, **options})


def frozen(detector: Detector) -> Detector:
    return detector.requires_grad_(False).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request) -> Detector:
    return frozen(small(request.param, 1, neck_channels=24, width_mult=0.25))


def batch(labels: tuple[int, ...] = (0, 2), side: int = 64) -> tuple[Tensor, list[dict[str, Tensor]]]:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[4.0, 6, 40, 44], [20, 10, 60, 50]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor(labels)},
        {"boxes": boxes[:1], "labels": torch.tensor(labels[:1])},
    ]
    return images, targets


def learner_of(student: Detector, teacher: Detector, names: Any = None, **options: Any) -> Learner:
    """A learner with Dist2 alone."""
    pairing = pair(student.spec, teacher.spec, *(names or (CLASSES, CLASSES)))
    torch.manual_seed(5)
    methods, _ = build_methods({"dist2": options}, pairing.student, pairing.teacher)
    return Learner(student, methods, pairing).train(student.training)


def losses_of(learner: Learner, teacher: Detector, seed: int = 7, side: int = 64) -> dict[str, Tensor]:
    """The terms of Dist2 on the batch."""
    images, targets = batch(side=side)
    with torch.no_grad():
        theirs = teacher(images, SIZES)
    torch.manual_seed(seed)
    found = learner(images, targets, theirs, SIZES, teacher=teacher)
    return {name: term for name, term in found.items() if name.startswith("dist2")}


def moved(parameters: Iterable[Tensor]) -> list[bool]:
    return [parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in parameters]


# ------------------------------------------------------------------------------------- every strategy, teacher, student


@pytest.mark.parametrize("kind", ["same", "other"])
def test_every_strategy_serves_every_teacher_with_a_student_of_the_same_and_another_family(teacher, kind):
    family = teacher.spec.family
    if kind == "other":
        family = {"retinanet": "fcos", "fcos": "gfl", "gfl": "faster_rcnn", "faster_rcnn": "retinanet"}[family]
    student = small(family, 2)
    learner = learner_of(student, teacher)
    assert tuple(learner.methods[0].transforms) == learner.methods[0].strategies == ALL2ALL
    before = copy.deepcopy(teacher.state_dict())
    terms = losses_of(learner, teacher)
    assert list(terms) == ["dist2_di", "dist2_fi"]
    for term, value in terms.items():
        learner.zero_grad()
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value > 0
        value.backward(retain_graph=True)
        assert all(moved(learner.methods.parameters())), term  # every transform, of every strategy and level
        assert any(moved(student.network.backbone.body.parameters()))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_training_steps_leave_the_teacher_as_it_is_to_the_bit(teacher):
    student = small(teacher.spec.family, 2)
    learner = learner_of(student, teacher)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(learner.parameters(), 0.01)
    first = [losses_of(learner, teacher)]
    for _ in range(2):
        terms = losses_of(learner, teacher)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 5.0)
        optimizer.step()
    last = losses_of(learner, teacher)
    assert sum(last.values()) < sum(first[0].values())
    after = teacher.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)  # buffers of batch normalisation, too
    assert any("running_mean" in key for key in before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in key for key in learner.state_dict())


@pytest.mark.parametrize(("supervision", "align"), [("truth", False), ("both", True)])
def test_options_in_bfloat16(teacher, supervision, align):
    learner = learner_of(small(teacher.spec.family, 2), teacher, supervision=supervision, align=align)
    # On a CPU torch leaves memory unwritten in the bfloat16 gradient of a 3x3 convolution of stride 2 on a single cell,
    # as P7 is made at 64 pixels, RetinaNet's own included.
    exact = losses_of(learner, teacher, side=128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = losses_of(learner, teacher, side=128)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in rough.values())
    if teacher.spec.family != "faster_rcnn":  # which draws its proposals by scores that may be rounded
        assert rough["dist2_di"].item() == pytest.approx(exact["dist2_di"].item(), rel=0.05)
    sum(rough.values()).backward()
    assert all(moved(learner.methods.parameters()))


# ----------------------------------------------------------------------------------------------- restated, step by step


def test_against_a_restatement_from_the_definition():
    teacher = frozen(small("retinanet", 1, neck_channels=24, width_mult=0.25))
    student = small("retinanet", 2)
    learner = learner_of(student, teacher)
    images, targets = batch()
    terms = losses_of(learner, teacher)
    (method,) = learner.methods
    network = teacher.network

    own = student(images, SIZES)
    theirs = teacher(images, SIZES)
    sources = {"N": own.features, "B": own.stages}
    goals = {"N": theirs.features, "B": theirs.stages}
    anchors = torch.cat([level.flatten(0, 2) for level in theirs.anchors])
    di = fi = 0.0
    for strategy in ALL2ALL:
        layers, maps = method.transforms[strategy].layers, []
        for number, name in enumerate(layers):
            source = sources[strategy[0]]
            weight = layers[name]
            if strategy[2] == "B":
                made = F.conv2d(source[number], weight[0].weight)
                mean, variance = made.mean((0, 2, 3), keepdim=True), made.var((0, 2, 3), keepdim=True, correction=0)
                made = F.relu((made - mean) / (variance + 1e-5).sqrt())
            elif number < len(source):
                made = F.conv2d(source[number], weight.weight, weight.bias, padding=1)
            else:
                before = source[-1] if number == len(source) else F.relu(maps[-1])
                made = F.conv2d(before, weight.weight, weight.bias, stride=2, padding=1)
            maps.append(made)
        assert [m.shape for m in maps] == [g.shape for g in goals[strategy[2]]]
        squares = [((m - g) ** 2).sum().item() / m.numel() for m, g in zip(maps, goals[strategy[2]], strict=True)]
        fi += sum(squares) / len(squares)
        if strategy[2] == "B":
            maps = list(network.backbone.fpn({str(i): m for i, m in enumerate(maps)}).values())
        raw = network.head(maps)
        losses = network.compute_loss(targets, raw, [anchors] * 2)  # torchvision's own assignment and losses
        di += sum(loss.item() for loss in losses.values())
    assert terms["dist2_fi"].item() == pytest.approx(fi, rel=1e-4)
    assert terms["dist2_di"].item() == pytest.approx(di, rel=1e-4)
    means = losses_of(learner_of(student, teacher, combine="mean"), teacher)
    assert means["dist2_fi"].item() == pytest.approx(fi / 4, rel=1e-4)
    assert means["dist2_di"].item() == pytest.approx(di / 4, rel=1e-4)


def test_all2all_is_the_sum_of_its_strategies_alone():
    """So one weight gives each strategy the gradient that it has alone."""
    teacher, student = frozen(small("gfl", 1)), small("gfl", 2).eval()
    learner = learner_of(student, teacher)
    every, alone = losses_of(learner, teacher), dict.fromkeys(("dist2_di", "dist2_fi"), 0.0)
    for name in ALL2ALL:
        single = learner_of(student, teacher, strategies=name)
        single.methods[0].transforms[name].load_state_dict(learner.methods[0].transforms[name].state_dict())
        for term, value in losses_of(single, teacher).items():
            alone[term] += value.item()
    assert {term: value.item() for term, value in every.items()} == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("backbone", "relu"),
    [
        ("resnet18", True),
        ("resnext50_32x4d", True),
        ("regnet_x_400mf", True),
        ("mobilenet_v2", False),
        ("mobilenet_v3_large", False),
    ],
)
def test_a_transform_into_a_backbone_ends_in_a_relu_where_the_teachers_stage_does(backbone, relu):
    torch.manual_seed(1)
    teacher = frozen(build_detector(f"retinanet_{backbone}", 3, neck_channels=16, width_mult=0.25))
    student = small("retinanet", 2)
    assert teacher.spec.stage_relu == (relu,) * 3
    learner = learner_of(student, teacher, strategies="B2B")
    maps = learner.methods[0].transforms["B2B"](student(batch()[0], SIZES))
    images, _ = batch()
    goals = teacher(images, SIZES).stages
    for made, goal in zip(maps.values(), goals, strict=True):
        assert bool((goal >= 0).all()) == bool((made >= 0).all()) == relu


@pytest.mark.parametrize(
    ("family", "conventions", "settings"),
    [
        *((family, conventions, {}) for family in FAMILIES for conventions in ("torchvision", "mmdet")),
        ("fcos", "mmdet", {"norm_on_bbox": True}),
    ],
)
def test_fi_is_zero_and_di_the_teachers_own_loss_where_the_maps_are_the_teachers(family, conventions, settings):
    teacher = frozen(small(family, 1, conventions=conventions, settings=settings, neck_channels=32))
    if family == "faster_rcnn":  # all anchors and proposals, not some drawn at random
        for part in (teacher.network.rpn, teacher.network.roi_heads):
            vars(part.fg_bg_sampler).update(count=10**6, batch_size_per_image=10**6)  # by either convention
    student = copy.deepcopy(teacher).requires_grad_(True).eval()
    learner = learner_of(student, teacher, strategies="N2N")
    for layer in learner.methods[0].transforms["N2N"].layers.values():
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    terms = losses_of(learner, teacher)
    images, targets = batch()
    record = teacher(images, SIZES)
    expected = sum(teacher.loss(record, targets, teacher.assign(record, targets)).values())
    assert terms["dist2_fi"].item() == pytest.approx(0, abs=1e-10)
    assert terms["dist2_di"].item() == pytest.approx(expected.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------- the likely bug, and others


def without_gradient(run):
    @torch.no_grad()
    def wrapped(*arguments):
        return run(*arguments)

    return wrapped


@pytest.mark.parametrize(("layer", "strategy"), [("head", "N2N"), ("neck", "B2B")])
def test_a_tail_under_no_grad_is_caught(layer, strategy):
    teacher, student = frozen(small("fcos", 1)), small("fcos", 2)
    learner = learner_of(student, teacher, strategies=strategy)
    losses_of(learner, teacher)
    setattr(teacher, layer, without_gradient(getattr(teacher, layer)))
    with pytest.raises(
        RunError, match=r"No gradient flows back through .* the teacher fcos_resnet18.*requires_grad_\(False\)"
    ):
        losses_of(learner, teacher)
    with torch.no_grad():
        assert losses_of(learner.eval(), teacher)["dist2_di"].isfinite()  # without gradient none is missed


def test_a_teacher_that_would_be_trained_is_refused_and_recorded_outputs_are_not_enough():
    teacher, student = small("fcos", 1).eval(), small("fcos", 2)
    learner = learner_of(student, teacher)
    with pytest.raises(UserError, match=r"dist2 runs the teacher's layers.*requires_grad_\(False\)"):
        losses_of(learner, teacher)
    with pytest.raises(UserError, match=r"dist2 runs the teacher's layers.*requires_grad_\(False\)"):
        losses_of(learner, frozen(teacher).train())
    images, targets = batch()
    with torch.no_grad():
        recorded = frozen(teacher)(images, SIZES)
    with pytest.raises(
        UserError, match=r"dist2 reads the layers of the student fcos_resnet18 .*recorded outputs are not enough"
    ):
        learner(images, targets, recorded, SIZES)


def test_pairs_without_a_place_are_refused_by_name():
    little = Spec((6, 6), (8, 16), 1, 3, name="little")
    big = Spec((8, 8), (8, 16), 1, 3, stage_channels=(4,), stage_strides=(8,), name="big")
    with pytest.raises(UserError) as failure:
        METHODS["dist2"](little, big)
    message = str(failure.value)
    assert "the strategy B2B needs a common stride: the student little has () at its backbone, the tea" in message
    assert "N2B" not in message
    METHODS["dist2"](little, big, strategies=("N2N", "N2B"))
    with pytest.raises(UserError, match=r"methods.dist2.strategies: .*got \[\]"):
        METHODS["dist2"](little, big, strategies=())
    with pytest.raises(UserError, match="the student little has 3 classes, the teacher big has 80 classes"):
        METHODS["dist2"](little, replace(big, num_classes=80), strategies="N2N")
    METHODS["dist2"](little, replace(big, num_classes=80), strategies="N2N", terms=("fi",))
    with pytest.raises(UserError, match=r"levels at strides \(8, 16\).*\(8, 32\)"):
        METHODS["dist2"](little, replace(big, strides=(8, 32)), strategies="N2N")
    with pytest.raises(UserError, match=r"methods\.dist2\.strategies: expected"):
        build_methods({"dist2": {"strategies": ["N2X"], "di_weight": 1, "fi_weight": 1}}, little, big)


def test_strides_that_a_students_maps_can_replace():
    student = Spec((6,) * 5, (8, 16, 32, 64, 128), 1, 3, stage_channels=(3, 4, 5), stage_strides=(8, 16, 32))
    assert strides_served("B2N", student, student) == (8, 16, 32, 64, 128)
    assert strides_served("N2B", student, student) == (8, 16, 32)
    assert strides_served("N2N", student, replace(student, strides=(4, 8, 16, 32, 64))) == (8, 16, 32, 64)
    assert strides_served("B2N", student, replace(student, strides=(8, 32, 128))) == (8, 32)
    assert strides_served("B2B", replace(student, stage_strides=()), student) == ()
    shapes = [tuple(layer.weight.shape) for layer in Transform("B2N", student, student).layers.values()]
    assert shapes == [(6, 3, 3, 3), (6, 4, 3, 3), (6, 5, 3, 3), (6, 5, 3, 3), (6, 6, 3, 3)]


def test_weights_with_and_without_a_relu_load_into_each_other():
    """So the checkpoints of runs whose transforms always ended in a ReLU still load."""
    spec = Spec((6,) * 3, (8, 16, 32), 1, 3, stage_channels=(3, 4, 5), stage_strides=(8, 16, 32))
    rectified, plain = Transform("B2B", spec, replace(spec, stage_relu=(True,) * 3)), Transform("B2B", spec, spec)
    assert [type(layer[-1]).__name__ for layer in rectified.layers.values()] == ["ReLU"] * 3
    assert [type(layer[-1]).__name__ for layer in plain.layers.values()] == ["BatchNorm2d"] * 3
    plain.load_state_dict(rectified.state_dict())


# -------------------------------------------------------------------------------- one strategy, and every gradient


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_one_strategy_a_step_is_all_of_them_on_average(combine):
    teacher, student = frozen(small("gfl", 1)), small("gfl", 2).eval()  # eval: one step does not move the next
    every = losses_of(learner_of(student, teacher, combine=combine), teacher)
    learner = learner_of(student, teacher, draw="one", combine=combine)
    drawn = {}
    for seed in range(16):
        learner.zero_grad()
        terms = losses_of(learner, teacher, seed=seed)
        sum(terms.values()).backward()
        used = [name for name, part in learner.methods[0].transforms.items() if any(moved(part.parameters()))]
        assert len(used) == 1
        assert all(weight.grad is not None for weight in learner.methods.parameters())  # DDP waits for each
        again = drawn.setdefault(used[0], terms)
        assert all(torch.equal(again[name], terms[name]) for name in terms)
    assert set(drawn) == set(ALL2ALL)
    for name, value in every.items():
        assert sum(terms[name].item() for terms in drawn.values()) / 4 == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("kept", ["di", "fi"])
def test_one_term_alone_trains_all_transforms(teacher, kept):
    other = {"di": "fi", "fi": "di"}[kept]
    learner = learner_of(small(teacher.spec.family, 2), teacher, **{f"{other}_weight": 0})
    terms = losses_of(learner, teacher)
    assert list(terms) == [f"dist2_{kept}"]
    sum(terms.values()).backward()
    assert all(moved(learner.methods.parameters()))


# ----------------------------------------------------------------------------------- labels, unlabelled images, padding


def test_images_without_objects_and_without_labels(teacher):
    student = small(teacher.spec.family, 2)
    learner = learner_of(student, teacher)
    images, _ = batch()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2
    with torch.no_grad():
        theirs = teacher(images, SIZES)
    for labelled in ((True, True), (True, False), (False, False)):
        learner.zero_grad()
        terms = learner(images, empty, theirs, SIZES, labelled=labelled, teacher=teacher)
        terms = {name: term for name, term in terms.items() if name.startswith("dist2")}
        assert all(term.isfinite() and term.requires_grad for term in terms.values())
        terms["dist2_di"].backward()
        assert all(weight.grad is not None for weight in learner.methods.parameters())
        assert (terms["dist2_di"] == 0) == (labelled == (False, False))
        assert terms["dist2_fi"] > 0


def test_unlabelled_images_are_left_out_of_di_and_are_in_fi():
    teacher, student = frozen(small("fcos", 1)), small("fcos", 2).eval()
    learner = learner_of(student, teacher).eval()  # eval: batch normalisation does not see the other image
    images, targets = batch()
    with torch.no_grad():
        theirs, alone = teacher(images, SIZES), teacher(images[1:], SIZES[1:])
    mixed = learner(images, targets, theirs, SIZES, labelled=(False, True), teacher=teacher)
    single = learner(images[1:], targets[1:], alone, SIZES[1:], teacher=teacher)
    assert mixed["dist2_di"].item() == pytest.approx(single["dist2_di"].item(), rel=1e-4)
    assert mixed["dist2_fi"].item() != pytest.approx(single["dist2_fi"].item(), rel=1e-3)
    soft = learner_of(student, teacher, supervision="teacher").eval()
    every = soft(images, targets, theirs, SIZES, labelled=(True, True), teacher=teacher)["dist2_di"]
    none = soft(images, targets, theirs, SIZES, labelled=(False, False), teacher=teacher)["dist2_di"]
    assert torch.equal(every, none)  # no label was looked at
    assert every > 0


@pytest.mark.parametrize("family", ["fcos", "faster_rcnn"])
def test_labels_are_those_of_the_teacher(family):
    """The student has star, circle, cloud; the teacher circle, square, star and two more."""
    theirs = (*CLASSES, "moon", "sun")
    teacher = frozen(small(family, 1, classes=5))
    student = small(family, 2)
    learner = learner_of(student, teacher, names=(("Star", "circle", "cloud"), theirs), strategies="N2N")
    seen = []
    run = teacher.loss
    teacher.loss = lambda outputs, *truth: seen.append(truth) or run(outputs, *truth)
    images, targets = batch((0, 2))
    targets[1]["labels"] = torch.tensor([1])
    with torch.no_grad():
        record = teacher(images, SIZES)
    learner(images, targets, record, SIZES, teacher=teacher)["dist2_di"].backward()
    ((given, gt_index),) = seen
    assert [target["labels"].tolist() for target in given] == [[2], [0]]  # star, circle; no cloud
    assert torch.equal(given[0]["boxes"], targets[0]["boxes"][:1])
    every = teacher.assign(record, targets)
    assert (every[0] == 1).any()
    assert torch.equal(gt_index[0], torch.where(every[0] == 1, -2, every[0]))  # the cloud is no background
    assert torch.equal(gt_index[1], every[1])


def test_levels_that_only_the_teacher_has_are_its_own():
    teacher, student = frozen(small("faster_rcnn", 1)), small("retinanet", 2)
    images, _ = batch()
    own = teacher(images, SIZES)
    zeros = {stride: torch.zeros_like(own.features[place]) for place, stride in enumerate((4, 8, 16, 32, 64)) if place}
    found = through_teacher("N", zeros, teacher, own)
    assert torch.equal(found.features[0], own.features[0])
    assert all(not level.any() for level in found.features[1:])
    assert found.image_sizes == SIZES
    assert all(torch.equal(a, b) for a, b in zip(found.anchors, own.anchors, strict=True))
    transform = learner_of(student, teacher).methods[0].transforms
    assert list(transform["N2N"].layers) == ["8", "16", "32", "64"]
    assert list(transform["B2B"].layers) == ["8", "16", "32"]


def test_a_run_stops_where_the_tail_passes_no_gradient(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(dist2_supervision, "through_teacher", without_gradient(through_teacher))
    with pytest.raises(RunError, match="No gradient flows back through the layers of the teacher"):
        understudy.distill(tiny, run=tmp_path / "run", teacher=trained, methods="dist2")
