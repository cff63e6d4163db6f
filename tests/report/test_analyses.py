"""The analyses on the page: which there are, on which images, and what is said about missing ones."""

import pytest

from understudy.data import open_data
from understudy.report.analyses import view_analyses
from understudy.report.views import RunView


@pytest.fixture
def views(trained, distilled):
    teacher = RunView("star", "star", "teacher", trained, result={})
    return teacher, RunView("frs", "frs", "distilled", distilled, result={})


def test_a_teacher_and_a_student_have_all_analyses(views, scenes):
    found = view_analyses(views, open_data(scenes, "val"))
    assert [title for title, _ in found.charts] == [
        "Types of errors",
        "Types of errors",
        "Ranks of the anchors of each object",
        "Entropy of the teacher's features",
    ]
    assert all(captioned.caption for _, captioned in found.charts)
    assert found.remarks[0] == "The analyses are on 4 validation images, evenly spread, at the image size of frs."
    assert len(found.richness) > 0


def test_an_analysis_that_the_pair_does_not_permit_is_left_out_with_the_reason(views, scenes, confident):
    other = RunView("other", "other", "teacher", confident("retinanet_resnet18"), result={})
    found = view_analyses([other, views[1]], open_data(scenes, "val"))
    assert "Ranks of the anchors of each object" not in dict(found.charts)
    assert any("cannot compare these with other" in remark for remark in found.remarks)


def test_without_a_teacher_there_are_errors_alone(views, scenes):
    found = view_analyses(views[1:], open_data(scenes, "val"))
    assert {title for title, _ in found.charts} == {"Types of errors"}
    assert found.richness == ()
