"""The teacher's feature richness over validation images, and its share outside the labelled boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from understudy import figures
from understudy.analysis.models import Device, Model, open_images, open_models, require_dense, sample, walk
from understudy.analysis.shown import shown_image
from understudy.data import Batch, DetectionData
from understudy.data.scenes import read_unlabelled
from understudy.figures import Captioned, Cell
from understudy.functional import feature_richness
from understudy.outputs import Outputs

Array = NDArray[np.floating]

SHOWN = 4
"""Images that are shown unless others are asked for."""


@dataclass(frozen=True, slots=True)
class RichnessView:
    """The teacher's feature richness over one image.

    Attributes:
        image: (H, W, 3) uint8, as the teacher receives it.
        boxes: (M, 4) xyxy of the labelled objects, in pixels of the image.
        unlabelled: (U, 4) xyxy of known objects outside the label set.
        levels: the richness (h, w) of each feature level, fine to coarse, 0..1.
        strides: pixels per cell of each level.
    """

    image: NDArray[np.uint8]
    boxes: Array
    unlabelled: Array
    levels: tuple[Array, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class RichnessResult:
    """The richness of a teacher over some images.

    Attributes:
        teacher: its name.
        names: file names of the images.
        views: one for each image.
    """

    teacher: str
    names: tuple[str, ...]
    views: tuple[RichnessView, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return peaks, means and shares as plain JSON, without the maps."""
        return {
            "teacher": self.teacher,
            "places": richness_by_place(self.views),
            "images": [
                {
                    "name": name,
                    "levels": [
                        {
                            "stride": stride,
                            "peak": float(level.max()),
                            "mean": float(level.mean()),
                            "outside": share_outside(view, number),
                        }
                        for number, (level, stride) in enumerate(zip(view.levels, view.strides, strict=True))
                    ],
                }
                for name, view in zip(self.names, self.views, strict=True)
            ],
        }

    def __rich__(self) -> Group:
        """Return a table for the terminal: for each level the means over the images."""
        title = f"Feature richness of {self.teacher}, means over {len(self.views)} images"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("level")
        for name in ("peak", "mean", "outside the boxes"):
            table.add_column(name, justify="right")
        for number, stride in enumerate(self.views[0].strides):
            levels = [view.levels[number] for view in self.views]
            outside = np.mean([share_outside(view, number) for view in self.views])
            peak, mean = (np.mean([getattr(level, what)() for level in levels]) for what in ("max", "mean"))
            table.add_row(f"stride {stride}", f"{peak:.2f}", f"{mean:.3f}", f"{outside:.0%}")
        places = ", ".join(f"{place} {value:.2f}" for place, value in richness_by_place(self.views).items())
        return Group(table, f"Mean richness, at each pixel the highest over the levels: {places}")

    def figures(self) -> dict[str, Captioned]:
        """Return the pictures: a row for each image, with its levels from fine to coarse."""
        caption = (
            f"Feature richness of {self.teacher}: its highest class score in each cell, by feature level. FRS imitates "
            "the teacher in proportion to it. White frames: labelled boxes. Each map is scaled to its peak, or to "
            f"{figures.HEAT_FLOOR} if the peak is lower; outside: share of the richness outside the boxes. After "
            "Fig. 3 of FRS (NeurIPS 2021)."
        )
        rows = [richness_cells(view, name) for name, view in zip(self.names, self.views, strict=True)]
        return {"richness": Captioned(figures.sheet(rows, width=1.9), caption)}


