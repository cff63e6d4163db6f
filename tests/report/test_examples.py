"""Example images: their detections in the shown frame, and the count of objects found."""

from pathlib import Path

import numpy as np
import pytest

from understudy.analysis.shown import Boxes
from understudy.data.scenes import SCENE_CLASSES
from understudy.report.examples import count_found, view_examples
from understudy.report.views import RunView


def test_second_box_on_an_object_and_a_wrong_class_are_wrong():
    truth = Boxes(np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), ("cat", "dog"))
    box = [0.0, 0, 10, 9]
    found = Boxes(
        np.array([box, box, [20, 20, 30, 30], [0, 0, 10, 4]]), ("cat", "cat", "cat", "dog"), (0.9, 0.8, 0.7, 0.6)
    )
    assert count_found(found, truth) == 1
    assert count_found(Boxes(np.zeros((0, 4)), ()), truth) == 0


def test_examples_are_the_first_images_and_all_boxes_are_in_the_shown_frame(drawn):
    runs = [RunView(name, name, "plain", Path(name), result={}) for name in ("small", "large")]
    examples = view_examples(runs, drawn, count=2)
    assert len(examples) == 2
    assert examples[0].image.shape == (72, 72, 3)
    assert 20 < examples[0].image.mean() < 235
    np.testing.assert_allclose(examples[0].truth.boxes, drawn.records[0].boxes.numpy())
    assert set(examples[0].truth.names) <= set(SCENE_CLASSES)
    for found in examples[1].detections.values():
        assert found.scores == pytest.approx((0.9, 0.5))
        assert found.names == ("cross", "ring")
        np.testing.assert_allclose(found.boxes, [[0, 0, 36, 36]] * 2)
