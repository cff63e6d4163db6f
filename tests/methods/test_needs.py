"""The teacher computes only what the methods read, and the losses are the same to the bit."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from pairs import CLASSES, FAMILIES, OBJECTS, tiny_detector, tiny_images
from torch import nn

from understudy.detectors import Detector, build_detector
from understudy.errors import MethodError
from understudy.learner import Learner
from understudy.methods import METHODS, Method
from understudy.outputs import Needs, Outputs
from understudy.pairing import Pairing, pair

PAIRS = [(family, family) for family in FAMILIES] + [("fcos", "faster_rcnn"), ("faster_rcnn", "gfl"), ("gfl", "fcos")]
"""Families of student and teacher; levels of the last but one and the one before differ."""


def detector(family: str, seed: int, conventions: str = "torchvision") -> Detector:
    if conventions == "torchvision":
        return tiny_detector(family, 16, seed)
    settings = {"fc_channels": 16} if family == "faster_rcnn" else {}
    options = {"conventions": conventions, "settings": settings, "neck_channels": 32, "width_mult": 1 / 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector(f"{family}_resnet18", CLASSES, **options)


@pytest.fixture(scope="module")
def couples() -> dict[tuple[str, str, str], tuple[Detector, Detector, Pairing]]:
    """Students, frozen teachers and their common ground."""
    found = {}
    for style, pairs in (("torchvision", PAIRS), ("mmdet", [("retinanet", "retinanet"), ("fcos", "fcos")])):
        for own, theirs in pairs:
            student, teacher = detector(own, 1, style), detector(theirs, 2, style).requires_grad_(False).eval()
            found[style, own, theirs] = student, teacher, pair(student.spec, teacher.spec)
    return found


def built(name: str, common: Pairing) -> Method | None:
    """A method with all terms, optional ones included, that serve a pair; None if there are none."""
    obstacles = METHODS[name].obstacles(common.student, common.teacher)
    terms = tuple(term for term in METHODS[name].all_terms() if term not in obstacles)
    torch.manual_seed(0)
    return METHODS[name](common.student, common.teacher, terms=terms) if terms else None


IMAGES, SIZES = tiny_images(), ((64, 64), (60, 50))
"""A batch with padding."""


@cache
def whole_record(teacher: Detector) -> Outputs:
    """The whole record of a teacher, computed once: no method changes it."""
    with torch.no_grad():
        return teacher(IMAGES, SIZES)


def losses(learner: Learner, teacher: Detector, needs: Needs | None) -> dict[str, torch.Tensor]:
    """The losses of the batch, with the whole record of the teacher or a part."""
    with torch.no_grad():
        outputs = teacher(IMAGES, SIZES, needs=needs) if needs else whole_record(teacher)
    torch.manual_seed(1)  # samples of a Faster R-CNN
    return learner(IMAGES, OBJECTS, outputs, SIZES, teacher=teacher)


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_are_those_with_the_whole_record(name, couples):
    served = 0
    for student, teacher, common in couples.values():
        method = built(name, common)
        if method is None:
            continue
        served += 1
        learner = Learner(student, [method], common)
        whole, part = losses(learner, teacher, None), losses(learner, teacher, learner.needs)
        assert whole.keys() == part.keys()
        assert [term for term in whole if not torch.equal(whole[term], part[term])] == []
    assert served


@pytest.mark.parametrize(
    "options",
    [
        {"strategies": "N2N"},
        {"strategies": ("N2N", "N2B"), "align": True},
        {"strategies": "B2B", "supervision": "both"},
        {"strategies": "N2B"},
    ],
    ids=str,
)
@pytest.mark.parametrize("terms", [("di",), ("fi",)])
def test_dist2(options, terms, couples):
    for names in (("gfl", "gfl"), ("fcos", "faster_rcnn")):
        student, teacher, common = couples["torchvision", *names]
        if "di" in terms and "di" in METHODS["dist2"].obstacles(common.student, common.teacher, **options):
            continue
        torch.manual_seed(0)
        method = METHODS["dist2"](common.student, common.teacher, terms=terms, **options)
        learner = Learner(student, [method], common)
        whole, part = losses(learner, teacher, None), losses(learner, teacher, learner.needs)
        assert [term for term in whole if not torch.equal(whole[term], part[term])] == []


@contextmanager
def counted(teacher: Detector) -> Iterator[Counter]:
    """Count the runs of the teacher's parts."""
    network, runs = teacher.network, Counter()
    parts = {"backbone": network.backbone.body, "neck": network.backbone.fpn}
    parts |= {"classes": network.head.classification_head.cls_logits}
    parts |= {"boxes": network.head.regression_head.bbox_reg}
    hooks = [part.register_forward_hook(lambda *_, name=name: runs.update([name])) for name, part in parts.items()]
    yield runs
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["hint"], {"backbone": 1, "neck": 1}),
        (["overhaul"], {"backbone": 1}),
        (["frs"], {"backbone": 1, "neck": 1, "classes": 5}),
        (["frs", "ld"], {"backbone": 1, "neck": 1, "classes": 5, "boxes": 5}),
        (["crosskd"], {"backbone": 1, "neck": 1, "classes": 5, "boxes": 5}),
        (["hint", "overhaul"], {"backbone": 1, "neck": 1}),
    ],
    ids=str,
)
def test_layers_whose_outputs_nobody_reads_do_not_run(methods, expected, couples):
    student, teacher, common = couples["torchvision", "gfl", "gfl"]
    learner = Learner(student, [METHODS[name](common.student, common.teacher) for name in methods], common)
    with counted(teacher) as runs, torch.no_grad():
        teacher(tiny_images(), needs=learner.needs)
    assert runs == expected


