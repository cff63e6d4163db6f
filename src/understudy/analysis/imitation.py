"""Correlation, over cells, of the feature difference and the prediction difference of students and their teacher.

Prediction-guided feature imitation (PFI, AAAI 2022) weights the first by the second.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from torch import Tensor

from understudy import figures
from understudy.analysis.correlation import pearson, spearman
from understudy.analysis.models import Device, Model, inside, note_data, open_images, open_models, walk
from understudy.analysis.pairs import pair_models, size_notes
from understudy.data import Batch, DetectionData
from understudy.errors import UserError
from understudy.figures import Captioned
from understudy.methods.compatibility import unreadable
from understudy.outputs import Outputs
from understudy.text import listed

Array = NDArray[np.floating]

CELLS = 512
"""Cells of a level of one image that are kept at most, drawn at random."""

DRAWN = 400
"""Points of a student and level in the figure."""

RIDGE = 1e-6
"""Regularisation of the linear maps, relative to the mean square of the student's features."""


@dataclass(frozen=True, slots=True)
class LevelImitation:
    """One student at one level.

    Attributes:
        student: its name.
        stride: pixels per cell of the level.
        cells: number of cells that were compared.
        pearson: Pearson's correlation of feature difference and prediction difference, -1..1; None if not defined.
        spearman: Spearman's rank correlation of the same.
        feature: mean feature difference.
        prediction: mean prediction difference.
    """

    student: str
    stride: int
    cells: int
    pearson: float | None
    spearman: float | None
    feature: float
    prediction: float


