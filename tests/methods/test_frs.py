"""FRS against slow loops, with each of its options."""

import itertools
import math
from dataclasses import replace

import predictions
import pytest
import torch
from pairs import (
    BIG,
    FAMILIES,
    LITTLE,
    OBJECTS,
    OF_FAMILY,
    made_up_specs,
    record,
    run,
    tiny_detector,
    tiny_images,
    tiny_teacher,
    truth,
)
from references import identity, waved
from torchvision.ops import generalized_box_iou

from understudy.boxes import decode
from understudy.errors import UserError
from understudy.functional import (
    balanced_over_classes,
    deviation,
    feature_richness,
    richness_masks,
    total_mass,
    weighted_box_loss,
    weighted_class_loss,
    weighted_feature_loss,
)
from understudy.learner import Learner
from understudy.methods.frs import FRS
from understudy.methods.loading import build_methods
from understudy.methods.weighting import TermWeight
from understudy.pairing import pair

ONE_ANCHOR = replace(BIG, num_anchors=1, name="anchorless")
RPN = replace(BIG, family="faster_rcnn", name="two_stage", **OF_FAMILY["faster_rcnn"])


def test_by_default_it_is_bit_equal_to_its_two_equations():
    (method,), weights = build_methods({"frs": {}}, LITTLE, BIG)
    assert weights == {"frs_feature": TermWeight(0.005, 500), "frs_class": TermWeight(0.02, 500)}
    student, teacher = record(LITTLE, 1), record(BIG, 2)
    masks = [feature_richness(logits) for logits in teacher.class_logits]
    adapted = [adapter(own) for adapter, own in zip(method.adapters, student.features, strict=True)]
    pairs = {
        "frs_feature": (weighted_feature_loss, adapted, teacher.features),
        "frs_class": (weighted_class_loss, student.class_logits, teacher.class_logits),
    }
    terms = method(student, teacher, truth(LITTLE))
    assert list(terms) == list(pairs)
    for name, (loss, own, theirs) in pairs.items():
        levels = [loss(*level) for level in zip(own, theirs, masks, strict=True)]
        assert torch.equal(terms[name], torch.stack(levels).sum())


