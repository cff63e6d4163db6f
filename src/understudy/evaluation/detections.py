"""Run a detector over a data set: from a checkpoint to rows of COCO's results format."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from understudy.checkpoints import Checkpoint
from understudy.class_matching import NO_ALIASES, Aliases, match_names, no_common_name
from understudy.data import Batch, DetectionData, Limits, as_paths, evaluation_loader, open_data
from understudy.data.dataset import Location
from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.evaluation.arrays import Detections
from understudy.evaluation.inferring import Precision
from understudy.evaluation.runtimes import Found, Runtime, TorchRuntime
from understudy.text import listed

if TYPE_CHECKING:
    from understudy.evaluation.models import Runnable

BATCH_SIZE = 8
"""Images of a batch by default; more gained little on a CPU."""

_WORTH_WORKERS = 64  # images; starting processes takes as long as loading so many small ones
_Module = TypeVar("_Module", bound=nn.Module)
_Item = TypeVar("_Item")


def detect_all(
    detector: Detector,
    loader: Iterable[Batch],
    device: torch.device | str,
    category_ids: Sequence[int | None] | None = None,
    precision: Precision = "32",
) -> Detections:
    """Run a detector over a data set and return its detections, in pixels of the original images.

    Args:
        detector: already on ``device``; its training mode is restored afterwards.
        loader: an :func:`~understudy.data.evaluation_loader`.
        device: the device that the batches are moved to.
        category_ids: for each label of the detector the category id of the data set, see :func:`match_classes`;
            detections of a label with None are left out. By default the ids of the loader's data set, for a detector
            trained on the same one.
        precision: of the arithmetic.

    Returns:
        The detections in the order of the loader and, within an image, of the detector.
    """
    if category_ids is None:
        category_ids = loader.dataset.data.category_ids  # ty: ignore[missing-attribute]
    return detect_with(TorchRuntime(detector, device, precision), loader, category_ids)


def detect_with(runtime: Runtime, loader: Iterable[Batch], category_ids: Sequence[int | None]) -> Detections:
    """Run a detector over a data set by any runtime; see :func:`detect_all`."""
    return Detections.joined(
        [detections_of_batch(runtime(batch.images, batch.image_sizes), batch, category_ids) for batch in loader]
    )


def detections_of_batch(found: Found, batch: Batch, category_ids: Sequence[int | None]) -> Detections:
    """Return the detections of one batch in the pixels of its files; arguments as in :func:`detect_all`.

    Args:
        found: what a :class:`.Runtime` or :meth:`.Detector.detect` returned for the batch.
        batch: the images.
        category_ids: as in :func:`detect_all`.
    """
    sizes = zip(batch.image_sizes, batch.original_sizes, strict=True)
    corners = torch.cat([to_original_pixels(one["boxes"], *each) for one, each in zip(found, sizes, strict=True)])
    boxes = corners.cpu().double()  # so that x + width is the right edge again
    scores, labels = (torch.cat([one[name] for one in found]).cpu() for name in ("scores", "labels"))
    known = np.array([number is not None for number in category_ids])
    ids = np.array([number or 0 for number in category_ids], np.int64)
    detections = Detections(
        image_ids=np.repeat(np.array(batch.image_ids, np.int64), [len(one["scores"]) for one in found]),
        category_ids=ids[labels.numpy()],
        boxes=torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).numpy(),
        scores=scores.double().numpy(),
    )
    return detections.at(known[labels.numpy()])


def gather_detections(detections: Detections) -> Detections:
    """Return the detections of all processes, the same in each, ordered by image.

    Without ``torch.distributed`` they are only ordered. Within an image the detector's order is kept, so scores that
    tie are ranked in the same way for any number of processes.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, detections)
        detections = Detections.joined(parts)
    return detections.at(detections.image_ids.argsort(kind="stable"))


def match_classes(classes: Sequence[str], data: DetectionData, aliases: Aliases = NO_ALIASES) -> tuple[int | None, ...]:
    """Return, for each label of a detector, the data set's category id of the class of that name, or None.

    Classes are matched by name, see :func:`~understudy.class_matching.match_names`. A few classes in common are enough.

    Raises:
        UserError: there is no class in common.
    """
    places = match_names(classes, data.classes, aliases)
    if all(place is None for place in places):
        raise UserError.listing(
            "The detector cannot be used on this data set:",
            no_common_name("detector", classes, f"data set {data.source}", data.classes),
        )
    return tuple(None if place is None else data.category_ids[place] for place in places)


