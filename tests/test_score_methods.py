"""Methods that compare predictions, each against a slow loop written from its equation, and the boxes they need."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import smooth_l1_loss
from torchvision.ops import box_iou, distance_box_iou, generalized_box_iou

from understudy import boxes, functional
from understudy.detectors import build_detector
from understudy.detectors.plain.gfl import StrideAnchors, atss
from understudy.errors import UserError
from understudy.methods import METHODS, build_methods
from understudy.outputs import Outputs, Spec, Truth, flatten_levels

SIZES, STRIDES, CLASSES = [(6, 8), (3, 4)], (8, 16), 3
CODES = {"deltas": 4, "distances in strides": 4, "distances in pixels": 4, "distributions": 4 * 6}
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 8, 60, 44]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.tensor([[10.0, 2, 50, 30]]), "labels": torch.tensor([1])},
]
SEEDS = 1, 2


def spec(name: str, code: str = "deltas", **changes) -> Spec:
    made = Spec((5, 5), STRIDES, 2, CLASSES, CODES[code], code, family="gfl", name=name)
    return replace(made, **changes)


def record(of: Spec, seed: int, images: int = 2) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    anchors = []
    for stride, size in zip(STRIDES, SIZES, strict=True):
        sides = (1,) if "strides" in of.box_code else (2,)
        per_cell = StrideAnchors(STRIDES, sides, (1.0,) * of.num_anchors, 0.5)
        anchors.append(per_cell.level(stride, *size, torch.device("cpu")).view(*size, of.num_anchors, 4))
    raw = [random(images, *size, of.num_anchors, of.box_size) for size in SIZES]
    if of.box_code.startswith("distances"):
        raw = [level.abs() * (20 if "pixels" in of.box_code else 2) for level in raw]
    return Outputs(
        stages=[],
        features=[
            random(images, channels, *size).requires_grad_() for channels, size in zip(of.channels, SIZES, strict=True)
        ],
        class_logits=[random(images, *size, of.num_anchors, of.num_classes).requires_grad_() for size in SIZES],
        box_raw=[level.requires_grad_() for level in raw],
        anchors=anchors,
    )


def truth(num_anchors: int = 2) -> Truth:
    """Seven anchors of the first image, on both levels, have an object; one of the second; some are ignored."""
    gt_index = torch.full((2, 60 * num_anchors), -1)
    gt_index[0, [3, 9, 20]], gt_index[0, [4, 30, 48 * num_anchors + 2, 48 * num_anchors + 5]] = 0, 1
    gt_index[1, 17] = 0
    gt_index[:, 40:44] = -2
    return Truth(TARGETS, gt_index)


def nothing() -> Truth:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return Truth([empty] * 2, torch.full((2, 120), -1))


def pair(code: str = "deltas", **changes) -> tuple[Spec, Spec, Outputs, Outputs]:
    student, teacher = spec("little", code, **changes), spec("big", code, **changes)
    return student, teacher, record(student, SEEDS[0]), record(teacher, SEEDS[1])


def positives(ground: Truth) -> list[tuple[int, int, int]]:
    """Image, anchor and object of each positive."""
    found = itertools.product(range(len(ground.gt_index)), range(ground.gt_index.shape[1]))
    return [(n, r, int(ground.gt_index[n, r])) for n, r in found if ground.gt_index[n, r] >= 0]


def divergence(teacher: list[float], student: list[float], temperature: float = 1.0) -> float:
    """KL of two softmaxes, of plain numbers."""
    theirs = [math.exp(value / temperature) for value in teacher]
    own = [math.exp(value / temperature) for value in student]
    theirs, own = [value / sum(theirs) for value in theirs], [value / sum(own) for value in own]
    return sum(p * math.log(p / q) for p, q in zip(theirs, own, strict=True))


def entropy(student: float, soft: float) -> float:
    score = 1 / (1 + math.exp(-student))
    return -soft * math.log(score) - (1 - soft) * math.log(1 - score)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def g(shape, a, b, s):
    count = math.prod(shape)
    return (s * torch.sin(a * torch.arange(count, dtype=torch.float64) + b)).reshape(shape)


# ---------------------------------------------------------------------------------------------------------------- boxes

DETECTORS = list(itertools.product(("retinanet", "fcos", "gfl", "faster_rcnn"), ("torchvision", "mmdet")))


@pytest.mark.parametrize(("family", "conventions"), DETECTORS)
def test_boxes_are_decoded_as_by_the_detector_itself(family, conventions):
    options = {"neck_channels": 16, "width_mult": 0.35, "conventions": conventions}
    detector = build_detector(f"{family}_mobilenet_v2", 2, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = detector(torch.rand(2, 3, 64, 96, generator=generator))
    # A head without training emits next to nothing; what it may emit is of either sign and large.
    scale = {"deltas": 2.0, "distances in pixels": 500.0}.get(detector.spec.box_code, 5.0)
    raw = [torch.randn(level.shape, generator=generator) * scale for level in outputs.box_raw]
    if detector.spec.box_code == "deltas" and conventions == "mmdet":  # whose sides shrink no further
        raw = [level.clamp(min=-4) for level in raw]
    outputs = replace(outputs, box_raw=raw)
    for own, theirs in zip(boxes.decode(outputs, detector.spec), detector.decode(outputs), strict=True):
        assert own.shape == theirs.shape
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-3)
    if family != "gfl":
        assert any(level.max() > 1000 for level in boxes.decode(outputs, detector.spec))


def test_an_unknown_box_code_is_refused():
    student, _, outputs, _ = pair()
    with pytest.raises(UserError, match=r"box_code is .deltas.*got 'corners'"):
        boxes.decode(outputs, replace(student, box_code="corners"))


def test_boxes_stay_exact_under_autocast():
    student, _, outputs, _ = pair("distributions")
    exact = boxes.decode(outputs, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = boxes.decode(outputs, student)
    assert all(torch.equal(own, other) for own, other in zip(exact, rough, strict=True))


def test_pairs_of_boxes():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 20, 2, generator=generator) * 30
    own, other = torch.cat([corner, corner + 1 + torch.rand(2, 20, 2, generator=generator) * 30], dim=-1)
    for compute, of_all in (
        (boxes.paired_iou, box_iou),
        (boxes.paired_giou, generalized_box_iou),
    ):
        torch.testing.assert_close(compute(own, other), of_all(own, other).diagonal(), rtol=1e-5, atol=1e-6)
    assert boxes.paired_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_positives_are_read_where_they_are():
    student, _, outputs, _ = pair()
    ground = truth()
    found = boxes.positives(ground, outputs)
    flat, decoded = flatten_levels(outputs.class_logits), flatten_levels(boxes.decode(outputs, student))
    expected = {
        (n, r): (flat[n, r], decoded[n, r], 2 * n + m, TARGETS[n]["labels"][m]) for n, r, m in positives(ground)
    }
    assert found.counts == (2, 1)
    assert found.image.tolist() == [0, 0, 1]
    start = 0
    for level, (image, place) in enumerate(found.levels):
        for n, r in zip(image.tolist(), place.tolist(), strict=True):
            logits, box, number, label = expected.pop((n, r + 96 * level))
            assert torch.equal(found.of(outputs.class_logits)[start], logits)
            torch.testing.assert_close(found.boxes(outputs, student)[start], box)
            assert (found.objects[start], found.labels[start]) == (number, label)
            assert torch.equal(found.true_boxes[start], TARGETS[n]["boxes"][number - 2 * n])
            start += 1
    assert not expected


# ---------------------------------------------------------------------------------------------- values by an own script


def maps():
    shape = 2, 4, 2, 3
    features = g((2, 3, 2, 3), 0.9, 0.4, 1.0), g((2, 3, 2, 3), 0.7, 0.1, 1.5)
    logits = [g(shape, 0.6, -0.3, 2.0), g(shape, 0.5, 0.2, 3.0)]
    return *features, *(level.permute(0, 2, 3, 1).unsqueeze(3) for level in logits)


@pytest.mark.parametrize(
    ("score", "options", "value"),
    [
        ("logit", {}, 113.662019),
        ("logit", {"power": 1}, 8.198111),
        ("logit", {"power": 1, "normaliser": "norm"}, 3.077635),
        ("sigmoid", {}, 0.115093723),
        ("sigmoid", {"power": 1}, 0.263421793),
        ("sigmoid", {"power": 1, "normaliser": "norm"}, 0.097934384),
    ],
)
def test_values_of_pfi(score, options, value):
    assert functional.prediction_guided_loss(*maps(), score=score, **options).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "temperature", "value"), [(False, 1, 0.023863952), (True, 1, 0.654885344), (False, 0.1, 1.838261795)]
)
def test_values_of_rm(logits, temperature, value):
    teacher, student = (torch.tensor(scores, dtype=torch.float64) for scores in ((0.9, 0.6, 0.3), (0.5, 0.7, 0.2)))
    if logits:
        teacher, student = teacher.logit(), student.logit()
    objects = torch.zeros(3, dtype=torch.int64)
    loss = functional.rank_loss(student, teacher, objects, [1], temperature)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert functional.rank_loss(teacher + 3, teacher, objects, [1], temperature).abs() < 1e-12
    # A second object and a second image without anchors: half of it twice.
    assert functional.rank_loss(student, teacher, objects, [2, 0], temperature).item() == pytest.approx(loss.item() / 4)


def test_values_of_ld():
    teacher, student = g((1, 17), 0.8, 0.0, 2.0), g((1, 17), 0.5, 0.3, 2.0)
    assert (functional.softened_divergence(student, teacher, 10) / 17).item() == pytest.approx(0.128005989, abs=1e-6)
    four = student.repeat(1, 4), teacher.repeat(1, 4)
    assert functional.side_divergence(*four, 10).item() == pytest.approx(0.128005989, abs=1e-6)
    assert functional.softened_divergence(teacher + 5, teacher, 10).abs().item() < 1e-12


def test_values_of_bckd():
    *_, student, teacher = maps()
    assert functional.gap_weighted_loss(student, teacher).sum().item() == pytest.approx(25.468501344, abs=1e-6)


def test_softmax_of_groups():
    values, group = torch.tensor([1.0, 400, -3, 2, 401, 7]), torch.tensor([0, 2, 0, 0, 2, 3])
    found = functional.log_softmax_of_groups(values, group, 5)
    for number in (0, 2, 3):
        torch.testing.assert_close(found[group == number], values[group == number].log_softmax(0))


# -------------------------------------------------------------------------------------------------------- slow loops


@pytest.mark.parametrize(("score", "temperature"), [("sigmoid", 1.0), ("logit", 0.5)])
def test_rank_mimicking(score, temperature):
    student, teacher, own, theirs = pair()
    ground, weights = truth(), {"location_weight": 1}
    options = {"rank_mimicking": {**weights, "score": score, "temperature": temperature}}
    (method,), _ = build_methods(options, student, teacher)
    expected = {"class": 0.0, "location": 0.0}
    values = {}
    for whose, outputs, of in (("own", own, student), ("theirs", theirs, teacher)):
        logits, decoded = flatten_levels(outputs.class_logits), flatten_levels(boxes.decode(outputs, of))
        for n, r, m in positives(ground):
            value = logits[n, r, TARGETS[n]["labels"][m]].item()
            overlap = box_iou(decoded[n, r][None], TARGETS[n]["boxes"][m][None]).item()
            values.setdefault((n, m, "class", whose), []).append(sigmoid(value) if score == "sigmoid" else value)
            values.setdefault((n, m, "location", whose), []).append(overlap)
    for n, objects in enumerate((2, 1)):
        for m, term in itertools.product(range(objects), expected):
            ranks = values[n, m, term, "theirs"], values[n, m, term, "own"]
            expected[term] += divergence(*ranks, temperature) / objects / 2
    terms = method(own, theirs, ground)
    assert list(terms) == ["rank_mimicking_class", "rank_mimicking_location"]
    for term, value in expected.items():
        assert value > 1e-4
        assert terms[f"rank_mimicking_{term}"].item() == pytest.approx(value, rel=1e-4)
    terms["rank_mimicking_location"].backward()
    assert sum(level.grad.abs().sum() for level in own.box_raw) > 0


def test_rank_mimicking_ranks_objectness_and_has_the_location_off():
    student, teacher, own, theirs = pair(num_classes=1, objectness=True)
    (method,), weights = build_methods({"rank_mimicking": {}}, student, teacher)
    assert {name: weight.weight for name, weight in weights.items()} == {"rank_mimicking_class": 4.0}
    terms = method(own, theirs, truth())
    assert list(terms) == ["rank_mimicking_class"]
    assert terms["rank_mimicking_class"] > 0


@pytest.mark.parametrize("score", ["logit", "sigmoid"])
@pytest.mark.parametrize(("power", "normaliser"), [(2, "mean"), (1, "mean"), (1, "norm")])
def test_pfi(score, power, normaliser):
    student, teacher, own, theirs = pair()
    options = {"score": score, "power": power, "normaliser": normaliser}
    expected = 0.0
    change = sigmoid if score == "sigmoid" else float
    levels = zip(own.features, theirs.features, own.class_logits, theirs.class_logits, strict=True)
    for feature, other, logits, soft in levels:
        products = []
        for n, y, x in itertools.product(range(2), range(logits.shape[1]), range(logits.shape[2])):
            gaps = zip(logits[n, y, x].flatten().tolist(), soft[n, y, x].flatten().tolist(), strict=True)
            prediction = sum((change(a) - change(b)) ** 2 for a, b in gaps) / (2 * CLASSES)
            distance = (feature[n, :, y, x] - other[n, :, y, x]).square().sum().item() / 5
            products.append((prediction * distance) ** power)
        total = sum(products) if normaliser == "mean" else math.sqrt(sum(value**2 for value in products))
        expected += total / len(products) / 2
    method = METHODS["pfi"](student, teacher, **options)
    assert method(own, theirs, truth())["pfi_feature"].item() == pytest.approx(expected, rel=1e-4)
    assert not list(method.parameters())


def test_pfi_detached_predictions_and_adapters():
    student, teacher, own, theirs = pair()
    METHODS["pfi"](student, teacher, detach=True)(own, theirs, truth())["pfi_feature"].backward()
    assert all(level.grad is None for level in own.class_logits)
    assert len(list(METHODS["pfi"](student, teacher, adapter="always").parameters())) == 4
    method = METHODS["pfi"](student, replace(teacher, channels=(5, 7)))
    assert [tuple(parameter.shape) for parameter in method.parameters()] == [(7, 5, 1, 1), (7,)]
    assert method(own, record(method.teacher, 2), truth())["pfi_feature"] > 0


@pytest.mark.parametrize("anchors", ["positives", "all"])
@pytest.mark.parametrize(("loss", "temperature"), [("bce", 1.0), ("bce", 3.0), ("kl", 2.0)])
def test_soft_class_labels(anchors, loss, temperature):
    student, teacher, own, theirs = pair()
    method = METHODS["soft_labels"](student, teacher, anchors=anchors, loss=loss, temperature=temperature)
    ground = truth()
    logits, soft = flatten_levels(own.class_logits).tolist(), flatten_levels(theirs.class_logits).tolist()
    expected = 0.0
    for n, r in itertools.product(range(2), range(120)):
        if ground.gt_index[n, r] < (0 if anchors == "positives" else -1):
            continue
        if loss == "kl":
            expected += divergence(soft[n][r], logits[n][r], temperature) * temperature**2
            continue
        both = zip(logits[n][r], soft[n][r], strict=True)
        expected += sum(entropy(a / temperature, sigmoid(b / temperature)) for a, b in both) * temperature**2
    assert method(own, theirs, ground)["soft_labels_class"].item() == pytest.approx(expected / 8, rel=1e-4)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ["decoded", "raw"])
def test_soft_boxes(code, kind):
    student, teacher, own, theirs = pair(code)
    method = METHODS["soft_labels"](student, teacher, boxes=kind)
    expected = 0.0
    for n, r, _ in positives(truth()):
        if kind == "raw":
            first, second = (flatten_levels(outputs.box_raw)[n, r] for outputs in (own, theirs))
            expected += smooth_l1_loss(first, second, reduction="sum").item()
            continue
        first, second = (flatten_levels(boxes.decode(outputs, student))[n, r][None] for outputs in (own, theirs))
        expected += 1 - generalized_box_iou(first, second).item()
    assert method(own, theirs, truth())["soft_labels_box"].item() == pytest.approx(expected / 8, rel=1e-4)


@pytest.mark.parametrize("normaliser", ["sum", "positives"])
def test_ld(normaliser):
    student, teacher, own, theirs = pair("distributions")
    ground = truth()
    method = METHODS["ld"](student, teacher, normaliser=normaliser)
    sides = [flatten_levels(outputs.box_raw).unflatten(-1, (4, -1)).tolist() for outputs in (own, theirs)]
    classes = [flatten_levels(outputs.class_logits).tolist() for outputs in (own, theirs)]
    anchors = torch.cat([level.flatten(0, 2) for level in own.anchors])

    def location(n: int, r: int) -> float:
        four = zip(sides[1][n][r], sides[0][n][r], strict=True)
        return sum(100 * divergence(*both, 10) / 6 for both in four)

    expected = {"location": 0.0, "vlr": 0.0, "class": 0.0}
    for n, r, _ in positives(ground):
        expected["location"] += sigmoid(max(classes[0][n][r])) * location(n, r) / 4
        expected["class"] += 4 * divergence(classes[1][n][r], classes[0][n][r], 2) / CLASSES / 8
    in_region = 0
    for n, target in enumerate(TARGETS):
        overlaps, nearness = box_iou(target["boxes"], anchors), distance_box_iou(target["boxes"], anchors)
        known = (ground.gt_index[n] != -2).nonzero().flatten().tolist()
        thresholds = [
            slow_threshold(box, overlap, anchors, known) for box, overlap in zip(target["boxes"], overlaps, strict=True)
        ]
        for r in known:
            weights = [
                overlap[r].item()
                for overlap, near, limit in zip(overlaps, nearness, thresholds, strict=True)
                if limit / 4 <= near[r] < limit
            ]
            expected["vlr"] += max(weights, default=0) * location(n, r) / 16
            in_region += bool(weights)
    assert 4 < in_region < 200
    terms = method(own, theirs, ground)
    for term, value in expected.items():
        divisor = 8 if normaliser == "positives" and term != "class" else 1
        assert terms[f"ld_{term}"].item() == pytest.approx(value / divisor, rel=1e-4), term
    sum(terms.values()).backward()
    assert all(level.grad.isfinite().all() for level in (*own.box_raw, *own.class_logits))


def slow_threshold(box, overlaps, anchors, known) -> float:
    """Mean plus deviation of the IoU of the nine anchors of each level nearest to a box's centre."""
    x, y = (box[0] + box[2]).item() / 2, (box[1] + box[3]).item() / 2
    found = []
    for first, last in ((0, 96), (96, 120)):
        centres = {r: ((anchors[r, :2] + anchors[r, 2:]) / 2).tolist() for r in known if first <= r < last}
        # Two anchors lie in the same place with the same IoU, so which of them comes first does not matter.
        nearest = sorted(centres, key=lambda r: math.hypot(centres[r][0] - x, centres[r][1] - y))[:9]
        found += [overlaps[r] for r in nearest]
    return (torch.stack(found).mean() + torch.stack(found).std()).item()


