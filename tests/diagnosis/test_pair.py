"""Anchors, levels, methods and cost of a pair."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_sets import squares
from small_detectors import small

from understudy.config import DistillConfig, TrainConfig, load_config, with_values
from understudy.data import open_data
from understudy.detectors import build_detector
from understudy.diagnosis.pair import (
    anchor_findings,
    cost_finding,
    default_findings,
    level_findings,
    method_findings,
    size_finding,
)
from understudy.pairing import pair
from understudy.training.cost import Cost
from understudy.training.defaults import Choice, Derived
from understudy.training.machine import Memory


def config_of(pictures: Path, **keys: Any) -> TrainConfig:
    return load_config(TrainConfig, {"data": str(pictures), "run": "unused"}, keys)


def test_anchors_far_from_the_boxes(pictures):
    data = open_data(pictures, "train")
    config = config_of(pictures, **{"data.shorter_side": 96, "data.longer_side": 96})
    fit, finding = anchor_findings(small("retinanet", classes=4, anchor_scale=2.0), data, config)
    assert fit is not None
    assert finding.severity == "ok"
    _, finding = anchor_findings(small("retinanet", classes=4, anchor_scale=32.0), data, config)
    assert finding.severity == "fatal"
    assert finding.remedy.startswith("detector.anchor_scale=")
    tiny = config_of(pictures, **{"data.shorter_side": 32, "data.longer_side": 32})
    _, finding = anchor_findings(small("fcos", classes=4), data, tiny)
    assert finding.severity in ("fatal", "warning")
    assert "smaller than one cell of the finest level (8 pixels)" in finding.what


def test_anchors_that_are_clearly_worse_than_others(pictures):
    keys = {"data.shorter_side": 160, "data.longer_side": 200, "detector": "retinanet_resnet18"}
    data, found = squares(24.0, count=12), {}
    for scale in (3.0, 4.0):
        config = config_of(pictures, **keys, **{"detector.anchor_scale": scale})
        found[scale] = anchor_findings(small("retinanet", classes=1, anchor_scale=scale), data, config)[1]
    assert found[3.0].severity == "ok"
    assert found[4.0].severity == "warning"
    assert "anchors of 3 strides fit the boxes clearly better: IoU of the boxes with their best" in found[4.0].what
    assert found[4.0].remedy == "detector.anchor_scale=3"
    distilled = load_config(DistillConfig, {"data": str(pictures), "run": "r", "teacher": "t"}, keys)
    _, finding = anchor_findings(small("retinanet", classes=1, anchor_scale=4.0), data, distilled)
    assert finding.remedy.startswith("detector.anchor_scale=3, also for the plain student, and for a teacher of")


def test_anchors_of_settings_that_suit_no_other_width():
    settings = {"groups": 32}
    config = load_config(
        TrainConfig, {"data": "d", "run": "r", "detector": {"name": "gfl_resnet18", "conventions": "mmdet"}}
    )
    config = with_values(config, {"data.shorter_side": [160], "data.longer_side": 200, "detector.settings": settings})
    student = build_detector("gfl_resnet18", num_classes=1, conventions="mmdet", neck_channels=64, settings=settings)
    assert anchor_findings(student, squares(40.0, count=12), config)[1].check == "anchors"


def test_levels_that_hold_objects_and_are_not_compared(pictures):
    student, teacher = small("retinanet", classes=4), small("faster_rcnn", classes=4)
    data = open_data(pictures, "train")
    fit, _ = anchor_findings(student, data, config_of(pictures, **{"data.shorter_side": 96, "data.longer_side": 96}))
    assert next(level_findings(pair(student.spec, student.spec), fit)).severity == "ok"
    found = next(level_findings(pair(student.spec, teacher.spec, list("abcd"), list("abcd")), fit))
    assert (found.severity, "not at 4, 128" in found.what) == ("note", True)
    reverse, _ = anchor_findings(
        teacher, data, config_of(pictures, **{"data.shorter_side": 96, "data.longer_side": 96})
    )
    found = next(level_findings(pair(teacher.spec, student.spec, list("abcd"), list("abcd")), reverse))
    assert found.severity == "warning"


def test_methods_that_serve_and_why_the_others_do_not():
    student, teacher = small("retinanet"), small("fcos", neck_channels=16)
    found = method_findings(student.spec, teacher.spec, balanced=True)
    assert "frs" in found.what
    assert "the student retinanet_resnet18 has the channels" in found.facts["unavailable"]["pkd"]
    assert "Not available: " in found.why


def test_weights_are_to_be_set_without_a_balance_only():
    spec = small("retinanet").spec
    assert "bckd (set its weights)" in method_findings(spec, spec, balanced=False).what
    assert "set its weights" not in method_findings(spec, spec, balanced=True).what


def test_a_student_that_is_hardly_smaller_and_where_its_cost_is(pictures):
    keys = {"data": pictures, "run": "none", "teacher": "none", "data.shorter_side": 70, "data.longer_side": 96}
    config = load_config(DistillConfig, keys)
    teacher = small("retinanet", neck_channels=64)
    found = size_finding(small("retinanet", neck_channels=16), teacher, config)
    assert found.severity == "ok"
    assert "for 96 x 96 pixels" in found.what
    assert found.facts["times"] == found.facts["teacher"]["multiply_adds"] / found.facts["student"]["multiply_adds"] > 2
    larger = size_finding(small("retinanet", neck_channels=16), teacher, with_values(config, {"teacher_scale": 2}))
    assert "multiply-adds, at 192 x 192: " in larger.what
    assert 3.9 < larger.facts["times"] / found.facts["times"] < 4.1
    found = size_finding(teacher, teacher, config)
    assert (found.severity, found.facts["times"]) == ("note", 1)
    assert found.remedy == "detector.neck_channels=16 (now 64)"
    narrow = small("retinanet", neck_channels=4)
    assert size_finding(narrow, narrow, config).remedy == "a smaller backbone, or detector.width_mult"


def test_the_cost_is_the_estimate_of_the_run(pictures):
    config = config_of(pictures, batch_size=4)
    cost = Cost(200, 0.5, 10, 2.0, bytes=3 * 2**30, more=2**30, memory=Memory(4 * 2**30, 2**31))
    found = cost_finding(Derived(config, (), cost))
    assert found.severity == "note"
    assert "200 steps of 0.5 s and 10 evaluations" in found.what
    assert (found.facts["steps"], found.facts["seconds"], found.facts["bytes"]) == (200, 120.0, 3 * 2**30)
    found = cost_finding(Derived(config, (), replace(cost, more=2**32)))
    assert (found.severity, "a smaller batch_size (now 4)" in found.remedy) == ("fatal", True)
    assert (
        "no estimate of time and memory: OSError: a reason"
        in cost_finding(Derived(config, (), None, OSError("a reason"))).what
    )


def test_defaults_are_listed(pictures):
    choices = (Choice("batch_size", 8, "little memory"), Choice("detector.norm", "batch", ""))
    (found,) = default_findings(Derived(config_of(pictures), choices, None))
    assert (found.severity, found.what) == ("note", "batch_size=8: little memory")
    assert list(default_findings(Derived(config_of(pictures), choices[1:], None))) == []
