"""Agreement of students with a teacher on the ranks of the anchors of each object, which rank mimicking teaches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from understudy import figures
from understudy.analysis.correlation import kendall, spearman
from understudy.analysis.models import (
    Device,
    Model,
    note_data,
    note_unknown,
    open_images,
    open_models,
    targets_of,
    walk,
)
from understudy.analysis.pairs import pair_models, size_notes
from understudy.boxes import positives
from understudy.data import Batch, DetectionData
from understudy.figures import Captioned, Curve
from understudy.functional.precision import at_least_float32
from understudy.methods.compatibility import unreadable
from understudy.outputs import Outputs, Spec, Truth
from understudy.text import percent

Array = NDArray[np.floating]

BINS = 20
"""Bins of the histogram of correlations, over -1..1."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a student ranks the anchors of an object as the teacher does; means over objects.

    Attributes:
        student: its name.
        objects: objects with at least two anchors.
        anchors: mean number of anchors of these objects.
        kendall: Kendall's tau-b, -1..1; None if it is not defined for any object.
        kendall_spread: its standard deviation over the objects (n - 1); None for fewer than two.
        spearman: Spearman's rank correlation, -1..1.
        spearman_spread: its standard deviation.
        top: share of the objects whose best anchor is the same, 0..1.
        chance: the share that random ranks would have: the mean of 1 / (number of anchors).
        histogram: share of the objects in each of 20 equal bins of Kendall's tau over -1..1.
    """

    student: str
    objects: int
    anchors: float | None
    kendall: float | None
    kendall_spread: float | None
    spearman: float | None
    spearman_spread: float | None
    top: float | None
    chance: float | None
    histogram: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RanksResult:
    """The agreement of each student with the teacher.

    Attributes:
        teacher: its name.
        images: number of images.
        students: in the order given.
        notes: remarks that are needed to judge the numbers.
    """

    teacher: str
    images: int
    students: tuple[Agreement, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        """Return a table for the terminal; the number after ± is the standard deviation over objects."""
        title = f"Agreement with {self.teacher} on the ranks of the anchors of each object, {self.images} images"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("student", "objects", "anchors", "Kendall", "Spearman", "same best", "chance"):
            table.add_column(name, justify="left" if name == "student" else "right")
        for each in self.students:
            table.add_row(
                each.student,
                str(each.objects),
                "-" if each.anchors is None else f"{each.anchors:.1f}",
                _with_spread(each.kendall, each.kendall_spread),
                _with_spread(each.spearman, each.spearman_spread),
                *("-" if share is None else f"{percent(share)} %" for share in (each.top, each.chance)),
            )
        return Group(table, *([""] if self.notes else []), *self.notes)

    def figures(self) -> dict[str, Captioned]:
        """Return the chart: a histogram of Kendall's tau over objects for each student."""
        colours = figures.distinct_colours([each.student for each in self.students])
        middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
        curves = [
            Curve(
                f"{each.student} (mean {each.kendall:.2f})" if each.kendall is not None else each.student,
                figures.Style(colours[each.student]),
                middles,
                100 * np.array(each.histogram),
            )
            for each in self.students
        ]
        chart = figures.curve_chart(
            curves, x_label="Kendall's tau of an object", y_label="share of objects in %", integers=False
        )
        caption = (
            f"Agreement with {self.teacher} on the ranks of the anchors of each object, over {self.images} images: how "
            f"many objects have which rank correlation, in {BINS} bins. 1: the same ranks, 0: no agreement, -1: "
            "reversed. Ranked are the scores of the object's class at the anchors that are assigned to it, which rank "
            "mimicking (AAAI 2022) imitates."
        )
        return {"ranks": Captioned(chart, caption)}


