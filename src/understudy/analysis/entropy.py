"""Entropy of a teacher's features in the regions that its scores and the ground truth define (FRS, Fig. 5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from understudy import figures
from understudy.analysis.models import (
    Device,
    Model,
    inside,
    note_data,
    note_unknown,
    open_images,
    open_models,
    require_dense,
    targets_of,
    walk,
)
from understudy.data import Batch, DetectionData
from understudy.errors import UserError
from understudy.figures import Captioned
from understudy.functional import feature_richness
from understudy.functional.richness import RICH, cells_within
from understudy.outputs import Outputs, unflatten_levels

REGIONS = ("TP", "FP", "FN", "TN")
"""Detected and an object, detected only, an object only, neither."""

COLOURS = dict(zip(REGIONS, ("#1ba37a", "#e0651a", "#2b8cd6", "#8a8f98"), strict=True))

BINS, LIMIT = 100, 5.0
LARGEST_LIMIT = 10**6  # features are never as large; beyond the range of float32, PyTorch raises
"""The histogram: equal bins over (-5, 5). The interval is that of the FRS authors; the number of bins is ours."""


@dataclass(frozen=True, slots=True)
class RegionEntropy:
    """The features of one region of one level.

    Attributes:
        stride: pixels per cell of the level.
        region: one of :data:`REGIONS`.
        cells: cells of all images in the region.
        entropy: of the histogram of their values, in nats; None without values in the interval.
        beyond: share of their values outside the interval, 0..1, which the histogram leaves out; None without cells.
    """

    stride: int
    region: str
    cells: int
    entropy: float | None
    beyond: float | None


@dataclass(frozen=True, slots=True)
class EntropyResult:
    """Entropy by level and region.

    Attributes:
        teacher: the name of the detector.
        images: number of images.
        threshold: score above which a cell counts as detected.
        limit: the histogram has 100 equal bins over (-limit, limit).
        rows: levels from fine to coarse, each with the four regions.
        notes: remarks that are needed to judge the numbers.
    """

    teacher: str
    images: int
    threshold: float
    limit: float
    rows: tuple[RegionEntropy, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return asdict(self)

    @property
    def strides(self) -> list[int]:
        """The strides of the levels, fine to coarse."""
        return list(dict.fromkeys(row.stride for row in self.rows))

    @property
    def beyond(self) -> float:
        """The highest share, over levels and regions, of values outside the interval."""
        return max((row.beyond for row in self.rows if row.beyond is not None), default=0.0)

    def row(self, stride: int, region: str) -> RegionEntropy:
        """Return the entry of a level and a region."""
        return next(row for row in self.rows if (row.stride, row.region) == (stride, region))

    def __rich__(self) -> Group:
        """Return a table for the terminal: entropy, with the number of cells."""
        title = f"Entropy of the features of {self.teacher}, in nats (cells), {self.images} images"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("level")
        for region in REGIONS:
            table.add_column(region, justify="right")
        table.add_column("outside", justify="right")
        for stride in self.strides:
            rows = [self.row(stride, region) for region in REGIONS]
            cells = [f"{_shown(row.entropy)} ({row.cells})" for row in rows]
            known = [(row.beyond, row.cells) for row in rows if row.beyond is not None]
            total = sum(count for _, count in known)
            beyond = f"{sum(share * count for share, count in known) / total:.0%}" if total else "-"
            table.add_row(f"stride {stride}", *cells, beyond)
        return Group(
            table,
            f"outside: share of the values outside (-{self.limit:g}, {self.limit:g}), which are not counted",
            *([""] if self.notes else []),
            *self.notes,
        )

    def figures(self) -> dict[str, Captioned]:
        """Return the chart: a group of bars per level."""
        series = {
            region: [value if (value := self.row(s, region).entropy) is not None else math.nan for s in self.strides]
            for region in REGIONS
        }
        chart = figures.bar_chart(
            [f"stride {stride}" for stride in self.strides],
            series,
            COLOURS,
            x_label="feature level",
            y_label="entropy in nats",
        )
        caption = (
            f"Entropy of the feature values of {self.teacher} over {self.images} images, by feature level and "
            f"region. A cell is detected if its highest class score is above {self.threshold:g}; it belongs to an "
            "object if an anchor of the cell is assigned to one. TP: both; FP: detected only; FN: object only; TN: "
            f"neither. Histogram of {BINS} bins over (-{self.limit:g}, {self.limit:g}), at most "
            f"{math.log(BINS):.2f} nats; up to {self.beyond:.0%} of the values of a region are outside. No bar: no "
            "cell. After Fig. 5 of FRS (NeurIPS 2021)."
        )
        return {"entropy": Captioned(chart, caption)}


class Entropy:
    """Collects the histograms of a teacher's features, batch by batch.

    Args:
        teacher: with dense predictions.
        data: the data set of the images.
        threshold: score in 0..1 above which a cell counts as detected.
        limit: half the width of the histogram.
    """

    def __init__(self, teacher: Model, data: DetectionData, threshold: float = RICH, limit: float = LIMIT):
        require_dense(teacher, "the entropy of its regions")
        self.teacher, self.threshold, self.limit = teacher, threshold, limit
        self.labels = teacher.labels_of(data)
        self.images = 0
        shape = (len(teacher.detector.spec.strides), len(REGIONS))
        self.counts = torch.zeros(*shape, BINS, dtype=torch.float64)
        self.cells = torch.zeros(shape, dtype=torch.int64)
        self.notes = [note_data(data), *note_unknown([teacher], data, "cells in their objects are in no region.")]

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch."""
        record, spec = outputs[self.teacher.name], self.teacher.detector.spec
        targets, left_out = targets_of(batch, self.labels)
        gt_index = self.teacher.detector.assign(record, targets)
        assigned = unflatten_levels(gt_index, record.level_sizes, record.class_logits[0].shape[-2])
        levels = zip(
            record.features,
            record.class_logits,
            record.anchors,
            assigned,
            inside(record, spec.strides, batch.image_sizes),
            strict=True,
        )
        for level, (features, logits, anchors, index, known) in enumerate(levels):
            objects = (index >= 0).any(-1)
            if any(map(len, left_out)):
                known = known & (objects | ~cells_within(anchors, left_out))
            for number, mask in enumerate(regions(feature_richness(logits), objects, self.threshold)):
                values = features.movedim(1, -1)[mask & known].float()
                self.cells[level, number] += len(values)
                self.counts[level, number] += histogram(values, self.limit)
        self.images += len(batch.image_ids)

    def result(self) -> EntropyResult:
        """Return the entropies of the batches so far."""
        spec = self.teacher.detector.spec
        rows = []
        for level, (stride, channels) in enumerate(zip(spec.strides, spec.channels, strict=True)):
            for number, region in enumerate(REGIONS):
                counts, cells = self.counts[level, number], int(self.cells[level, number])
                beyond = 1 - float(counts.sum()) / (cells * channels) if cells else None
                value = entropy(counts)
                rows.append(RegionEntropy(stride, region, cells, None if math.isnan(value) else value, beyond))
        notes = list(self.notes)
        if any(row.beyond is not None and row.beyond > 0.05 for row in rows):
            notes.append(
                f"Some regions have more than 5 % of their values outside (-{self.limit:g}, {self.limit:g}): their "
                "entropy describes the rest only. Widen the interval: --limit."
            )
        return EntropyResult(self.teacher.name, self.images, self.threshold, self.limit, tuple(rows), tuple(notes))


