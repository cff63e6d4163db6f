"""Anchors, levels, methods and cost of a pair."""

from pathlib import Path
from typing import Any

from small_detectors import small

from understudy.config import TrainConfig, load_config
from understudy.data import open_data
from understudy.diagnosis.pair import anchor_findings, cost_finding, level_findings, method_findings
from understudy.pairing import pair


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


def test_levels_that_hold_objects_and_are_not_compared(pictures):
    student, teacher = small("retinanet", classes=4), small("faster_rcnn", classes=4)
    data = open_data(pictures, "train")
    fit, _ = anchor_findings(student, data, config_of(pictures, **{"data.shorter_side": 96}))
    assert next(level_findings(pair(student.spec, student.spec), fit)).severity == "ok"
    found = next(level_findings(pair(student.spec, teacher.spec, list("abcd"), list("abcd")), fit))
    assert (found.severity, "not at 4, 128" in found.what) == ("note", True)
    reverse, _ = anchor_findings(teacher, data, config_of(pictures, **{"data.shorter_side": 96}))
    found = next(level_findings(pair(teacher.spec, student.spec, list("abcd"), list("abcd")), reverse))
    assert found.severity == "warning"


def test_methods_that_serve_and_why_the_others_do_not():
    student, teacher = small("retinanet"), small("fcos", neck_channels=16)
    found = method_findings(student.spec, teacher.spec)
    assert "frs" in found.what
    assert "the student retinanet_resnet18 has the channels" in found.facts["unavailable"]["pkd"]
    assert "Not available: " in found.why


def test_the_cost_is_that_of_the_steps(probe_of, batch, pictures):
    config = config_of(pictures, **{"schedule.epochs": 100, "evaluate_every": 10})
    found = cost_finding(probe_of(), [batch, batch], config, seconds=60)
    facts = found.facts
    assert facts["steps"] == 200
    assert facts["seconds"] == 200 * facts["seconds_per_step"]
    assert facts["bytes"] > 2**26
    assert "plus 10 evaluations" in found.what
