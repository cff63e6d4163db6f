"""Which terms a pair of detectors serves, by what they read: levels, classes, anchors, kinds of predictions."""

from dataclasses import replace

import pytest
from small_detectors import NAMES, small

from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.compatibility import READS, anchor_differences, unreadable
from understudy.methods.loading import build_methods
from understudy.outputs import Spec
from understudy.pairing import pair

COMPARING = ("frs", "soft_labels", "rank_mimicking", "bckd", "pfi", "crosskd")
SET = Spec((16,), (32,), num_anchors=0, num_classes=3, dense=False, queries=10, decoder_layers=2, name="detr")
DENSE = Spec((8,), (32,), num_anchors=1, num_classes=3, box_code="distributions", box_size=68, name="dense")
OF_FEATURES = {"features", "objects", "layers"}
NO_DENSE = "has no dense predictions: it has a set of 10 queries"


@pytest.mark.parametrize("name", METHODS)
def test_terms_of_dense_predictions_name_the_detector_without_them(name):
    method = METHODS[name]
    options = {"strategies": "N2N"} if name == "dist2" else {}  # these Specs have no stages
    for student, teacher in ((SET, DENSE), (DENSE, SET), (SET, replace(SET, name="other"))):
        obstacles = method.obstacles(student, teacher, **options)
        for term, reads in method.reads_with(method.read(options)).items():
            role = "teacher" if teacher.name != "dense" else "student"
            sides = {"teacher_scores": {"teacher"}, "assignment": {"student"}, "student_anchors": {"student"}}
            sides["second_stage"] = set()  # for which dense predictions of the teacher are not enough
            if any(role in sides.get(each, {"student", "teacher"}) for each in set(reads) - OF_FEATURES - {"stages"}):
                assert f"the {role} {(teacher if role == 'teacher' else student).name} {NO_DENSE}" in obstacles[term]
        weights = {f"{term}_weight": 1.0 for term in method.all_terms()}
        if obstacles:
            with pytest.raises(UserError, match="Invalid method configuration"):
                build_methods({name: {**weights, **options}}, student, teacher)


def test_every_reason_names_both_sides_or_the_one_that_lacks_something():
    others = replace(DENSE, strides=(64,), num_classes=7, num_anchors=9, box_code="deltas", box_size=4, name="other")
    for name, readable in READS.items():
        for reason in readable.obstacles(DENSE, others):
            assert "dense" in reason or "other" in reason, name
        assert readable.obstacles(DENSE, DENSE) == [] or name in ("stages", "teacher_centerness", "second_stage")
    assert unreadable(("features", "boxes"), DENSE, others)[0] == (
        "the student dense has levels at strides (32,), the teacher other has levels at strides (64,)"
    )


# --- anchors ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused_with_the_way_out():
    for teacher, student in (("gfl", "retinanet"), ("faster_rcnn", "fcos")):
        pairing = pair(small(student).spec, small(teacher).spec, NAMES, NAMES)
        weights = {"feature_weight": 1, "class_weight": 1}
        with pytest.raises(UserError, match=r"other terms of frs can be used: methods.frs.class_weight=0") as failure:
            build_methods({"frs": weights}, pairing.student, pairing.teacher)
        assert pairing.student.name in str(failure.value)
        assert pairing.teacher.name in str(failure.value)


def test_anchors_of_other_sizes_are_not_compared():
    student, teacher = (small("retinanet_resnet18", anchor_scale=scale).spec for scale in (4, 8))
    for name in COMPARING:
        method = METHODS[name]
        assert not set(method.obstacles(student, student)) & set(method.terms)
        message = " ".join(method.obstacles(student, teacher).values())
        assert "in the first cell of stride 8 the student retinanet_resnet18 has an anchor of 46 x 22 pixels" in message


def test_anchors_that_were_rounded_are_the_same():
    for family in ("retinanet", "faster_rcnn"):
        rounded, exact = (small(f"{family}_resnet18", conventions=name) for name in ("torchvision", "mmdet"))
        assert rounded.spec.first_anchors != exact.spec.first_anchors
        assert anchor_differences(rounded.spec, exact.spec, raw=True) == []


def test_distances_are_compared_from_the_same_points_only():
    corner, middle = (small("fcos_resnet18", conventions=name).spec for name in ("torchvision", "mmdet"))
    corner = replace(corner, box_code=middle.box_code)
    assert anchor_differences(corner, middle) == []  # scores, and decoded boxes
    (message,) = anchor_differences(corner, middle, raw=True)
    assert "the point (0, 0)" in message
    assert "the point (4, 4)" in message
    assert "box" not in METHODS["soft_labels"].obstacles(corner, middle)
    for obstacles in (
        METHODS["soft_labels"].obstacles(corner, middle, boxes="raw"),
        METHODS["frs"].obstacles(corner, middle),
    ):
        assert "the point (4, 4)" in obstacles["box"]
        assert "class" not in obstacles


def test_anchors_go_with_their_levels():
    student, teacher = small("fcos_resnet18").spec, small("faster_rcnn_resnet18").spec
    common = pair(replace(student, objectness=True, num_classes=1), teacher)
    assert common.teacher.first_anchors == teacher.first_anchors[1:]
    assert common.student.first_anchors == student.first_anchors[:4]
