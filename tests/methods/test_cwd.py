"""CWD against a slow loop over channels."""

import itertools
import math
from dataclasses import replace

import pytest
from pairs import BIG, LITTLE, run
from predictions import spec, truth, waves
from references import softmax

from understudy.errors import UserError
from understudy.methods.cwd import CWD


def divergence(student: list[float], teacher: list[float], temperature: float) -> float:
    own, theirs = softmax(student, temperature), softmax(teacher, temperature)
    return sum(t * (math.log(t) - math.log(s)) for t, s in zip(theirs, own, strict=True))


@pytest.mark.parametrize("on", ["features", "logits"])
def test_it_is_a_divergence_per_channel(on):
    student = replace(LITTLE, channels=BIG.channels)
    _, own, theirs, terms = run("cwd", student, on=on, temperature=2.0)
    maps = [
        outputs.features
        if on == "features"
        else [logits.permute(0, 3, 4, 1, 2).flatten(1, 2) for logits in outputs.class_logits]
        for outputs in (own, theirs)
    ]
    expected = 0.0
    for mine, other in zip(*maps, strict=True):
        count = mine.shape[0] * mine.shape[1]
        for n, c in itertools.product(*map(range, mine.shape[:2])):
            values = mine[n, c].flatten().tolist(), other[n, c].flatten().tolist()
            expected += 4 * divergence(*values, 2.0) / count
    assert terms["cwd_channel"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("on", "temperature", "value"),
    [
        ("features", 1.0, 0.2690149448),
        ("features", 2.0, 0.2895131377),
        ("logits", 1.0, 1.4179597235),
        ("logits", 2.0, 2.0999471684),
    ],
)
def test_the_values_of_another_projects_code(on, temperature, value):
    """The values are those of open-mmlab/mmrazor @ 90c7af1, ChannelWiseDivergence, summed over levels."""
    student, teacher = (spec(name, family="retinanet", channels=(6, 6)) for name in ("little", "big"))
    terms = CWD(student, teacher, on=on, temperature=temperature)(waves(student, 0.1), waves(teacher, 0.9), truth())
    assert terms["cwd_channel"].item() == pytest.approx(value, rel=1e-6)


def test_logits_need_equal_anchors_and_classes():
    one = replace(BIG, num_anchors=1)
    CWD(LITTLE, one)
    with pytest.raises(UserError, match=r"little has 2 anchors per cell, the teacher big has 1.*set .*cwd.on=features"):
        CWD(LITTLE, one, on="logits")
    with pytest.raises(UserError, match=r"3 classes.*objectness"):
        CWD(LITTLE, replace(BIG, num_classes=1, objectness=True), on="logits")
    with pytest.raises(UserError, match="levels at strides") as failure:
        CWD(LITTLE, replace(one, strides=(8, 32)), on="logits")
    assert "cwd.on=features" not in str(failure.value)  # it would not help
