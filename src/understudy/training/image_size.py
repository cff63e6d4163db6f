"""The size of images in training that suits the images of a data set, its boxes and the machine."""

from dataclasses import dataclass

import torch

from understudy.checkpoints import read_metadata
from understudy.config import DistillConfig, TrainConfig, scale_of_teacher
from understudy.data import DetectionData, as_paths
from understudy.detectors.shape_fit import resized_shapes

LARGEST = {"cuda": 800, "cpu": 320}
"""Shorter side at most: the usual one of detectors, and on a CPU one that costs a sixth of it."""

FOR_SMALL = 1.5
"""Factor by which it may be exceeded for small objects."""

SMALLEST = 64
"""Shorter side at least: below it, the coarse levels of a detector have no cell of their own."""

CELL = 8
"""Pixels of a cell of the finest level of most detectors; a box should be two cells wide."""

RATIO = 5 / 3
"""Longer to shorter side at most, as in the usual 1333 x 800; longer images are made smaller."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """A size, and why.

    Attributes:
        shorter_side: as ``data.shorter_side``.
        reason: in words.
        longer_side: as ``data.longer_side``; None: not known.
    """

    shorter_side: int
    reason: str
    longer_side: int | None = None

    @classmethod
    def of(cls, data: DetectionData, device: str) -> "ImageSize":
        """Choose the size at which a split is trained: that of the images themselves, unless they are large.

        Large images are made smaller, to :data:`LARGEST`; less so, and never beyond their own size, if a tenth of the
        boxes would have sides below two cells of the finest level.

        Args:
            data: the split.
            device: ``cuda`` or ``cpu``.
        """
        sides = data.records.images[:, 1:]
        width, height, own = (int(each.median()) for each in (sides[:, 0], sides[:, 1], sides.amin(1)))
        images = f"the images have {width} x {height} pixels (median)"
        if own < SMALLEST:
            return cls(SMALLEST, f"{images}; at least {SMALLEST}, for the coarse levels")
        limit = LARGEST["cuda" if device == "cuda" else "cpu"]
        if own <= limit:
            return cls(own, images)
        usual = f"{images}; at most {limit} {'on a GPU' if device == 'cuda' else 'without a GPU'}"
        boxes = resized_shapes(data, limit, longest(limit)).prod(1).sqrt()
        low = float(torch.quantile(boxes[:_MOST], 0.1)) if len(boxes) else float("inf")
        if low >= 2 * CELL:
            return cls(limit, usual)
        side = round(min(own, FOR_SMALL * limit, limit * 2 * CELL / low))
        return cls(side, f"{usual}, but a tenth of the boxes would have sides below {low:.0f} pixels")

    @classmethod
    def beside_teacher(cls, config: TrainConfig) -> "ImageSize | None":
        """Return the size at which a teacher of the same data sees its own size; None without such a teacher."""
        if not isinstance(config, DistillConfig):
            return None
        own, scale = read_metadata(config.teacher)["config"].get("data", {}), scale_of_teacher(config)
        if own.get("path") is None or as_paths(own["path"]) != as_paths(config.data.path):
            return None
        reason = "as its teacher was trained, on the same data"
        reason += f", divided by {scale} (teacher_scale)" if scale > 1 else ""
        return cls(own["shorter_side"][-1] // scale, reason, own["longer_side"] // scale)


_MOST = 1_000_000  # boxes of which PyTorch computes a quantile, at most


def longest(shorter_side: int) -> int:
    """Return the longer side at most that goes with a shorter side."""
    return int(shorter_side * RATIO)