def test_thresholds_are_those_that_atss_matches_by():
    levels = [StrideAnchors((8, 16), (8,), (1.0,)).level(s, 64 // s, 96 // s, torch.device("cpu")) for s in (8, 16)]
    flat, box = torch.cat(levels), torch.tensor([[7.0, 11, 71, 60]])
    matched = atss(levels, box) >= 0
    threshold = functional.atss_thresholds(levels, box, torch.ones(1, len(flat), dtype=torch.bool))
    overlaps = box_iou(box, flat)[0]
    assert 0 < matched.sum() < 18
    assert overlaps[matched].min() >= threshold.item() - 1e-6
    centres = (flat[:, :2] + flat[:, 2:]) / 2
    near = (centres - torch.tensor([39.0, 35.5])).norm(dim=1) < 12  # candidates, all inside
    assert overlaps[near & ~matched].max() < threshold.item()


@pytest.mark.parametrize("code", CODES)
def test_bckd(code):
    student, teacher, own, theirs = pair(code)
    ground = truth()
    ground.gt_index[:, 96:] = -1  # no object on the coarse level, which then counts nowhere
    decoded = [flatten_levels(boxes.decode(outputs, student)) for outputs in (own, theirs)]
    classes = [flatten_levels(outputs.class_logits).tolist() for outputs in (own, theirs)]
    expected = {"class": 0.0, "location": 0.0}
    for n, r in itertools.product(range(2), range(96)):
        if ground.gt_index[n, r] == -2:
            continue
        gaps = [abs(sigmoid(a) - sigmoid(b)) for a, b in zip(classes[0][n][r], classes[1][n][r], strict=True)]
        both = zip(gaps, classes[0][n][r], classes[1][n][r], strict=True)
        expected["class"] += sum(gap * entropy(a, sigmoid(b)) for gap, a, b in both)
        giou = generalized_box_iou(decoded[0][n, r][None], decoded[1][n, r][None]).item()
        expected["location"] += (1 - giou) * max(gaps)
    terms = METHODS["bckd"](student, teacher)(own, theirs, ground)
    for term, value in expected.items():
        assert terms[f"bckd_{term}"].item() == pytest.approx(value / 6, rel=1e-4)
    terms["bckd_location"].backward()
    assert all(level.grad is None for level in own.class_logits)


def test_boxes_of_different_codes_are_compared_as_boxes():
    student, teacher = spec("little", "deltas"), spec("big", "distributions")
    for name in ("bckd", "soft_labels"):
        (method,), _ = (
            build_methods({name: {}}, replace(student), teacher)
            if name == "soft_labels"
            else build_methods({name: {"class_weight": 1, "location_weight": 1}}, student, teacher)
        )
        terms = method(record(student, 1), record(teacher, 2), truth())
        assert all(term.isfinite() and term > 0 for term in terms.values())


# -------------------------------------------------------------------------------------- no objects, and what is refused

EVERY = {
    "rank_mimicking": {"location_weight": 1},
    "pfi": {"feature_weight": 1},
    "soft_labels": {},
    "ld": {},
    "bckd": {},
}


@pytest.mark.parametrize("name", EVERY)
def test_without_objects_terms_are_zeros_that_stay_connected(name):
    student, teacher, own, theirs = pair("distributions")
    (method,), _ = build_methods({name: EVERY[name]}, student, teacher)
    terms = method(own, theirs, nothing())
    assert len(terms) == len(method.terms)
    for term in terms.values():
        assert term.requires_grad
        assert term.dtype == torch.float32
        assert term.item() == 0 or name == "pfi"
    sum(terms.values()).backward()
    grads = [level.grad for level in (*own.class_logits, *own.box_raw) if level.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_reaches_the_teacher_and_none_is_left_where_both_are_equal(name):
    student, teacher, own, theirs = pair("distributions")
    (method,), _ = build_methods({name: EVERY[name]}, student, teacher)
    sum(method(own, theirs, truth()).values()).backward()
    assert any(level.grad is not None and level.grad.abs().sum() > 0 for level in own.class_logits)
    assert all(level.grad is None for level in (*theirs.features, *theirs.class_logits, *theirs.box_raw))
    own = record(student, SEEDS[1])
    sum(method(own, theirs, truth()).values()).backward()
    for level in (*own.class_logits, *own.box_raw):
        assert level.grad is None or level.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_pairs_that_cannot_be_compared_are_refused(name):
    student = spec("little", "distributions")
    other = spec("big", "distributions", num_anchors=9, objectness=True, strides=(8, 32))
    with pytest.raises(UserError) as failure:
        build_methods({name: EVERY[name]}, student, other)
    for part in ("little", "big", "2 anchors per cell", "9 anchors per cell", "3 classes", "objectness", "(8, 32)"):
        assert part in str(failure.value)


def test_ld_needs_boxes_as_distributions_over_the_same_bins():
    student, teacher = spec("little", "distributions"), spec("big", "deltas")
    with pytest.raises(UserError, match="boxes are not distributions of both") as failure:
        build_methods({"ld": {}}, student, teacher)
    first, advice = str(failure.value).splitlines()[1:]
    assert first.endswith("the student little has distributions, the teacher big deltas")  # who serves is said below
    assert "soft_labels, " in advice
    assert "bckd, " in advice
    with pytest.raises(UserError, match="little has sides of 6 bins, the teacher big has sides of 17 bins"):
        build_methods({"ld": {}}, student, spec("big", "distributions", box_size=68))
    one = student, spec("big", "distributions", num_classes=1)
    with pytest.raises(UserError, match=r"ld_class: .*3 classes.*1 class"):
        build_methods({"ld": {}}, *one)
    assert list(METHODS["ld"].obstacles(replace(student, num_classes=1), one[1])) == ["class"]


def test_soft_labels_say_what_would_serve():
    student, teacher = spec("little", "distributions"), spec("big", "deltas")
    with pytest.raises(UserError, match=r"24 distributions, the teacher big has boxes as 4 deltas; .*boxes=decoded"):
        build_methods({"soft_labels": {"boxes": "raw"}}, student, teacher)
    single = replace(student, num_classes=1), replace(teacher, num_classes=1)
    with pytest.raises(UserError, match="softmax over the one class of little and big says nothing; use loss=bce"):
        build_methods({"soft_labels": {"loss": "kl"}}, *single)
    build_methods({"soft_labels": {}}, *single)
    with pytest.raises(UserError, match="9 anchors per cell") as failure:
        build_methods({"soft_labels": {"boxes": "raw"}}, student, replace(teacher, num_anchors=9))
    assert "boxes=decoded" not in str(failure.value)  # it would not help


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rank_mimicking", "soft_labels", "ld"])
def test_a_temperature_is_above_zero(name, temperature):
    student, teacher, *_ = pair("distributions")
    with pytest.raises(UserError, match=rf"methods.{name}.temperature: expected a number above 0, got"):
        METHODS[name](student, teacher, temperature=temperature)
