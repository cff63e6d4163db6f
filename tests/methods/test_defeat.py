"""DeFeat against a slow loop, the level of an object, and what DeFeat and FGD leave out."""

import itertools
from dataclasses import replace

import predictions
import pytest
import torch
from pairs import BIG, OF_FAMILY, record, truth
from references import NO_BOX, boxes, cells, ground, identity, pyramid, strides_reached, waved

from understudy.methods import METHODS
from understudy.methods.defeat import DeFeat
from understudy.outputs import Truth
from understudy.pairing import pair


def test_against_a_loop():
    method = identity(DeFeat(BIG, BIG))
    student, teacher = record(BIG, 1), record(BIG, 2)
    targets = boxes((4, 4, 36, 40)), boxes((0, 0, 120, 120))
    sums = {"foreground": 0.0, "background": 0.0}
    for level, (own, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
        inside = {(0, 0): (0, 0, 4, 5), (1, 1): (0, 0, 7, 7)}  # image, level: cells; 36 / 8 is cut off
        squares = {"foreground": [], "background": []}
        for image, (y, x) in itertools.product(range(2), cells(*own.shape[2:])):
            left, top, right, bottom = inside.get((image, level), (0, 0, 0, 0))
            kind = "foreground" if left <= x < right and top <= y < bottom else "background"
            squares[kind] += (own - theirs)[image, :, y, x].square().tolist()
        for kind, values in squares.items():
            sums[kind] += sum(values) / max(1, 2 * len(values)) / 2
    terms = method(student, teacher, ground(*targets))
    for kind, expected in sums.items():
        assert expected > 0
        assert terms[f"defeat_{kind}"].item() == pytest.approx(expected, rel=1e-5)


def test_the_values_of_the_authors_code():
    """The values are those of ggjy/DeFeat.pytorch @ c46a793, AnchorHead.get_gt_mask and the neck terms of train.py."""
    student, teacher = (predictions.spec(name, family="retinanet") for name in ("little", "big"))
    targets = boxes((4, 4, 30, 40), (0, 0, 111, 112)), boxes((10, 2, 50, 30))  # the largest is on the second level
    own, theirs = predictions.waves(student, 0.1), predictions.waves(teacher, 0.9)
    terms = waved(DeFeat(student, teacher))(own, theirs, ground(*targets))
    expected = {"defeat_foreground": 4.7737471764, "defeat_background": 4.6777645102}
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("family", "alone", "by_stride"),
    [
        ("faster_rcnn", (4, 8, 16, 32, 64), {80: (4, 8), 150: (8, 8), 300: (16, 16), 500: (32, 32)}),
        ("retinanet", (8, 16, 32, 64, 128), {80: (8, 8), 150: (16, 16), 300: (32, 32), 500: (64, 64)}),
    ],
)
def test_the_level_of_an_object_is_that_of_its_stride_whichever_levels_the_teacher_shares(family, alone, by_stride):
    """The two of each size: with a teacher of the same family, and with one of another, which lacks stride 4 or 128."""
    for side, expected in by_stride.items():
        for strides, stride in zip((alone, (8, 16, 32, 64)), expected, strict=True):
            spec = replace(BIG, family=family, strides=strides, channels=(8,) * len(strides), **OF_FAMILY[family])
            target = ground(boxes((4, 4, 4 + side, 4 + side)))
            assert strides_reached(DeFeat(spec, spec), "defeat_foreground", pyramid(spec), target) == {stride}


def test_a_detector_without_the_usual_finest_level_counts_from_its_own():
    for strides, side, expected in (((4, 8, 16), 80, 4), ((16, 32), 80, 16), ((16, 32), 300, 32), ((8, 32), 150, 8)):
        spec = replace(BIG, strides=strides, channels=(8,) * len(strides))
        target = ground(boxes((4, 4, 4 + side, 4 + side)))
        assert strides_reached(DeFeat(spec, spec), "defeat_foreground", pyramid(spec), target) == {expected}


# --- unlabelled images and classes that the teacher lacks: for DeFeat and FGD -----------------------------------------

OF_OBJECTS = ("foreground", "background")


@pytest.mark.parametrize("name", ["defeat", "fgd"])
def test_an_unlabelled_image_is_in_no_term_of_objects_and_dilutes_none(name):
    terms = [f"{name}_foreground", f"{name}_background"]
    method = identity(METHODS[name](BIG, BIG, terms=OF_OBJECTS))
    both, other = [record(BIG, seed) for seed in (1, 2)], [record(BIG, seed) for seed in (3, 4)]
    targets = truth(BIG).targets
    partly = ground(targets[0], NO_BOX, unlabelled=(1,))
    found = method(*both, partly)
    alone = method(*(each.of_images([0]) for each in both), ground(targets[0]))
    for term in terms:
        assert found[term].item() == pytest.approx(alone[term].item(), rel=1e-5)
        assert found[term] > 0
    mixed = [
        replace(each, features=[torch.stack([a[0], b[1]]) for a, b in zip(each.features, more.features, strict=True)])
        for each, more in zip(both, other, strict=True)
    ]
    assert all(torch.equal(value, found[term]) for term, value in method(*mixed, partly).items())
    nothing = method(*both, ground(NO_BOX, NO_BOX, unlabelled=(0, 1)))
    assert all(value == 0 for value in nothing.values())
    sum(nothing.values()).backward()
    assert not any(level.grad.any() for level in both[0].features)


@pytest.mark.parametrize("name", ["defeat", "fgd"])
def test_objects_of_classes_that_the_teacher_lacks_are_in_no_term_of_objects(name):
    """From the student's assignment through the pairing to the term: their features change nothing."""
    teacher = replace(BIG, num_classes=2)
    pairing = pair(BIG, teacher, ["cat", "dog", "cow"], ["dog", "cow"])
    method = identity(METHODS[name](pairing.student, pairing.teacher, terms=OF_OBJECTS))
    one, known = boxes((4, 4, 44, 44)), boxes((4, 4, 20, 20), (8, 8, 16, 24))
    targets = [one, {**known, "labels": torch.tensor([1, 2])}]  # the only object of the first image is a cat
    student, other = record(BIG, 1), record(teacher, 2)
    whole = Truth(targets, torch.full_like(truth(BIG).gt_index, -1))
    reduced = pairing.truth(whole, student)
    assert [len(each) for each in reduced.left_out] == [1, 0]
    records = pairing.student_record(student), pairing.teacher_record(other)
    before, plain = method(*records, reduced), method(*records, Truth(reduced.targets, whole.gt_index))
    changed = [level.clone() for level in records[0].features]
    changed[0][0, :, 1:5, 1:5] += 3  # within the cells of the cat on the one level of its size
    after = method(replace(records[0], features=changed), records[1], reduced)
    for term, value in before.items():
        assert torch.equal(after[term], value)
        assert (plain[term] == value) == (term == f"{name}_foreground")  # as if nothing had been left out