class Ranks:
    """Collects the agreement of students with a teacher, batch by batch.

    Args:
        teacher: the teacher.
        students: at least one; each needs the teacher's classes, levels and anchors.
        data: the data set of the images.
    """

    def __init__(self, teacher: Model, students: Sequence[Model], data: DetectionData):
        self.teacher = teacher = teacher.beside(*students)
        self.students = students
        needed = ("class_logits", "assignment")
        self.pairings = pair_models(teacher, students, "ranks", lambda own, theirs: unreadable(needed, own, theirs))
        self.labels = [student.labels_of(data) for student in students]
        self.found: list[list[tuple[int, float, float, bool]]] = [[] for _ in students]
        self.images = 0
        self.notes = [note_data(data), *note_unknown(students, data, "their objects are left out.")]
        self.notes += size_notes(teacher, students)
        self.notes += [
            f"{student.name}: {pairing.note}."
            for student, pairing in zip(students, self.pairings, strict=True)
            if pairing.note
        ]

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch."""
        for student, pairing, labels, found in zip(self.students, self.pairings, self.labels, self.found, strict=True):
            whole = outputs[student.name]
            targets, _ = targets_of(batch, labels)
            truth = pairing.truth(Truth(targets, student.detector.assign(whole, targets)), whole)
            own, theirs = pairing.student_record(whole), pairing.teacher_record(outputs[self.teacher.name])
            found += agreements(own, theirs, pairing.student, truth)
        self.images += len(batch.image_ids)

    def result(self) -> RanksResult:
        """Return the agreement over the batches so far."""
        students = tuple(
            _summary(student.name, found) for student, found in zip(self.students, self.found, strict=True)
        )
        return RanksResult(self.teacher.name, self.images, students, tuple(self.notes))


def analyse_ranks(
    teacher: Path | str,
    students: Sequence[Path | str],
    data: Path | str | None = None,
    *,
    split: str | None = None,
    images: int | None = None,
    device: Device = None,
    batch_size: int = 1,
) -> RanksResult:
    """Measure how far students rank the anchors of each object as their teacher does.

    Ranked are the scores of the object's class at the anchors that the student's assignment gives to the object, as in
    rank mimicking (Li et al., AAAI 2022). All detectors get images of the first student's
    size; a teacher of larger images gets those, as in the students' training.

    Args:
        teacher: a checkpoint or a run folder.
        students: checkpoints or run folders, for example of a plain and a distilled student.
        data: the data set; by default that of the first student whose data set exists.
        split: by default the validation split of that run.
        images: at most this many, evenly spread; None: all.
        device: by default a GPU if there is one.
        batch_size: images per batch.

    Raises:
        UserError: a checkpoint or the data set cannot be read, or a student differs from the teacher in classes,
            levels or anchors.
    """
    theirs, *own = open_models([teacher, *students])
    opened = open_images([*own, theirs], data, split, images, argument="--data DATA")
    found = Ranks(theirs, own, opened)
    walk([found.teacher, *own], opened, [found], like=own[0], device=device, batch_size=batch_size)
    return found.result()


@torch.no_grad()
def agreements(student: Outputs, teacher: Outputs, spec: Spec, truth: Truth) -> list[tuple[int, float, float, bool]]:
    """Compare the ranks of the anchors of each object.

    Args:
        student: reduced record.
        teacher: reduced record of the same levels, anchors and classes.
        spec: the student's reduced Spec.
        truth: reduced ground truth with the student's assignment.

    Returns:
        For each object with at least two anchors: their number, Kendall's tau, Spearman's correlation (nan if one
        detector gives all of them the same score), and whether the best anchor is the same.
    """
    places = positives(truth, student)
    labels = torch.zeros_like(places.labels) if spec.objectness else places.labels
    # Logits instead of their sigmoids, which have the same ranks, but saturate.
    own, theirs = (
        at_least_float32(places.of(record.class_logits)).gather(1, labels[:, None]).squeeze(1).double().cpu().numpy()
        for record in (student, teacher)
    )
    objects = places.objects.cpu().numpy()
    found = []
    for number in np.unique(objects):
        one, other = own[objects == number], theirs[objects == number]
        if len(one) > 1:
            found.append((len(one), kendall(one, other), spearman(one, other), bool(one.argmax() == other.argmax())))
    return found


def _summary(name: str, found: Sequence[tuple[int, float, float, bool]]) -> Agreement:
    if not found:
        return Agreement(name, 0, *(None,) * 7, histogram=(0.0,) * BINS)
    counts, taus, rhos, same = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    known = taus[np.isfinite(taus)]
    shares = np.histogram(known, BINS, (-1, 1))[0] / max(len(known), 1)
    return Agreement(
        name,
        len(found),
        float(counts.mean()),
        *_mean_and_spread(taus),
        *_mean_and_spread(rhos),
        top=float(same.mean()),
        chance=float((1 / counts).mean()),
        histogram=tuple(shares.tolist()),
    )


def _mean_and_spread(values: Array) -> tuple[float | None, float | None]:
    known = values[np.isfinite(values)]
    return (float(known.mean()) if len(known) else None, float(known.std(ddof=1)) if len(known) > 1 else None)


def _with_spread(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ±{spread:.2f}" if spread is not None else "")
