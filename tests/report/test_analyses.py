"""The analyses on the page: which there are, on which images, and what is said about missing ones."""

from dataclasses import replace

import pytest

from understudy.data import open_data
from understudy.report.analyses import view_analyses
from understudy.report.views import RunView


@pytest.fixture
def views(trained, distilled):
    teacher = RunView("star", "star", "teacher", trained, result={})
    return teacher, RunView("frs", "frs", "distilled", distilled, result={})


def test_a_teacher_and_a_student_have_all_analyses(views, scenes):
    found = view_analyses(views, open_data(scenes, "val"), shown=1)
    assert [section.title for section in found] == [
        "Detections side by side",
        "Types of errors",
        "Classes confused, and precision over recall",
        "Ranks of the anchors of each object",
        "Feature and prediction differences to the teacher",
        "Entropy of the teacher's features",
        "Feature richness per level",
        "The teacher on the student's feature maps",
    ]
    assert all(chart.caption for section in found for chart in section.charts)
    assert len(found[0].pictures) == 1
    assert "on 4 images" in found[1].charts[0].caption
    assert found[2].sentences[0].startswith("Detections of frs on 4 validation images")
    assert "objects are detected" in found[2].charts[0].caption
    assert len(found[2].charts) == 2
    assert "in the cells of 2 images" in found[4].charts[0].caption
    assert len(found[4].charts) == 2
    assert len(found[-2].pictures) > 0
    (swap,) = found[-1].charts
    assert swap.caption.startswith("frs, its last weights, on 4 validation images. AP of the student")
    assert [each.get_text() for each in swap.figure.axes[0].get_xticklabels()] == ["student", "teacher", "N2N", "B2B"]


def test_without_images_to_measure_on_the_imitation_is_left_out_with_the_reason(views, scenes):
    data = open_data(scenes, "val")
    one = replace(data, records=data.records.take([0]))
    found = {section.title: section for section in view_analyses(views, one, shown=1)}
    assert "Feature and prediction differences to the teacher" not in found
    assert found["Analyses that are missing"].notes == (
        "The imitation needs at least 2 images, got 1: linear maps between the features are fitted on one half and the "
        "differences measured on the other.",
    )


def test_an_analysis_that_the_pair_does_not_permit_is_left_out_with_the_reason(views, scenes, confident):
    other = RunView("other", "other", "teacher", confident("retinanet_resnet18"), result={})
    found = {section.title: section for section in view_analyses([other, views[1]], open_data(scenes, "val"), shown=1)}
    assert "Ranks of the anchors of each object" not in found
    assert "The teacher on the student's feature maps" in found  # needs the same backbone, not the same anchors
    assert any("cannot compare these with other" in note for note in found["Analyses that are missing"].notes)


def test_without_a_teacher_there_are_detections_and_errors_alone(views, scenes):
    found = view_analyses(views[1:], open_data(scenes, "val"), shown=1)
    assert [section.title for section in found] == [
        "Detections side by side",
        "Types of errors",
        "Classes confused, and precision over recall",
    ]
