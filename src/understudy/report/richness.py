"""The teacher's feature richness over validation images, and its share outside the labelled boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from understudy.checkpoints import load_checkpoint
from understudy.data import DetectionData
from understudy.data.scenes import read_unlabelled
from understudy.evaluation import loader_at_evaluation_size
from understudy.functional import feature_richness
from understudy.report.examples import shown_image
from understudy.report.views import RunView

Array = NDArray[np.floating]


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


@torch.no_grad()
def view_richness(
    teacher: RunView, data: DetectionData, *, count: int = 16, device: str | torch.device = "cpu"
) -> list[RichnessView]:
    """Compute the teacher's feature richness on the first images, or on the first with known unlabelled objects.

    Richness weighs the losses of FRS (NeurIPS 2021, Eq. 5): the highest class score of each cell. A teacher without
    dense predictions has none; the list is empty then.

    Raises:
        UserError: the teacher's checkpoint cannot be read.
    """
    unlabelled = read_unlabelled(data.source)
    records = [record for record in data.records if record.image_id in unlabelled] or list(data.records)
    few = replace(data, records=tuple(records[:count]))
    checkpoint = load_checkpoint(teacher.folder)
    detector = checkpoint.detector.to(device).eval()
    if not detector.spec.dense:
        return []
    views = []
    for batch in loader_at_evaluation_size(few, checkpoint.config):
        batch = batch.to(device)
        outputs = detector(batch.images, batch.image_sizes)
        image, truth, others = shown_image(batch, data, unlabelled)
        height, width = image.shape[:2]
        levels = [
            feature_richness(logits)[0, : -(-height // stride), : -(-width // stride)].float().cpu().numpy()
            for logits, stride in zip(outputs.class_logits, detector.spec.strides, strict=True)
        ]
        views.append(RichnessView(image, truth.boxes, others, tuple(levels), detector.spec.strides))
    return views


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