def analyse_entropy(
    teacher: Path | str,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    images: int | None = None,
    threshold: float = RICH,
    limit: float = LIMIT,
    device: Device = None,
    batch_size: int = 1,
) -> EntropyResult:
    """Measure the entropy of a teacher's features in the regions TP, FP, FN and TN of every level.

    FRS (Du et al., NeurIPS 2021), Fig. 5; the regions are those of Table 4 (:func:`regions`), with the teacher's own
    assignment of anchors.

    Args:
        teacher: a checkpoint or a run folder.
        data: the data set; by default that of the run.
        split: by default the validation split of the run.
        images: at most this many, evenly spread; None: all.
        threshold: score in 0..1 above which a cell counts as detected.
        limit: half the width of the histogram.
        device: by default a GPU if there is one.
        batch_size: images per batch.

    Raises:
        UserError: the limit is not in range, the checkpoint or the data set cannot be read, they have no class in
            common, or the teacher has no dense predictions.
    """
    if not 0 < limit <= LARGEST_LIMIT:
        raise UserError(f"--limit: expected a number above 0 and at most {LARGEST_LIMIT:,}, got {limit:g}")
    (model,) = open_models([teacher])
    opened = open_images([model], data, split, images)
    found = Entropy(model, opened, threshold, limit)
    walk([model], opened, [found], device=device, batch_size=batch_size)
    return found.result()


def regions(richness: Tensor, objects: Tensor, threshold: float) -> Sequence[Tensor]:
    """Return the masks of :data:`REGIONS`, which together cover every cell once.

    Args:
        richness: (N, H, W), the highest class score of each cell, 0..1.
        objects: (N, H, W) bool, cells with an anchor that is assigned to an object.
        threshold: score above which a cell counts as detected.

    Returns:
        Four masks (N, H, W) bool.
    """
    detected = richness > threshold
    return detected & objects, detected & ~objects, ~detected & objects, ~detected & ~objects


def histogram(values: Tensor, limit: float = LIMIT) -> Tensor:
    """Count values in 100 equal bins over (-limit, limit), both ends included: (100,) float64 on the CPU.

    Values outside are left out.
    """
    return torch.histc(values, BINS, -limit, limit).cpu().double()


def entropy(counts: Tensor) -> float:
    """Compute the entropy, in nats, of the distribution of some counts (B,): -sum p log p; nan if all are 0.

    Examples:
        >>> round(entropy(torch.tensor([1.0, 1.0, 0.0])), 4)
        0.6931
    """
    total = counts.sum()
    if not total:
        return math.nan
    share = counts[counts > 0].double() / total
    return float(-(share * share.log()).sum()) + 0.0


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
