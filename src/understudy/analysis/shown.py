"""An image as a detector receives it, with its labelled objects and its known unlabelled ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.data import Batch, DetectionData

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes on one image.

    Attributes:
        boxes: (M, 4) xyxy in pixels of the shown image.
        names: the class of each.
        scores: of each, 0..1; empty for ground truth.
    """

    boxes: Array
    names: tuple[str, ...]
    scores: tuple[float, ...] = ()


def shown_image(
    batch: Batch, data: DetectionData, unlabelled: Mapping[int, list], number: int = 0
) -> tuple[NDArray[np.uint8], Boxes, Array]:
    """Return an image of a batch, without padding, its ground truth, and its known unlabelled objects.

    Args:
        batch: the images.
        data: the data set that it is from.
        unlabelled: boxes xyxy by image id, in pixels of the original image.
        number: place of the image in the batch.
    """
    height, width = batch.image_sizes[number]
    pixels = batch.images[number, :, :height, :width].permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
    names = tuple(data.classes[label] for label in batch.targets[number]["labels"].tolist())
    truth = Boxes(batch.targets[number]["boxes"].cpu().numpy(), names)
    original_height, original_width = batch.original_sizes[number]
    scale = np.array([width / original_width, height / original_height] * 2)
    others = np.array(unlabelled.get(batch.image_ids[number], []), dtype=float).reshape(-1, 4) * scale
    return pixels, truth, others
