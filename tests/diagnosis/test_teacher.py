"""Faults planted in a teacher, or in the way in which it is used: each is found, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_detectors import small

from understudy.diagnosis.teacher import (
    accuracy_findings,
    class_findings,
    lead_findings,
    pixel_findings,
    proposal_findings,
    size_findings,
    weight_findings,
)
from understudy.evaluation.proposals import Recall

CLASSES = ["star", "ring", "cross", "arrow"]


def bad(findings):
    """The checks that found something, with their severity."""
    return {finding.check: finding.severity for finding in findings if finding.severity in ("fatal", "warning")}


def randomise(state):
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        if value.dim() > 1:
            value.copy_(0.03 * torch.randn(value.shape, generator=generator))


def zero(state):
    for value in state.values():
        value.zero_()


def named(trial, names):
    """The same teacher, whose labels have other names."""
    return replace(trial, teacher=replace(trial.teacher, classes=tuple(names)))


def test_a_good_teacher_passes(good):
    assert good.ap() > 0.7
    assert bad([*weight_findings(good.teacher), *accuracy_findings(good)]) == {}


def test_random_weights(trial_of, planted):
    found = list(accuracy_findings(trial_of(planted(randomise))))
    assert bad(found) == {"teacher's AP": "fatal"}
    assert "it detects almost nothing right: AP 0." in found[0].what


def test_weights_of_zero(trial_of, planted):
    trial = trial_of(planted(zero))
    assert bad(weight_findings(trial.teacher)) == {"teacher's weights": "fatal"}
    assert trial.ap() < 0.01


def test_swapped_colours(trial_of, planted, grey_in_blue):
    """A teacher that looks at red alone, on scenes that are in blue alone."""

    def only_red(state):
        stem = next(value for value in state.values() if value.dim() == 4 and value.shape[1] == 3)
        stem.copy_(torch.stack([stem.sum(1), 0 * stem[:, 0], 0 * stem[:, 0]], 1))

    trial = trial_of(planted(only_red), data=grey_in_blue)
    found = {finding.check: finding for finding in accuracy_findings(trial)}
    assert found["pixels"].severity == "fatal"
    assert "with red and blue swapped AP" in found["pixels"].what
    assert "blue, green, red" in found["pixels"].remedy
    tried = found["pixels"].facts["AP_of_variants"]
    assert max(tried, key=tried.get) == "red and blue swapped"


def test_another_normalisation(trial_of, planted, content, good):
    build = content["understudy"]["build"]
    trial = trial_of(planted(build=build | {"image_std": [1 / 255] * 3}))
    found = {finding.check: finding for finding in pixel_findings(trial)}
    assert found["pixels"].severity == "fatal"
    assert "with ImageNet's mean and standard deviation AP" in found["pixels"].what
    assert found["pixels"].remedy.endswith("--mean 123.7,116.3,103.5 --std 58.4,57.12,57.38")
    tried = found["pixels"].facts["AP_of_variants"]["ImageNet's mean and standard deviation"]
    assert tried == pytest.approx(good.ap(), abs=1e-3)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["ring", "star", "cross", "arrow"], "the classes are permuted"),
        (["ring", "cross", "arrow", "star"], "the labels are off by one"),
        (["arrow", "star", "ring", "cross"], "the labels are off by one"),
    ],
)
def test_classes_in_another_order(good, names, what):
    trial = named(good, names)
    found = {finding.check: finding for finding in class_findings(trial, trial.ap())}
    assert list(found) == ["class order"]
    assert found["class order"].severity == ("fatal" if trial.ap() < good.ap() / 2 else "warning")
    assert what in found["class order"].what
    assert found["class order"].facts["AP_by_sight"] == pytest.approx(good.ap())


def test_class_names_that_do_not_match(good):
    found = list(accuracy_findings(named(good, ["a", "b", "c", "d"])))
    assert bad(found) == {"class names": "fatal"}
    assert "By its detections, its 'a' is 'star', its 'b' is 'ring', its 'c' is 'cross'" in found[0].what
    assert found[0].remedy == "data.aliases='{star: a, ring: b, cross: c, arrow: d}'"


def test_one_class_of_another_name(good):
    trial = named(good, ["sun", *CLASSES[1:]])
    found = {each.check: each for each in class_findings(trial, trial.ap())}
    assert found["class names"].severity == "warning"
    assert "it lacks star. By its detections, its 'sun' is 'star'" in found["class names"].what
    assert list(found) == ["class names"]
    # The alias that it advises mends it.
    assert found["class names"].remedy == "data.aliases='{star: sun}'"
    trial = replace(trial, aliases={"star": "sun"})
    assert trial.ap() == good.ap()
    assert bad(class_findings(trial, trial.ap())) == {}


def test_a_missing_class_and_two_permuted_ones(good):
    trial = named(good, ["sun", "cross", "ring", "arrow"])
    found = {each.check: each for each in class_findings(trial, trial.ap())}
    assert list(found) == ["class names", "class order"]
    assert "its 'cross' is 'ring', its 'ring' is 'cross'" in found["class order"].what


def test_another_image_size_than_in_its_training(trial_of, teacher):
    trial = trial_of(teacher, size=48)
    found = {finding.check: finding for finding in size_findings(trial, trial.ap())}
    assert found["image size"].severity == "fatal"
    others = "data.shorter_side=96 data.longer_side=96, or a teacher trained at 48"
    assert found["image size"].remedy == f"teacher_scale=2 (the teacher sees larger images), {others}"


def test_a_lead_over_the_plain_student(good):
    nothing = replace(good, found=good.found.at(good.found.scores > 2))
    assert bad(lead_findings(good, nothing, "plain student")) == {}
    assert bad(lead_findings(good, good, "plain student")) == {"teacher's lead": "warning"}
    assert bad(lead_findings(nothing, good, "plain student")) == {"teacher's lead": "fatal"}


def test_proposals_of_two_stage_detectors_are_compared(good):
    def one_with(recall):
        return SimpleNamespace(proposals=lambda: Recall({10: 0.0, 100: 0.0, 1000: recall}, recall, recall, {}, {}))

    (behind,) = proposal_findings(one_with(0.611), one_with(0.623))
    assert (behind.severity, behind.facts) == ("note", {"teacher_AR1000": 0.611, "student_AR1000": 0.623})
    assert "teacher 61.1, plain student 62.3" in behind.what
    assert [found.severity for found in proposal_findings(one_with(0.62), one_with(0.61))] == ["ok"]
    assert list(proposal_findings(one_with(None), one_with(0.5))) == []  # no objects on the images
    assert list(proposal_findings(good, one_with(0.5))) == []  # the teacher has one stage


def test_proposals_of_a_trial_are_those_of_its_images(good):
    detector = small("faster_rcnn", len(CLASSES))
    found = replace(good, teacher=replace(good.teacher, detector=detector)).proposals()
    assert sum(found.objects.values()) == sum(len(record.labels) for record in good.sample.records)
    assert 0 < found.average[10] < found.average[1000] < 1
    assert detector.training


def test_the_trial_takes_fewer_images_if_they_take_too_long(good):
    assert len(good.within(0.0).sample) == 8
    enough = good.within(600.0)
    assert len(enough.sample) == 12
    assert enough.ap() == good.ap()
