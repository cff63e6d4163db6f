"""The numbers of one evaluation: COCO's 12, VOC's AP50, both per class, and their tables for the terminal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Group
from rich.table import Table

from understudy.text import listed, percent


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
        data_digest: digest of the split (:func:`~understudy.data.digests.digest_of_split`); empty if unknown.
    """

    coco: dict[str, float]
    per_class: dict[str, float]
    voc: dict[str, float]
    voc_per_class: dict[str, float]
    images: int
    unknown_classes: tuple[str, ...] = ()
    unused_classes: tuple[str, ...] = ()
    data_digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON; nan becomes None."""
        return {
            "coco": _nan_to_none(self.coco),
            "per_class": _nan_to_none(self.per_class),
            "voc": _nan_to_none(self.voc),
            "voc_per_class": _nan_to_none(self.voc_per_class),
            "images": self.images,
            "unknown_classes": list(self.unknown_classes),
            "unused_classes": list(self.unused_classes),
            "data_digest": self.data_digest or None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert :meth:`to_dict`. Other keys are ignored; the lists of classes and the digest may be missing.

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
            data_digest=values.get("data_digest") or "",
        )

    def __rich__(self) -> Group:
        """Return a table of the means and a table of the classes."""
        summary = Table(title=f"{self.images} images", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large"):
            summary.add_column(name, justify="right" if name else "left")
        coco = {name: percent(value) for name, value in self.coco.items()}
        summary.add_row("COCO AP", *(coco[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")))
        summary.add_row("COCO AR", coco["AR100"], "", "", *(coco[name] for name in ("ARs", "ARm", "ARl")))
        summary.add_row("VOC AP50", "", percent(self.voc["AP50"]), "", "", "", "")
        summary.add_row("VOC AP50, 11 points", "", percent(self.voc["AP50_11point"]), "", "", "", "")
        classes = Table(box=None, padding=(0, 2, 0, 0))
        classes.add_column("class")
        for name in ("COCO AP", "VOC AP50"):
            classes.add_column(name, justify="right")
        for name, value in self.per_class.items():
            classes.add_row(name, percent(value), percent(self.voc_per_class[name]))
        recall = f"COCO AR with at most 1 and 10 detections per image and class: {coco['AR1']}, {coco['AR10']}"
        notes = []
        if self.unknown_classes:
            notes.append(f"The detector lacks {listed(self.unknown_classes)}: their objects count as missed.")
        if self.unused_classes:
            notes.append(f"The data set lacks {listed(self.unused_classes)}: their detections are left out.")
        return Group(summary, recall, "", classes, *([""] if notes else []), *notes)


def _nan_to_none(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _none_to_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
