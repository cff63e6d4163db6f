"""The confusion matrix and precision over recall: few classes with numbers and colours, many without."""

import numpy as np
import pytest

from understudy.figures import confusion_chart, precision_recall_chart


@pytest.mark.parametrize("classes", [2, 30])
def test_a_matrix_states_numbers_of_few_classes(classes):
    counts = np.eye(classes + 1, dtype=int) * 7
    axes = confusion_chart([f"c{number}" for number in range(classes)], counts).axes[0]
    assert [text.get_text() for text in axes.texts] == (["7"] * 3 if classes == 2 else [])
    assert [label.get_text() for label in axes.get_yticklabels()][:1] == ["c0 (7)"]
    assert np.array_equal(axes.images[0].get_array(), np.eye(classes + 1))


@pytest.mark.parametrize(("classes", "lines", "legend"), [(3, 3, 3), (30, 31, 1)])
def test_curves_of_many_classes_are_faint_and_have_a_mean(classes, lines, legend):
    recall = np.linspace(0, 1, 101)
    curves = {f"c{number}": (recall, np.full(101, number / classes)) for number in range(classes)}
    figure = precision_recall_chart(curves)
    assert len(figure.axes[0].lines) == lines
    assert len(figure.legends[0].get_texts()) == legend
    assert figure.axes[0].get_ylim()[0] == 0