@dataclass(frozen=True)
class ImitationResult:
    """The correlations of every student and level.

    Attributes:
        teacher: its name.
        fitted: images that the linear maps were fitted on.
        images: other images, which the differences were measured on.
        rows: students in the order given, each with its levels from fine to coarse.
        points: some cells of each (student, stride): feature and prediction differences, (P,) each.
        notes: remarks that are needed to judge the numbers.
        underdetermined: strides at which a linear map has more weights than cells to fit them on.
    """

    teacher: str
    fitted: int
    images: int
    rows: tuple[LevelImitation, ...]
    points: Mapping[tuple[str, int], tuple[Array, Array]]
    notes: tuple[str, ...] = ()
    underdetermined: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON, without the points."""
        return {
            "teacher": self.teacher,
            "fitted": self.fitted,
            "images": self.images,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "underdetermined": list(self.underdetermined),
        }

    def __rich__(self) -> Group:
        """Return a table for the terminal."""
        title = f"Feature and prediction difference to {self.teacher}, cell by cell, {self.images} images"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("student", "level", "cells", "Pearson", "Spearman", "features", "predictions"):
            table.add_column(name, justify="left" if name in ("student", "level") else "right")
        for row in self.rows:
            correlations = ("-" if value is None else f"{value:.2f}" for value in (row.pearson, row.spearman))
            differences = (f"{value:.3g}" for value in (row.feature, row.prediction))
            table.add_row(row.student, f"stride {row.stride}", str(row.cells), *correlations, *differences)
        return Group(
            table,
            "features, predictions: the mean difference",
            *([""] if self.notes or self.underdetermined else []),
            *self.notes,
            *self._limit_note(),
        )

    def figures(self) -> dict[str, Captioned]:
        """Return two charts: bars of the correlation by level, and clouds of cells."""
        students = list(dict.fromkeys(row.student for row in self.rows))
        strides = list(dict.fromkeys(row.stride for row in self.rows))
        colours = figures.distinct_colours(students)
        by_place = {(row.student, row.stride): row for row in self.rows}
        series = {student: [_or_nan(by_place[student, stride].pearson) for stride in strides] for student in students}
        bars = figures.bar_chart(
            [f"stride {stride}" for stride in strides],
            series,
            colours,
            x_label="feature level",
            y_label="Pearson's correlation",
        )
        panels = {f"stride {stride}": {name: self.points[name, stride] for name in students} for stride in strides}
        clouds = figures.cloud_chart(panels, colours, x_label="feature difference", y_label="prediction difference")
        what = (
            f"Squared differences to {self.teacher} in the cells of {self.images} images ({listed(students)}). "
            "Features: mean over channels, after the best linear map from the student's channels to the teacher's, "
            f"fitted on {self.fitted} other images. Predictions: mean over anchors and classes, of the logits."
        )
        what = " ".join([what, *self._limit_note()])
        return {
            "imitation": Captioned(
                bars,
                f"{what} Bars: correlation of the two over cells, by level. Near 1: PFI (AAAI 2022), which multiplies "
                "them, stresses the cells that differ most already; near 0: it selects other cells.",
            ),
            "imitation_cells": Captioned(clouds, f"{what} Each point is a cell; both axes are logarithmic."),
        }

    def _limit_note(self) -> list[str]:
        if not self.underdetermined:
            return []
        levels = listed(self.underdetermined)
        return [f"Too few cells to fit the map at stride {levels}: the feature difference there is not meaningful."]


class Imitation:
    """Collects the differences of students and teacher, batch by batch.

    Features of two networks have different channels, so they are compared after a linear map (1x1 convolution with
    bias), fitted by least squares on the first images. It is the same for students with and without distillation.

    Args:
        teacher: the teacher.
        students: at least one; each needs the teacher's classes, levels and anchors.
        data: the images, in the order in which they come.
        fitted: number of the first images on which the maps are fitted.
    """

    def __init__(self, teacher: Model, students: Sequence[Model], data: DetectionData, fitted: int):
        self.teacher = teacher = teacher.beside(*students)
        self.students, self.fitted = students, fitted
        needed = ("features", "class_logits")
        self.pairings = pair_models(teacher, students, "imitation", lambda own, theirs: unreadable(needed, own, theirs))
        self.maps = [[LinearMap() for _ in pairing.student.strides] for pairing in self.pairings]
        self.kept: list[list[list[tuple[Array, Array]]]] = [[[] for _ in maps] for maps in self.maps]
        self.random = np.random.default_rng(0)
        self.images = 0
        self.notes = [note_data(data), *size_notes(teacher, students)]
        self.notes += [
            f"{student.name}: {pairing.note}."
            for student, pairing in zip(students, self.pairings, strict=True)
            if pairing.note
        ]

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch: fit the maps, or measure the differences."""
        fitting = self.images < self.fitted
        for student, pairing, maps, kept in zip(self.students, self.pairings, self.maps, self.kept, strict=True):
            own = pairing.student_record(outputs[student.name])
            theirs = pairing.teacher_record(outputs[self.teacher.name])
            known = inside(own, pairing.student.strides, batch.image_sizes)
            for level, mask in enumerate(known):
                features, targets = (record.features[level].movedim(1, -1)[mask] for record in (own, theirs))
                if fitting:
                    maps[level].add(features, targets)
                    continue
                feature = (maps[level](features) - targets.double()).square().mean(-1)
                prediction = prediction_difference(own.class_logits[level], theirs.class_logits[level])[mask]
                kept[level].append(self._some(feature.cpu().numpy(), prediction.cpu().numpy(), len(batch.image_ids)))
        self.images += len(batch.image_ids)

    def result(self) -> ImitationResult:
        """Return the correlations over the batches so far.

        Raises:
            UserError: no image is left after those that the linear maps are fitted on.
        """
        if self.images <= self.fitted:
            raise UserError(
                f"The imitation needs at least {self.fitted + 1} images, got {self.images}: linear maps between the "
                "features are fitted on one half and the differences measured on the other."
            )
        rows, points, unfit = [], {}, set()
        for student, pairing, maps, kept in zip(self.students, self.pairings, self.maps, self.kept, strict=True):
            for stride, linear, parts in zip(pairing.student.strides, maps, kept, strict=True):
                unfit |= {stride} if linear.underdetermined else set()
                feature, prediction = (np.concatenate(column) for column in zip(*parts, strict=True))
                correlations = (_none_if_nan(measure(feature, prediction)) for measure in (pearson, spearman))
                means = float(feature.mean()), float(prediction.mean())
                rows.append(LevelImitation(student.name, stride, len(feature), *correlations, *means))
                few = self.random.permutation(len(feature))[:DRAWN]
                points[student.name, stride] = feature[few], prediction[few]
        measured = self.images - self.fitted
        return ImitationResult(
            self.teacher.name,
            self.fitted,
            measured,
            tuple(rows),
            points,
            tuple(self.notes),
            tuple(sorted(unfit)),
        )

    def _some(self, feature: Array, prediction: Array, images: int) -> tuple[Array, Array]:
        chosen = self.random.permutation(len(feature))[: CELLS * images]
        return feature[chosen], prediction[chosen]