def test_against_a_slow_loop_over_levels():
    method = identity(FRS(BIG, BIG))
    student, teacher = record(BIG, 1), record(BIG, 2)
    expected = 0.0
    for own, theirs, logits in zip(student.features, teacher.features, teacher.class_logits, strict=True):
        above = below = 0.0
        for n, y, x in itertools.product(*map(range, logits.shape[:3])):
            weight = torch.sigmoid(logits[n, y, x].max()).item()
            above += weight * (own[n, :, y, x] - theirs[n, :, y, x]).square().sum().item()
            below += weight
        expected += above / below
    assert method(student, teacher, truth(LITTLE))["frs_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_the_values_of_the_authors_code():
    """The values are those of duzhixing/FRS @ decd60c, Distilling_FRS_Single.forward_train, with weights 1."""
    student = predictions.spec("little", family="retinanet")
    teacher = predictions.spec("big", family="retinanet", channels=(6, 6))
    records = predictions.waves(student, 0.1), predictions.waves(teacher, 0.9), predictions.truth()
    terms = {name: term.item() for name, term in waved(FRS(student, teacher))(*records).items()}
    assert terms == pytest.approx({"frs_feature": 108.9999253778, "frs_class": 7.4381825550}, rel=1e-6)


def test_the_mask_ignores_the_ground_truth():
    method, student, teacher, first = run("frs")
    second = method(student, teacher, truth(LITTLE, (0, 0)))
    assert torch.equal(first["frs_feature"], second["frs_feature"])


def test_the_normaliser_per_image_differs_from_that_per_batch():
    batch, image = (run("frs", normaliser=each)[3]["frs_feature"].item() for each in ("batch", "image"))
    assert batch != pytest.approx(image, rel=1e-6)


def test_cells_are_compared_where_anchors_differ():
    (method,), _ = build_methods({"frs": {"scores": "cell", "ramp_steps": 0}}, LITTLE, ONE_ANCHOR)
    student, teacher = record(LITTLE, 1), record(ONE_ANCHOR, 2)
    expected = 0.0
    for own, theirs in zip(student.class_logits, teacher.class_logits, strict=True):
        above = below = 0.0
        for n, y, x in itertools.product(range(2), range(own.shape[1]), range(own.shape[2])):
            weight = theirs[n, y, x].max().sigmoid().item()
            below += weight
            for k in range(3):
                score = max(own[n, y, x, a, k].sigmoid().item() for a in range(2))
                soft = theirs[n, y, x, 0, k].sigmoid().item()
                above -= weight * (soft * math.log(score) + (1 - soft) * math.log(1 - score))
        expected += above / below
    terms = method(student, teacher, truth(LITTLE))
    assert terms["frs_class"].item() == pytest.approx(expected, rel=1e-5)
    terms["frs_class"].backward()
    assert all(logits.grad.abs().sum() > 0 for logits in student.class_logits)


@pytest.mark.parametrize("scores", ["anchor", "cell"])
def test_objectness_is_not_compared_with_classes(scores):
    options = {"feature_weight": 1.0, "class_weight": 1.0, "scores": scores}
    for student, teacher in ((LITTLE, RPN), (RPN, BIG), (replace(LITTLE, num_classes=1), RPN)):
        with pytest.raises(
            UserError, match=r"frs_class: the student \w+ has (objectness|3 classes|1 class), the teac"
        ) as failure:
            build_methods({"frs": options}, student, teacher)
        assert "scores=cell" not in str(failure.value)  # it would not help
        (method,), _ = build_methods({"frs": {"feature_weight": 1, "class_weight": 0}}, student, teacher)
        assert method(record(student, 1), record(teacher, 2), truth(LITTLE))["frs_feature"] > 0
    (method,), _ = build_methods({"frs": options}, RPN, RPN)
    assert method(record(RPN, 1), record(RPN, 2), truth(LITTLE))["frs_class"] > 0


def test_centerness_changes_the_mask_and_is_refused_where_there_is_none():
    specs = made_up_specs("fcos")
    plain, counted = (run("frs", *specs, centerness=each)[3]["frs_class"] for each in (False, True))
    assert plain != counted
    with pytest.raises(UserError, match=r"the teacher big has no centre-ness; set methods.frs.centerness=false"):
        build_methods({"frs": {"centerness": True}}, LITTLE, BIG)


def test_a_region_reads_the_ground_truth():
    method, student, teacher, terms = run("frs", region="tp_fn")
    assert all("assignment" in reads for reads in method.reads.values())
    masks = richness_masks(student, teacher, truth(LITTLE), region="tp_fn")
    levels = zip(student.class_logits, teacher.class_logits, masks, strict=True)
    expected = sum(weighted_class_loss(*level) for level in levels)
    assert terms["frs_class"].item() == pytest.approx(expected.item())
    assert not any("assignment" in reads for reads in run("frs", region="tp_fp")[0].reads.values())


def test_the_box_term_is_off_unless_it_has_a_weight_and_compares_raw_outputs():
    other = made_up_specs("fcos")[1]
    weights = {"feature_weight": 1, "class_weight": 0}
    build_methods({"frs": weights}, LITTLE, other)  # box has no weight
    with pytest.raises(UserError) as failure:
        build_methods({"frs": {**weights, "box_weight": 0.2}}, LITTLE, other)
    for part in ("frs_box: the student little has 2 anchors", "boxes as 4 deltas", "boxes as 4 distances in strides"):
        assert part in str(failure.value)

    (method,), terms = build_methods({"frs": {"feature_weight": 0, "class_weight": 0, "box_weight": 0.2}}, LITTLE, BIG)
    assert terms == {"frs_box": TermWeight(0.2, 500)}
    assert not list(method.parameters())
    student, teacher = record(LITTLE, 1), record(BIG, 2)
    found = method(student, teacher, truth(LITTLE))
    levels = zip(student.box_raw, teacher.box_raw, map(feature_richness, teacher.class_logits), strict=True)
    assert list(found) == ["frs_box"]
    assert found["frs_box"].item() == pytest.approx(sum(weighted_box_loss(*level) for level in levels).item())
    found["frs_box"].backward()
    assert all(raw.grad.abs().sum() > 0 for raw in student.box_raw)


# --- options for narrow pyramids --------------------------------------------------------------------------------------


def slow_feature(student, teacher, masks, sizes) -> float:
    """The feature term with one divisor, for features in units of `sizes`, by level."""
    above = below = 0.0
    for own, theirs, mask, size in zip(student.features, teacher.features, masks, sizes, strict=True):
        for n, y, x in itertools.product(*map(range, mask.shape)):
            squares = ((own - theirs) / size)[n, :, y, x].square().sum().item()
            above += mask[n, y, x].item() * squares
            below += mask[n, y, x].item()
    return above / below


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("standardise", [None, "level", "channel"])
def test_a_pyramid_with_one_divisor_against_a_slow_loop(family, standardise):
    specs = made_up_specs(family, same_channels=True)
    method = identity(FRS(*specs, terms=("feature",), normaliser="pyramid", standardise=standardise))
    student, teacher = (record(spec, seed) for seed, spec in enumerate(specs, 1))
    with torch.no_grad():
        teacher.features[1] *= 8
    sizes = [deviation(level, standardise) if standardise else 1.0 for level in teacher.features]
    expected = slow_feature(student, teacher, map(feature_richness, teacher.class_logits), sizes)
    loss = method(student, teacher, truth(specs[0]))["frs_feature"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(level.grad.any() for level in student.features)
    assert all(level.grad is None for level in teacher.features)


def test_all_terms_have_the_divisor_of_the_pyramid():
    _, student, teacher, terms = run("frs", normaliser="pyramid", threshold=0.7)
    masks = [(feature_richness(logits) > 0.7).float() for logits in teacher.class_logits]
    divisor = sum(mask.sum() for mask in masks)
    levels = zip(student.class_logits, teacher.class_logits, masks, strict=True)
    expected = sum(weighted_class_loss(*level) * level[-1].sum() for level in levels) / divisor
    assert terms["frs_class"].item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = FRS(LITTLE, BIG, normaliser="pyramid", threshold=0.9999)(student, teacher, truth(LITTLE))
    assert all(term.item() == 0 and term.requires_grad for term in nothing.values())


def test_the_size_of_a_level_does_not_matter_if_it_is_standardised():
    method, student, teacher = identity(FRS(BIG, BIG, standardise="level")), record(BIG, 1), record(BIG, 2)
    before = method(student, teacher, truth(LITTLE))["frs_feature"]
    with torch.no_grad():
        for record_ in (student, teacher):
            record_.features[1].mul_(8).add_(3)
    assert method(student, teacher, truth(LITTLE))["frs_feature"].item() == pytest.approx(before.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("own", "other"), [*((family, family) for family in FAMILIES), ("fcos", "gfl"), ("gfl", "fcos")]
)
def test_decoded_boxes_against_a_slow_loop(own, other):
    specs = made_up_specs(own)[0], made_up_specs(other)[1]
    weights = {"feature_weight": 0, "class_weight": 0, "box_weight": 1, "ramp_steps": 0}
    (method,), _ = build_methods({"frs": {**weights, "boxes": "decoded"}}, *specs)
    student, teacher = (record(spec, seed) for seed, spec in enumerate(specs, 1))
    loss = method(student, teacher, truth(specs[0]))["frs_box"]
    expected = 0.0
    pairs = (decode(outputs, spec) for outputs, spec in zip((student, teacher), specs, strict=True))
    for boxes, others, logits in zip(*pairs, teacher.class_logits, strict=True):
        above = below = 0.0
        for n, y, x in itertools.product(*map(range, logits.shape[:3])):
            scores = [max(anchor).sigmoid().item() for anchor in logits[n, y, x]]
            for a, score in enumerate(scores):
                giou = generalized_box_iou(boxes[n, y, x, a][None], others[n, y, x, a][None]).item()
                above += max(scores) * score / sum(scores) * (1 - giou)
            below += max(scores)
        expected += above / below
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(raw.grad.isfinite().all() and raw.grad.any() for raw in student.box_raw)
    assert all(raw.grad is None for raw in teacher.box_raw)


def test_cells_of_rare_classes_count_more():
    specs = made_up_specs("retinanet")
    student, teacher = (record(spec, seed) for seed, spec in enumerate(specs, 1))
    terms = {
        balanced: FRS(*specs, normaliser="pyramid", class_balance=balanced)(student, teacher, truth(specs[0]))
        for balanced in (False, True)
    }
    masks = balanced_over_classes([feature_richness(level) for level in teacher.class_logits], teacher.class_logits)
    levels = zip(student.class_logits, teacher.class_logits, masks, strict=True)
    expected = sum(weighted_class_loss(*level, total_mass(masks)).item() for level in levels)
    assert terms[True]["frs_class"].item() == pytest.approx(expected, rel=1e-5)
    assert terms[False]["frs_class"].item() != pytest.approx(expected, rel=1e-4)


def test_a_refusal_names_the_boxes_that_help():
    specs, weights = (made_up_specs("fcos")[0], made_up_specs("gfl")[1]), {"feature_weight": 1, "class_weight": 0}
    with pytest.raises(UserError, match=r"frs_box: .*set methods\.frs\.boxes=decoded to compare boxes of any code"):
        build_methods({"frs": {**weights, "box_weight": 1}}, *specs)
    with pytest.raises(UserError, match="frs_box: the student little has 2 anchors") as failure:
        build_methods({"frs": {**weights, "box_weight": 1}}, LITTLE, ONE_ANCHOR)
    assert "boxes=decoded" not in str(failure.value)  # it would not help
    needs = FRS(*specs, terms=("box",), boxes="decoded").needs
    assert needs == {"class_logits", "box_raw"}


@pytest.mark.parametrize(
    ("own", "other", "terms"),
    [
        ("faster_rcnn", "faster_rcnn", ("feature", "class", "box")),
        ("gfl", "fcos", ("feature", "class", "box")),
        ("retinanet", "faster_rcnn", ("feature",)),  # with other levels, and other scores
    ],
)
def test_real_detectors_of_equal_and_other_levels(own, other, terms):
    student, teacher = tiny_detector(own, 16, seed=5), tiny_teacher(other)
    common = pair(student.spec, teacher.spec)
    assert (len(common.student.strides) < len(student.spec.strides)) == (own == "retinanet")
    options = {"normaliser": "pyramid", "standardise": "channel", "boxes": "decoded"}
    learner = Learner(student, [FRS(common.student, common.teacher, terms=terms, **options)], common)
    images = tiny_images()
    with torch.no_grad():
        outputs = teacher(images, needs=learner.needs)
    losses = learner(images, OBJECTS, outputs)
    assert set(learner.distillation_terms) == {f"frs_{term}" for term in terms}
    for name in learner.distillation_terms:
        wanted = student.network.parameters()
        gradients = torch.autograd.grad(losses[name], list(wanted), retain_graph=True, allow_unused=True)
        assert losses[name].isfinite()
        assert any(gradient is not None and gradient.any() for gradient in gradients), name