class Richness:
    """Collects the richness of a teacher over images, batch by batch.

    Richness weights the losses of FRS (NeurIPS 2021, Eq. 5): the highest class score of each cell.

    Args:
        teacher: with dense predictions.
        data: the data set of the images.
    """

    def __init__(self, teacher: Model, data: DetectionData):
        require_dense(teacher, "its feature richness")
        self.teacher, self.data = teacher, data
        self.unlabelled = read_unlabelled(data.source)
        self.names = {record.image_id: record.path.name for record in data.records}
        self.views: list[RichnessView] = []
        self.found: list[str] = []

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch."""
        spec, record = self.teacher.detector.spec, outputs[self.teacher.name]
        richness = [feature_richness(logits).cpu().numpy() for logits in record.class_logits]
        for number, image_id in enumerate(batch.image_ids):
            image, truth, others = shown_image(batch, self.data, self.unlabelled, number)
            height, width = image.shape[:2]
            levels = [
                level[number, : -(-height // stride), : -(-width // stride)]
                for level, stride in zip(richness, spec.strides, strict=True)
            ]
            self.views.append(RichnessView(image, truth.boxes, others, tuple(levels), spec.strides))
            self.found.append(self.names[image_id])

    def result(self) -> RichnessResult:
        """Return the richness over the images so far."""
        return RichnessResult(self.teacher.name, tuple(self.found), tuple(self.views))


def analyse_richness(
    teacher: Path | str,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    images: int = SHOWN,
    names: Sequence[str] = (),
    device: Device = None,
) -> RichnessResult:
    """Compute a teacher's feature richness per level over some images (FRS, NeurIPS 2021, Fig. 3).

    Args:
        teacher: a checkpoint or a run folder.
        data: the data set; by default that of the run.
        split: by default the validation split of the run.
        images: number of images, the first with known unlabelled objects if there are any, else evenly spread.
        names: names of images, instead.
        device: by default a GPU if there is one.

    Raises:
        UserError: the checkpoint, the data set or a named image cannot be read, or the teacher has no dense
            predictions.
    """
    (model,) = open_models([teacher])
    opened = open_images([model], data, split, names=names)
    few = opened if names else telling_images(opened, images)
    found = Richness(model, few)
    walk([model], few, [found], device=device)
    return found.result()


def telling_images(data: DetectionData, count: int) -> DetectionData:
    """Return a split with its first images that have known unlabelled objects, or else evenly spread ones."""
    unlabelled = read_unlabelled(data.source)
    places = [place for place, image_id in enumerate(data.records.image_ids()) if image_id in unlabelled]
    return replace(data, records=data.records.take(places[:count])) if places else sample(data, count)


def richness_cells(view: RichnessView, name: str = "image") -> list[Cell]:
    """Return the pictures of one image: with its boxes, the mask of the boxes, and the richness of every level."""
    height, width = view.image.shape[:2]
    blank: list[str] = [""] * len(view.boxes)
    white = ["white"] * len(view.boxes)
    marked = figures.detection_picture(view.image, view.boxes, blank, white, dashed_boxes=view.unlabelled, width=240)

    def heat(level: Array, stride: int) -> Figure:
        return figures.heat_picture(view.image, level, stride, boxes=view.boxes, dashed_boxes=view.unlabelled)

    mask = box_mask(view.boxes, height, width).astype(float)
    words = "dashed: unlabelled" if len(view.unlabelled) else "labelled boxes"
    cells = [Cell(name, words, marked), Cell("box mask", "labelled boxes only", heat(mask, 1))]
    for number, (level, stride) in enumerate(zip(view.levels, view.strides, strict=True)):
        words = f"peak {level.max():.2f}, {share_outside(view, number):.0%} outside"
        cells.append(Cell(f"stride {stride}", words, heat(level, stride)))
    return cells


def box_mask(boxes: Array, height: int, width: int) -> NDArray[np.bool_]:
    """Mark the pixels inside any box: (M, 4) xyxy to (H, W).

    >>> box_mask(np.array([[1.0, 0.0, 3.0, 1.0]]), height=2, width=4).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in np.round(boxes).astype(int):
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


def share_outside(view: RichnessView, level: int) -> float:
    """Return the share of a level's richness, 0..1, outside every labelled box."""
    height, width = view.image.shape[:2]
    richness = _in_pixels(view.levels[level], view.strides[level], height, width)
    return float(richness[~box_mask(view.boxes, height, width)].sum() / richness.sum())


def richness_by_place(views: Sequence[RichnessView]) -> dict[str, float]:
    """Average the richness inside labelled boxes, inside unlabelled ones, and elsewhere.

    At each pixel the level of highest richness counts. A place that occurs in none of the images is left out.
    """
    places: dict[str, list[Array]] = {"labelled objects": [], "unlabelled look-alikes": [], "elsewhere": []}
    for view in views:
        height, width = view.image.shape[:2]
        richest = np.max(
            [_in_pixels(level, stride, height, width) for level, stride in zip(view.levels, view.strides, strict=True)],
            axis=0,
        )
        labelled = box_mask(view.boxes, height, width)
        alike = box_mask(view.unlabelled, height, width) & ~labelled
        for place, mask in zip(places, (labelled, alike, ~labelled & ~alike), strict=True):
            places[place].append(richest[mask])
    joined = {place: np.concatenate(values) for place, values in places.items() if values}
    return {place: float(values.mean()) for place, values in joined.items() if values.size}


def _in_pixels(level: Array, stride: int, height: int, width: int) -> Array:
    """Repeat the cells (h, w) of a level over their pixels, cropped to the image (height, width)."""
    return np.repeat(np.repeat(level, stride, axis=0), stride, axis=1)[:height, :width]