def test_dist2_without_fi_runs_no_backbone(couples):
    student, teacher, common = couples["torchvision", "gfl", "gfl"]
    method = METHODS["dist2"](common.student, common.teacher, terms=("di",), strategies="N2N")
    learner = Learner(student, [method], common)
    with counted(teacher) as runs:
        found = losses(learner, teacher, learner.needs)
    assert runs == {"classes": 5, "boxes": 5}  # on the student's maps
    assert found["dist2_di"] > 0


def test_levels_that_are_not_shared_run_no_head(couples):
    """The student of P3 to P6 reads no scores of P7."""
    _, teacher, _ = couples["torchvision", "gfl", "gfl"]
    with counted(teacher) as runs, torch.no_grad():
        found = teacher(tiny_images(), needs=Needs(frozenset({"class_logits"}), (0, 1, 2)))
        whole = teacher(tiny_images())
    assert runs["classes"] == 3 + 5
    assert [torch.equal(own, other) for own, other in zip(found.class_logits, whole.class_logits, strict=True)] == [
        *[True] * 3,
        *[False] * 2,
    ]
    assert [level.shape for level in found.class_logits] == [level.shape for level in whole.class_logits]


def test_a_head_of_another_kind_runs_whole(couples):
    """A head that changes its scores has no class tower to run alone."""
    _, teacher, _ = couples["torchvision", "retinanet", "retinanet"]
    teacher = copy.deepcopy(teacher)

    class Sharpened(type(teacher.network.head)):
        def forward(self, features):
            return {name: 2 * value for name, value in super().forward(features).items()}

    teacher.network.head.__class__ = Sharpened
    with torch.no_grad():
        found = teacher(tiny_images(), needs=Needs(frozenset({"class_logits"})))
        whole = teacher(tiny_images())
    assert all(torch.equal(own, other) for own, other in zip(found.class_logits, whole.class_logits, strict=True))


class Forgetful(Method):
    """Reads boxes that it does not name."""

    name, terms, weights, source = "forgetful", ("box",), {"*": {"box": 1.0}}, "this test"
    reads = {"box": ("features",)}

    def forward(self, student, teacher, truth, layers=None):
        """Compare the first level's boxes."""
        return {"forgetful_box": nn.functional.mse_loss(student.box_raw[0], teacher.box_raw[0])}


def test_a_method_that_reads_more_than_it_names_is_told_so(couples):
    student, teacher, common = couples["torchvision", "gfl", "gfl"]
    learner = Learner(student, [Forgetful(common.student, common.teacher)], common)
    assert losses(learner, teacher, None)["forgetful_box"] > 0
    with pytest.raises(MethodError, match=r"IndexError: .* \(of the teacher, `reads` names features\)"):
        losses(learner, teacher, learner.needs)
