"""What a teacher of larger images says on its finer levels, in the cells of the student's finest level."""

from dataclasses import replace

import pytest
import torch
from small_detectors import IMAGES, NAMES, SIZES, TARGETS, small
from torch.nn import functional as F

from understudy import Learner, build_methods, pair
from understudy.boxes import decode
from understudy.detectors.larger_images import with_larger_images
from understudy.folding import folded

LARGE = F.interpolate(IMAGES, scale_factor=2, mode="bilinear")


@pytest.fixture(scope="module", params=["retinanet", "fcos", "gfl"])
def record(request):
    """A teacher of larger images, and its record."""
    teacher = with_larger_images(small(request.param).requires_grad_(False).eval(), 2)
    return teacher, teacher(LARGE)


def slow(levels: list[torch.Tensor], logits: list[torch.Tensor]) -> torch.Tensor:
    """Cells of the second level, each with what its most confident part says; loops over all cells."""
    result = levels[1].clone()
    for image, row, column in torch.cartesian_prod(*map(torch.arange, result.shape[:3])).tolist():
        parts = [(0, 2 * row + down, 2 * column + right) for down in (0, 1) for right in (0, 1)] + [(1, row, column)]
        level, *place = max(parts, key=lambda part: float(logits[part[0]][image, part[1], part[2]].max()))
        result[image, row, column] = levels[level][image, place[0], place[1]]
    return result


def test_a_cell_says_what_its_most_confident_part_says(record):
    teacher, outputs = record
    found, logits = folded(outputs, teacher.spec, 1, [0]), outputs.class_logits
    assert torch.equal(found.class_logits[1], slow(logits, logits))
    moved = [level.movedim(1, -1) for level in outputs.features]
    assert torch.equal(found.features[1].movedim(1, -1), slow(moved, logits))
    assert torch.equal(decode(found, teacher.spec)[1], slow(decode(outputs, teacher.spec), logits))
    for place in (0, 2, 3, 4):
        for name in ("class_logits", "features"):
            assert getattr(found, name)[place] is getattr(outputs, name)[place]
    assert all(map(torch.equal, found.box_raw, outputs.box_raw))
    if "centerness" in outputs.extra:
        counts = [level[..., 0].numel() for level in outputs.anchors]
        parts = zip(outputs.extra["centerness"].split(counts, dim=1), outputs.anchors, strict=True)
        levels = [part.view(len(IMAGES), *anchors.shape[:3]) for part, anchors in parts]
        assert torch.equal(found.extra["centerness"].split(counts, dim=1)[1], slow(levels, logits).flatten(1))


def test_levels_that_are_no_multiple_repeat_their_border():
    """A level of 5 x 5 cells belongs to one of 3 x 3: the last cell of each row has parts in its first half only."""
    fine = torch.arange(25.0).view(1, 5, 5, 1, 1)
    none = torch.full((1, 3, 3, 1, 1), -1.0)
    anchors = [torch.zeros(5, 5, 1, 4), torch.zeros(3, 3, 1, 4)]
    teacher = with_larger_images(small("gfl"), 2)
    outputs = replace(teacher(LARGE), features=[], box_raw=[], extra={}, class_logits=[fine, none], anchors=anchors)
    found = folded(outputs, teacher.spec, 1, [0]).class_logits[1].view(3, 3)
    assert found.tolist() == [[6, 8, 9], [16, 18, 19], [21, 23, 24]]


def test_a_pairing_folds_for_teachers_of_larger_images_alone(record):
    teacher, outputs = record
    student = small(teacher.spec.family)
    common = pair(student.spec, teacher.spec, NAMES, NAMES)
    assert (common.folded_strides, common.dropped_strides) == ((4,), (128,))
    assert "what the teacher says at strides 4 counts in the student's cells of stride 8" in common.note
    reduced = common.teacher_record(outputs)
    assert torch.equal(reduced.class_logits[0], folded(outputs, teacher.spec, 1, [0]).class_logits[1])
    assert len(reduced.boxes) == 4
    few = pair(small(teacher.spec.family, 1).spec, teacher.spec, ["b"], NAMES).teacher_record(outputs)
    logits = [level[..., 1:2] for level in outputs.class_logits]  # classes that the student lacks decide nothing
    assert torch.equal(few.class_logits[0], slow(logits, logits))
    assert pair(student.spec, small("faster_rcnn").spec, NAMES, NAMES).folded_strides == ()
    finer = replace(student.spec, strides=(4, 8, 16, 32, 64), stage_strides=(4, 8, 16))
    assert pair(finer, teacher.spec, NAMES, NAMES).folded_strides == ()


@pytest.mark.parametrize("name", ["pkd", "frs", "hint"])
def test_the_scores_that_decide_are_computed_for_any_method(name):
    """Also for those that read features alone; and the part of the record that is read gives the same losses."""
    teacher, student = with_larger_images(small("gfl").requires_grad_(False).eval(), 2), small("gfl").train()
    common = pair(student.spec, teacher.spec, NAMES, NAMES)
    methods, _ = build_methods({name: {}}, common.student, common.teacher, balance=0.5)
    learner = Learner(student, methods, common).train()
    assert "class_logits" in (learner.needs.parts or ())
    assert learner.needs.levels == (0, 1, 2, 3, 4)
    part, whole = (learner(IMAGES, TARGETS, teacher(LARGE, needs=needs), SIZES) for needs in (learner.needs, None))
    torch.testing.assert_close(part, whole)
