"""The figures of an evaluation: the confusion matrix, and precision over recall."""

import numpy as np

from understudy import figures
from understudy.evaluation.result import Evaluation
from understudy.figures import Captioned
from understudy.text import percent

FIGURES = ("confusion", "precision_recall")
"""Names of the figures."""


def evaluation_figures(evaluation: Evaluation) -> dict[str, Captioned]:
    """Return the figures of a detailed evaluation by name; those without numbers are left out."""
    found = {}
    if (confusion := evaluation.confusion) is not None:
        caption = (
            f"{confusion.sentence} Rows: true class, with its number of objects; columns: detected class; cells: "
            "number of objects, the colour is the share of the row. The last row counts detections without an object."
        )
        chart = figures.confusion_chart(confusion.classes, np.array(confusion.counts))
        found["confusion"] = Captioned(chart, caption)
    if evaluation.curves:
        recalls = np.linspace(0, 1, 101)
        curves = {
            f"{name} ({percent(float(np.mean(values)))})": (recalls, np.array(values))
            for name, values in evaluation.curves.items()
        }
        caption = (
            "Best precision at each recall or a higher one, at IoU 0.50, by class; in brackets COCO's AP50 of the "
            "class in percent, which is the mean over the 101 recalls."
        )
        found["precision_recall"] = Captioned(figures.precision_recall_chart(curves), caption)
    return found