def to_original_pixels(boxes: Tensor, size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Scale boxes (D, 4) xyxy of a resized image to the original image, exactly as torchvision does.

    >>> to_original_pixels(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), size=(50, 100), original_size=(100, 300))
    tensor([[30., 40., 90., 80.]])

    Args:
        boxes: in pixels of the padded batch (padding is on the right and below, so it moves nothing).
        size: height and width of the resized image, without padding.
        original_size: height and width of the image file.
    """
    new, old = (torch.tensor(pair, dtype=torch.float32, device=boxes.device) for pair in (original_size, size))
    ratio_y, ratio_x = new / old
    return boxes * torch.stack([ratio_x, ratio_y, ratio_x, ratio_y])


def open_split(
    checkpoint: "Checkpoint | Runnable",
    data: Location | None,
    split: str | None,
    limits: Limits | None = None,
    argument: str = "DATA",
) -> DetectionData:
    """Open the split on which a checkpoint is evaluated.

    Args:
        checkpoint: the detector and the config of its run.
        data: the data set, or several; by default the one of the run.
        split: by default the validation split of the run.
        limits: of the data set; by default those of the run.
        argument: with which the user's command takes a data set, for messages.

    Raises:
        UserError: neither names a data set, or it cannot be read.
    """
    settings = data_section(checkpoint.config)
    if data is None and settings["path"] is None:
        raise UserError(
            f"No data set to evaluate on: {checkpoint.path} was imported or exported, and names no data set. "
            f"Give one as {argument}."
        )
    if data is None and (missing := [path for path in as_paths(settings["path"]) if not path.exists()]):
        raise UserError(
            f"No data set at {listed(missing)}, where the config in {checkpoint.path} has it. Give its place as "
            f"{argument}."
        )
    where, split = (data if data is not None else settings["path"]), split or settings["val"]
    return open_data(where, split, limits or limits_of(checkpoint))


def data_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section ``data`` of a checkpoint's config.

    Raises:
        UserError: it has none: the detector was saved without a run, and the size of its images is not known.
    """
    if "data" not in config:
        raise UserError("The config of this checkpoint has no section data, so the size of its images is not known.")
    return config["data"]


def limits_of(checkpoint: "Checkpoint | Runnable") -> Limits:
    """Return the limits in the config of a checkpoint; those of an older version have none."""
    settings = data_section(checkpoint.config)
    return Limits(**{key: settings[key] for key in ("max_pixels", "allow_outside") if key in settings})


def aliases_of(checkpoint: "Checkpoint | Runnable") -> Aliases:
    """Return the aliases of classes in the config of a checkpoint; those of an older version have none."""
    return data_section(checkpoint.config).get("aliases", NO_ALIASES)


def loader_at_evaluation_size(
    data: DetectionData, config: Mapping[str, Any], *, batch_size: int = 1, workers: int = 0, teacher_scale: int = 1
) -> DataLoader:
    """Load a split at the image size at which the detector of a run is evaluated.

    Args:
        data: the split.
        config: the config of the run, as plain values.
        batch_size: images per batch.
        workers: processes that read images.
        teacher_scale: how many times as large a teacher sees the images.
    """
    sizes = data_section(config)
    return evaluation_loader(
        data,
        batch_size=batch_size,
        shorter_side=sizes["shorter_side"][-1],
        longer_side=sizes["longer_side"],
        workers=workers,
        teacher_scale=teacher_scale,
    )


def default_workers(images: int) -> int:
    """Return how many processes load images by default: all cores but one, at most 4; none for a few images."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores - 1) if images >= _WORTH_WORKERS else 0


def on_device(detector: _Module, device: torch.device | str) -> _Module:
    """Move a detector to a device, in the memory format in which convolutions are fastest on batches."""
    # Only a backward pass can crash in this format, see `Engine`.
    return detector.to(device).to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """Return the given device; by default the GPU if there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def with_progress(batches: Iterable[_Item], description: str) -> Iterable[_Item]:
    """Iterate over the batches of a loader with a progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    return track(batches, description, console=console, transient=True, disable=not console.is_terminal)
