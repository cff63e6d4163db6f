"""The numbers of one evaluation: COCO's 12, VOC's AP50, both per class, and their tables for the terminal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy.class_matching import hint_on, shown_pairs
from understudy.evaluation.confusion import Confusion
from understudy.text import listed, percent

if TYPE_CHECKING:
    from understudy.figures import Captioned


@dataclass(frozen=True)
class Evaluation:
    """Average precision and recall of a detector on one split.

    Every number is in 0..1, or nan if it is not defined (a class without objects).

    Attributes:
        coco: COCO's 12 numbers: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
        per_class: COCO's AP of each class, by name.
        voc: VOC's ``AP50`` (area under the precision envelope) and ``AP50_11point``, means over the classes.
        voc_per_class: VOC's AP50 (area) of each class, by name.
        images: number of images evaluated.
        unknown_classes: classes of the data set that the detector lacks; all their objects count as missed.
        unused_classes: classes of the detector that the data set lacks; their detections are left out.
        renamed_classes: pairs of names of the detector and the data set that match although they are not spelled alike.
        objects: number of objects of each class that count, by name.
        checkpoint: what was evaluated, on which data set and split; these three are empty if unknown.
        data: the data set.
        split: the split.
        confusion: the confusion matrix; None if it was not asked for.
        curves: precision of each class at the recalls 0, 0.01, ..., 1 and IoU 0.50, the best at that recall or a
            higher one; None if not asked for.
        data_digest: digest of the split (:func:`~understudy.data.digests.digest_of_split`); empty if unknown.
    """

    coco: dict[str, float]
    per_class: dict[str, float]
    voc: dict[str, float]
    voc_per_class: dict[str, float]
    images: int
    unknown_classes: tuple[str, ...] = ()
    unused_classes: tuple[str, ...] = ()
    renamed_classes: tuple[tuple[str, str], ...] = ()
    objects: dict[str, int] = field(default_factory=dict)
    checkpoint: str = ""
    data: str = ""
    split: str = ""
    confusion: Confusion | None = None
    curves: dict[str, list[float]] | None = None
    data_digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON; nan becomes None."""
        place = {"checkpoint": self.checkpoint, "data": self.data, "split": self.split} if self.checkpoint else {}
        details: dict[str, Any] = {"confusion": self.confusion.to_dict()} if self.confusion else {}
        if self.curves is not None:
            details["curves"] = self.curves
        return {
            **place,
            "coco": _nan_to_none(self.coco),
            "per_class": _nan_to_none(self.per_class),
            "voc": _nan_to_none(self.voc),
            "voc_per_class": _nan_to_none(self.voc_per_class),
            "images": self.images,
            "objects": self.objects,
            "unknown_classes": list(self.unknown_classes),
            "unused_classes": list(self.unused_classes),
            "renamed_classes": dict(self.renamed_classes),
            "data_digest": self.data_digest or None,
            **details,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert :meth:`to_dict`. Other keys are ignored; all but the first five fields may be missing.

        Raises:
            KeyError: one of the other five fields is missing.
        """
        return cls(
            coco=_none_to_nan(values["coco"]),
            per_class=_none_to_nan(values["per_class"]),
            voc=_none_to_nan(values["voc"]),
            voc_per_class=_none_to_nan(values["voc_per_class"]),
            images=values["images"],
            unknown_classes=tuple(values.get("unknown_classes", ())),
            unused_classes=tuple(values.get("unused_classes", ())),
            renamed_classes=tuple((values.get("renamed_classes") or {}).items()),
            objects=values.get("objects") or {},
            **{key: values.get(key) or "" for key in ("checkpoint", "data", "split", "data_digest")},
            confusion=Confusion.from_dict(values["confusion"]) if values.get("confusion") else None,
            curves=values.get("curves"),
        )

    def __rich__(self) -> Group:
        """Return a table of the means and a table of the classes."""
        counted = f"{self.images} images, {sum(self.objects.values())} objects"
        title = f"{self.checkpoint} on the split {self.split} of {self.data}\n{counted}" if self.checkpoint else counted
        summary = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large"):
            summary.add_column(name, justify="right" if name else "left")
        coco = {name: percent(value) for name, value in self.coco.items()}
        summary.add_row("COCO AP", *(coco[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")))
        summary.add_row("COCO AR", coco["AR100"], "", "", *(coco[name] for name in ("ARs", "ARm", "ARl")))
        summary.add_row("VOC AP50", "", percent(self.voc["AP50"]), "", "", "", "")
        summary.add_row("VOC AP50, 11 points", "", percent(self.voc["AP50_11point"]), "", "", "", "")
        classes = Table(box=None, padding=(0, 2, 0, 0))
        classes.add_column("class")
        for name in ("objects", "COCO AP", "VOC AP50"):
            classes.add_column(name, justify="right")
        for name, value in self.per_class.items():
            count = str(self.objects.get(name, "-"))
            classes.add_row(Text(name), count, percent(value), percent(self.voc_per_class[name]))
        recall = f"COCO AR with at most 1 and 10 detections per image and class: {coco['AR1']}, {coco['AR10']}"
        notes = [self.confusion.sentence] if self.confusion else []
        if self.renamed_classes:
            pairs = shown_pairs(self.renamed_classes)
            notes.append(f"Classes matched under another name (detector = data set): {pairs}.")
        if self.unknown_classes:
            notes.append(f"The detector lacks {listed(self.unknown_classes)}: their objects count as missed.")
        if self.unused_classes:
            notes.append(f"The data set lacks {listed(self.unused_classes)}: their detections are left out.")
        if hint := hint_on(self.unused_classes, self.unknown_classes, "--alias"):
            notes.append(hint)
        return Group(Text(title), summary, recall, "", classes, *([""] if notes else []), *notes)

    def figures(self) -> "dict[str, Captioned]":
        """Return the figures of a detailed evaluation: ``confusion`` and ``precision_recall``."""
        from understudy.evaluation.charts import evaluation_figures  # here, since most evaluations draw nothing

        return evaluation_figures(self)


def _nan_to_none(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _none_to_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
