"""Charts and pictures: from plain arrays to matplotlib figures, for the page and as files.

Figures are built without ``pyplot``, so they leave no global state. Charts use two placeholder inks; :func:`as_svg`
replaces them by the page's text colours, so that they fit its light and its dark mode.
"""

from understudy.figures.charts import (
    Curve,
    bar_chart,
    cloud_chart,
    curve_chart,
    difference_chart,
    loss_charts,
    running_mean,
)
from understudy.figures.detectors import confusion_chart, precision_recall_chart
from understudy.figures.intervals import interval_chart
from understudy.figures.pictures import HEAT_FLOOR, Cell, detection_picture, heat_picture, sheet
from understudy.figures.points import Point, point_chart
from understudy.figures.style import (
    CLASS_COLOURS,
    INK,
    MORE_COLOURS,
    ROLE_COLOURS,
    STUDENT_COLOURS,
    Style,
    distinct_colours,
    styles,
)
from understudy.figures.writing import Captioned, as_image, as_svg, file_names, refuse_existing, write_figures

__all__ = [
    "CLASS_COLOURS",
    "HEAT_FLOOR",
    "INK",
    "MORE_COLOURS",
    "ROLE_COLOURS",
    "STUDENT_COLOURS",
    "Captioned",
    "Cell",
    "Curve",
    "Point",
    "Style",
    "as_image",
    "as_svg",
    "bar_chart",
    "cloud_chart",
    "confusion_chart",
    "curve_chart",
    "detection_picture",
    "difference_chart",
    "distinct_colours",
    "file_names",
    "heat_picture",
    "interval_chart",
    "loss_charts",
    "point_chart",
    "precision_recall_chart",
    "refuse_existing",
    "running_mean",
    "sheet",
    "styles",
    "write_figures",
]
