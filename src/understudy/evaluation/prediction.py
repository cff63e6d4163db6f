"""Detect objects in images: write COCO results, and draw them."""

import io
import json
import logging
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from PIL import Image

from understudy.class_matching import match_names, renamed, shown_pairs
from understudy.data import Batch, DetectionData, Limits, Record, Records, UnreadableImage, as_paths, open_data, splits
from understudy.data.images import SUFFIXES, shown_size
from understudy.errors import UserError
from understudy.evaluation.arrays import Detection
from understudy.evaluation.detections import (
    BATCH_SIZE,
    aliases_of,
    default_workers,
    detections_of_batch,
    limits_of,
    match_classes,
    with_progress,
)
from understudy.evaluation.drawing import draw_detections
from understudy.evaluation.inferring import Precision
from understudy.evaluation.models import Runnable, open_runnable
from understudy.evaluation.pictures import Picture, Pictures, batch_of
from understudy.evaluation.runtimes import Runtime
from understudy.files import write_atomically
from understudy.text import listed

logger = logging.getLogger(__name__)

Sources = Path | str | Sequence[Path | str]
"""An image, a folder of images or a data set; or several images and folders of images."""


def predict(
    checkpoint: Path | str,
    source: Sources,
    output: Path | str,
    score_threshold: float = 0.3,
    *,
    split: str = "val",
    limits: Limits | None = None,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    precision: Precision = "32",
) -> list[Detection]:
    """Detect objects in images; write ``detections.json`` and, into ``images/``, every image with its boxes drawn.

    ``detections.json`` is in COCO's results format; each row also has ``file_name`` and ``category``. It holds all
    detections, those of low score too: average precision needs them, and they are easy to filter out later.

    Args:
        checkpoint: a checkpoint, a run folder (its best checkpoint), or an exported file (.onnx, .xml).
        source: an image, a folder of images, or a data set; or several images and folders of images.
        output: a new or empty folder.
        score_threshold: lowest score of a detection that is drawn, 0..1.
        split: the split of a data set.
        limits: of the images; by default those of the training run.
        device: by default a GPU if there is one.
        batch_size: images per batch; has no effect on the detections.
        workers: threads that read images; by default see :func:`.default_workers`.
        precision: of the arithmetic.

    Returns:
        The rows of ``detections.json``. For images, ``image_id`` is their number, from 1, in the order of the sources
        and of the sorted file names of each folder, and boxes refer to the image turned upright by its EXIF data.
        For a data set, ids and orientation are the data set's own, and classes that it lacks are left out and logged.

    Raises:
        UserError: the checkpoint cannot be read; there are no images, or unreadable ones (all are listed); a data set
            has no class in common with the detector; the device does not have the precision; or the output folder is
            not empty. Nothing is left in the output folder then.
    """
    output = Path(output)
    if not 0 <= score_threshold <= 1:
        raise UserError(f"score_threshold: expected a number from 0 to 1, got {score_threshold}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder. Choose another one: --output FOLDER.")
    loaded = open_runnable(checkpoint, device, precision)
    sources = as_paths(source)
    data, faults = open_sources(sources, split, loaded, limits or limits_of(loaded))
    images = len(data) + len(faults)
    aliases = aliases_of(loaded)
    category_ids = match_classes(loaded.classes, data, aliases)
    if pairs := renamed(loaded.classes, data.classes, match_names(loaded.classes, data.classes, aliases)):
        logger.warning("Classes matched under another name (detector = data set): %s", shown_pairs(pairs))
    if unused := [name for name, number in zip(loaded.classes, category_ids, strict=True) if number is None]:
        logger.warning("%s lacks these classes of the detector; they are left out: %s", sources[0], listed(unused))

    pictures = Pictures(data, loaded.config, batch_size, default_workers(len(data)) if workers is None else workers)
    names = dict(zip(data.category_ids, data.classes, strict=True))
    files = dict(zip((record.image_id for record in data.records), _names_below(data), strict=True))
    found: dict[int, list[Detection]] = {}
    with _filled_or_removed(output):
        for read in with_progress(pictures, "detecting"):
            faults += [str(one) for one in read if isinstance(one, UnreadableImage)]
            if faults:
                continue  # the rest is only read, so that all faults are reported at once
            usable = [one for one in read if isinstance(one, Picture)]
            found |= _detect(loaded.runtime, batch_of(usable), category_ids)
            for picture in usable:
                image_id = picture.record.image_id
                drawn = draw_detections(picture.pixels, found[image_id], names, score_threshold)
                _save(drawn, output / "images" / files[image_id])
        if faults:
            raise UserError.listing(f"{len(faults)} of {images} images cannot be read:", sorted(faults))
        rows = [
            row | {"file_name": files[record.image_id], "category": names[row["category_id"]]}
            for record in data.records
            for row in found[record.image_id]
        ]
        write_atomically(output / "detections.json", json.dumps(rows, indent=1).encode())
    return rows


