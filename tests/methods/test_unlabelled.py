"""What an unlabelled image, beside a labelled one, changes in the terms of methods that read the ground truth."""

from dataclasses import replace

import pytest
import torch
from pairs import Inputs, home, made_up_specs, record, truth

from understudy.functional.relations import cosine_similarities
from understudy.functional.richness import richness_masks
from understudy.methods import METHODS
from understudy.outputs import Truth

WITH_TRUTH_ALONE = ("rank_mimicking", "bckd", "ld", "soft_labels", "fine_grained")
"""Methods whose every term is computed where there are objects, so that an unlabelled image has no part in it."""


def unlabelled_beside(inputs: Inputs) -> Inputs:
    """The same batch, of whose second image nothing is known."""
    gt_index = inputs.truth.gt_index.clone()
    gt_index[1] = -2
    nothing = {name: value[:0] for name, value in inputs.truth.targets[1].items()}
    return replace(inputs, truth=Truth([inputs.truth.targets[0], nothing], gt_index))


@pytest.mark.parametrize("name", WITH_TRUTH_ALONE)
def test_an_unlabelled_image_changes_nothing(name):
    pair = home(name)
    method, inputs = pair.made(), pair.inputs()
    beside, alone = unlabelled_beside(inputs).terms(method), inputs.of_images([0]).terms(method)
    assert beside.keys() == alone.keys()
    for term, value in alone.items():
        assert value > 0
        assert beside[term].item() == pytest.approx(value.item(), rel=1e-5), term


@pytest.mark.parametrize("region", ["tp", "tp_fn", "tp_tn"])
def test_no_cell_of_an_unlabelled_image_is_chosen_by_its_ground_truth(region):
    student, teacher = (record(spec, seed) for seed, spec in enumerate(made_up_specs("retinanet")))
    ground = truth(made_up_specs("retinanet")[0])
    ground.gt_index[1] = -2
    masks = richness_masks(student, teacher, ground, region=region, threshold=0.9)
    assert any(mask[0].any() for mask in masks)
    assert not any(mask[1].any() for mask in masks)


def test_objects_that_the_teacher_does_not_know_are_no_true_negatives():
    student, teacher = (record(spec, seed) for seed, spec in enumerate(made_up_specs("retinanet")))
    ground = truth(made_up_specs("retinanet")[0])
    unknown = [torch.tensor([[0.0, 0, 64, 48]]), torch.zeros(0, 4)]  # all of the first image
    before = richness_masks(student, teacher, ground, region="tp_tn", threshold=0.99)
    after = richness_masks(student, teacher, replace(ground, left_out=unknown), region="tp_tn", threshold=0.99)
    assert before[0][0].any()
    for level, (own, other) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(own[1], other[1]), level
        assert not other[0].any(), level
    detected = richness_masks(student, teacher, replace(ground, left_out=unknown), region="tp", threshold=0.0)
    assert detected[0][0].any()  # where a known object lies, too


@pytest.mark.parametrize("name", ["bckd", "soft_labels"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_stands_in_an_ignored_anchor_reaches_neither_value_nor_gradient(name, side):
    pair = home(name)
    method = METHODS[name](pair.student, pair.teacher, **({"anchors": "all"} if name == "soft_labels" else {}))
    inputs = pair.inputs()
    place = (inputs.truth.gt_index[0] == -2).nonzero()[0].item()
    expected = {term: value.item() for term, value in inputs.terms(method).items()}
    anchors = inputs.student.class_logits[0].shape[3]
    cells = inputs.student.class_logits[0].shape[2]
    assert place < inputs.student.class_logits[0][0, ..., 0].numel()
    where = 0, place // anchors // cells, place // anchors % cells, place % anchors
    broken = getattr(inputs, side)
    with torch.no_grad():
        broken.class_logits[0][where] = torch.nan
        broken.box_raw[0][where] = torch.nan
    terms = inputs.terms(method)
    assert {term: value.item() for term, value in terms.items()} == expected
    torch.stack(list(terms.values())).sum().backward()
    for level in (*inputs.student.class_logits, *inputs.student.box_raw):
        assert level.grad.isfinite().all()


def test_a_cell_without_features_gets_no_gradient_from_similarities():
    features = torch.randn(1, 3, 2, 2)
    features[0, :, 0, 0] = 0
    features.requires_grad_()
    similarities = cosine_similarities(features)
    assert similarities[0, 0].abs().max() == 0
    similarities.sum().backward()
    assert features.grad[0, :, 0, 0].abs().max() == 0
    assert 0 < features.grad.abs().max() < 100