class LinearMap:
    """A linear map with bias from features (P, C) to features (P, D), fitted by least squares."""

    def __init__(self) -> None:
        self.own: Tensor | None = None
        self.cross: Tensor | None = None
        self.weight: Tensor | None = None
        self.cells = 0

    @property
    def underdetermined(self) -> bool:
        """Whether there are more weights for a channel of the result than cells to fit them on."""
        return self.own is None or self.cells < len(self.own)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take P cells to fit, (P, C) and (P, D)."""
        features, targets = _with_bias(features), targets.double()
        own, cross = features.T @ features, features.T @ targets
        self.own = own if self.own is None else self.own + own
        self.cross = cross if self.cross is None else self.cross + cross
        self.weight = None
        self.cells += len(features)

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (P, C) to (P, D), float64."""
        if self.weight is None:
            assert self.own is not None, "no cells were added"
            assert self.cross is not None, "no cells were added"
            # The normal equations; the small ridge makes them solvable if channels are constant or equal.
            ridge = RIDGE * self.own.diagonal().mean() * torch.eye(len(self.own), device=self.own.device).double()
            self.weight = torch.linalg.solve(self.own + ridge, self.cross)
        return _with_bias(features) @ self.weight


def analyse_imitation(
    teacher: Path | str,
    students: Sequence[Path | str],
    data: Path | str | None = None,
    *,
    split: str | None = None,
    images: int | None = None,
    device: Device = None,
    batch_size: int = 1,
) -> ImitationResult:
    """Correlate the differences of features and predictions between students and a teacher, by level.

    Every other image serves to fit the linear maps between the features, the rest to measure. All detectors get images
    of the first student's size; a teacher of larger images gets those, as in the students' training.

    Args:
        teacher: a checkpoint or a run folder.
        students: checkpoints or run folders, for example of a plain and a distilled student.
        data: the data set; by default that of the first student whose data set exists.
        split: by default the validation split of that run.
        images: at most this many, evenly spread, at least 2; None: all.
        device: by default a GPU if there is one.
        batch_size: images per batch.

    Raises:
        UserError: a checkpoint or the data set cannot be read, a student differs from the teacher in classes, levels or
            anchors, or there are fewer than 2 images.
    """
    theirs, *own = open_models([teacher, *students])
    opened = halves(open_images([*own, theirs], data, split, images, argument="--data DATA"))
    # A batch serves one purpose, so the first half ends with a batch.
    fitted = max(1, len(opened) // 2 // batch_size) * batch_size
    found = Imitation(theirs, own, opened, fitted)
    walk([found.teacher, *own], opened, [found], like=own[0], device=device, batch_size=batch_size)
    return found.result()


def halves(data: DetectionData) -> DetectionData:
    """Return a split with every other image first, then the rest, so that both halves are spread over the split."""
    places = range(len(data))
    return replace(data, records=data.records.take([*places[1::2], *places[::2]]))


def prediction_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of class logits (N, H, W, A, K), averaged over anchors and classes: (N, H, W)."""
    return (student.double() - teacher.double()).square().mean((-2, -1))


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1).double()


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