@contextmanager
def _filled_or_removed(folder: Path) -> Generator[None]:
    """Make a folder; after a failure, remove what was written into it, and what was made."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder / "images", ignore_errors=True)
        for each in made:
            with suppress(OSError):
                each.rmdir()
        raise


def _detect(runtime: Runtime, batch: Batch, category_ids: Sequence[int | None]) -> dict[int, list[Detection]]:
    """Return the detections of each image of a batch by its id."""
    found = detections_of_batch(runtime(batch.images, batch.image_sizes), batch, category_ids)
    return {image_id: found.at(found.image_ids == image_id).rows() for image_id in batch.image_ids}


def open_sources(
    sources: Sequence[Path], split: str, detector: Runnable, limits: Limits
) -> tuple[DetectionData, list[str]]:
    """Open a data set; or images, as a split with the detector's classes and without objects.

    Returns:
        The split, and what is wrong with the images that cannot be in it.
    """
    if not sources:
        raise UserError("No images to predict on: expected at least one SOURCE.")
    if len(sources) == 1:
        return _open_source(sources[0], split, detector, limits)
    files, faults = [], []
    for source in sources:
        found = [source] if source.is_file() and source.suffix.lower() in SUFFIXES else _images_in(source)
        files += found
        faults += [] if found else [str(source)]
    if faults:
        raise UserError.listing(
            "Several sources must be images or folders with images directly in them (predict on a data set alone). "
            "These are not:",
            faults,
        )
    once: dict[Path, Path] = {}
    for file in files:  # a file may be in two sources
        once.setdefault(file.resolve(), file)
    return _as_split(list(once.values()), sources[0], detector, limits)


def _open_source(source: Path, split: str, detector: Runnable, limits: Limits) -> tuple[DetectionData, list[str]]:
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return _as_split([source], source, detector, limits)
    try:
        splits(source, limits)
    except UserError as error:
        files = _images_in(source)
        if not files:
            raise UserError(
                f"No images to predict on: {source} is not an image, has no images directly in it "
                f"({', '.join(sorted(SUFFIXES))}), and is not a data set. {error}"
            ) from None
        return _as_split(files, source, detector, limits)
    return open_data(source, split, limits), []


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _as_split(files: list[Path], source: Path, detector: Runnable, limits: Limits) -> tuple[DetectionData, list[str]]:
    """Make a split without objects from image files, turned upright by their EXIF orientation; see `_open_source`."""
    records, faults = [], []
    for number, file in enumerate(files, start=1):
        try:
            records.append(Record.without_objects(number, file, shown_size(file, limits.max_pixels)))
        except UnreadableImage as error:
            faults.append(str(error))
    ids = detector.category_ids
    data = DetectionData(
        detector.classes, ids, Records.of(records), "coco", source, "images", limits=limits, upright=True
    )
    return data, faults


def _save(picture: Image.Image, file: Path) -> None:
    """Write a picture in the format of its name's ending, else as PNG."""
    content = io.BytesIO()
    picture.save(content, format=Image.registered_extensions().get(file.suffix.lower(), "PNG"))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content.getvalue())


def _names_below(data: DetectionData) -> list[str]:
    """Return the images' paths relative to their common folder."""
    if not data.records:
        return []
    root = os.path.commonpath([record.path.absolute().parent for record in data.records])
    return [record.path.absolute().relative_to(root).as_posix() for record in data.records]
