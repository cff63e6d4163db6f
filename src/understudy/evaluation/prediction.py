"""Detect objects in images: write COCO results, and draw them."""

import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from understudy.checkpoints import Checkpoint, load_checkpoint
from understudy.data import DetectionData, Limits, Record, UnreadableImage, load_image, open_data, splits
from understudy.data.images import SUFFIXES, shown_size
from understudy.errors import UserError
from understudy.evaluation.arrays import Detection
from understudy.evaluation.detections import (
    choose_device,
    detect_all,
    limits_of,
    loader_at_evaluation_size,
    match_classes,
    with_progress,
)
from understudy.files import write_atomically
from understudy.text import listed

logger = logging.getLogger(__name__)

_COLOURS = (
    "#e6194b",
    "#4363d8",
    "#3cb44b",
    "#f58231",
    "#911eb4",
    "#008080",
    "#f032e6",
    "#9a6324",
    "#808000",
    "#000075",
)


def predict(
    checkpoint: Path | str,
    source: Path | str,
    output: Path | str,
    score_threshold: float = 0.3,
    *,
    split: str = "val",
    limits: Limits | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
) -> list[Detection]:
    """Detect objects in images; write ``detections.json`` and, into ``images/``, every image with its boxes drawn.

    ``detections.json`` is in COCO's results format; each row also has ``file_name`` and ``category``. It holds all
    detections, those of low score too: average precision needs them, and they are easy to filter out later.

    Args:
        checkpoint: a checkpoint or a run folder (its best checkpoint).
        source: an image, a folder of images, or a data set.
        output: a new or empty folder.
        score_threshold: lowest score of a detection that is drawn, 0..1.
        split: the split of a data set.
        limits: of the images; by default those of the training run.
        device: by default a GPU if there is one.
        workers: processes that read images.

    Returns:
        The rows of ``detections.json``. For a folder of images, ``image_id`` is the position of the file name in sorted
        order, from 1, and boxes refer to the image turned upright by its EXIF orientation. For a data set, ids and
        orientation are the data set's own, and classes that it lacks are left out and logged.

    Raises:
        UserError: the checkpoint cannot be read; there are no images, or unreadable ones (all are listed); a data set
            has no class in common with the detector; or the output folder is not empty.
    """
    output = Path(output)
    if not 0 <= score_threshold <= 1:
        raise UserError(f"score_threshold: expected a number from 0 to 1, got {score_threshold}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder. Choose another one: --output FOLDER.")
    loaded = load_checkpoint(checkpoint)
    data = _open_source(Path(source), split, loaded, limits or limits_of(loaded))
    category_ids = match_classes(loaded.classes, data)
    if unused := [name for name, number in zip(loaded.classes, category_ids, strict=True) if number is None]:
        logger.warning("%s lacks these classes of the detector; they are left out: %s", source, listed(unused))
    output.mkdir(parents=True, exist_ok=True)

    device = choose_device(device)
    loader = loader_at_evaluation_size(data, loaded.config, workers=workers)
    rows = detect_all(loaded.detector.to(device), with_progress(loader, "detecting"), device, category_ids).rows()
    names = dict(zip(data.category_ids, data.classes, strict=True))
    files = dict(zip((record.image_id for record in data.records), _names_below(data), strict=True))
    rows = [row | {"file_name": files[row["image_id"]], "category": names[row["category_id"]]} for row in rows]
    write_atomically(output / "detections.json", json.dumps(rows, indent=1).encode())
    _draw_all(data, rows, output / "images", score_threshold)
    return rows


def draw_detections(
    image: Tensor, detections: Sequence[Detection], names: Mapping[int, str], score_threshold: float = 0.0
) -> Image.Image:
    """Draw detections on an image, each box with its class and score, the highest scores on top.

    >>> cat = {"image_id": 1, "category_id": 1, "bbox": [20, 40, 60, 40], "score": 0.9}
    >>> draw_detections(torch.zeros(3, 100, 120), [cat], {1: "cat"}).size
    (120, 100)

    Args:
        image: (3, H, W) float in 0..1.
        detections: rows of COCO's results format, in pixels of this image.
        names: category id to class name; the order decides the colours.
        score_threshold: lowest score of a detection that is drawn, 0..1.
    """
    picture = to_pil_image(image)
    pencil = ImageDraw.Draw(picture)
    shorter = min(picture.size)
    line, font = max(1, round(shorter / 250)), ImageFont.load_default(size=max(10, shorter / 40))
    colours = {category: _COLOURS[i % len(_COLOURS)] for i, category in enumerate(names)}
    shown = [row for row in detections if row["score"] >= score_threshold]
    for row in sorted(shown, key=lambda row: row["score"]):
        x, y, width, height = row["bbox"]
        colour, text = colours[row["category_id"]], f"{names[row['category_id']]} {row['score']:.2f}"
        # Boxes are edges, Pillow's corners are the outermost pixels: the last is one before the right edge.
        pencil.rectangle((x, y, max(x + width - 1, x), max(y + height - 1, y)), outline=colour, width=line)
        left, _, right, bottom = pencil.textbbox((0, 0), text, font=font)
        # The label is above the box, moved inwards if it would leave the picture.
        text_x = min(max(x, 0), max(picture.width - right, 0))
        text_y = min(max(y - bottom, 0), max(picture.height - bottom, 0))
        pencil.rectangle((text_x + left, text_y, text_x + right, text_y + bottom), fill=colour)
        pencil.text((text_x, text_y), text, fill="white", font=font)
    return picture


def _open_source(source: Path, split: str, detector: Checkpoint, limits: Limits) -> DetectionData:
    """Open a data set; or images, as a split with the detector's classes and without objects."""
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
    data = open_data(source, split, limits)
    _readable_sizes([r.path for r in data.records], limits, {r.path: (r.width, r.height) for r in data.records})
    return data


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _as_split(files: list[Path], source: Path, detector: Checkpoint, limits: Limits) -> DetectionData:
    """Make a split without objects from image files."""
    sizes = enumerate(zip(files, _readable_sizes(files, limits), strict=True), start=1)
    records = [Record.without_objects(number, file, size) for number, (file, size) in sizes]
    ids = tuple(detector.meta["category_ids"])
    return DetectionData(detector.classes, ids, tuple(records), "coco", source, "images", limits=limits)


def _readable_sizes(
    files: Sequence[Path], limits: Limits, stated: Mapping[Path, tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """Return width and height of each image. Each is decoded once, so that all faults are reported at once.

    Args:
        files: the images.
        limits: of the images.
        stated: their sizes in the data set; without it, images are turned upright by their EXIF orientation.
    """
    sizes, faults = [], []
    for file in files:
        try:
            size = stated[file] if stated else shown_size(file, limits.max_pixels)
            load_image(file, size, limits.max_pixels)
            sizes.append(size)
        except UnreadableImage as error:
            faults.append(str(error))
    if faults:
        raise UserError.listing(f"{len(faults)} of {len(files)} images cannot be read:", faults)
    return sizes


def _draw_all(data: DetectionData, rows: list[Detection], output: Path, score_threshold: float) -> None:
    names = dict(zip(data.category_ids, data.classes, strict=True))
    by_image: dict[int, list[Detection]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    for record, name in zip(data.records, _names_below(data), strict=True):
        image = load_image(record.path, (record.width, record.height), data.limits.max_pixels)
        picture = draw_detections(image, by_image[record.image_id], names, score_threshold)
        file, content = output / name, io.BytesIO()
        picture.save(content, format=Image.registered_extensions().get(file.suffix.lower(), "PNG"))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())


def _names_below(data: DetectionData) -> list[str]:
    """Return the images' paths relative to their common folder."""
    if not data.records:
        return []
    root = os.path.commonpath([record.path.absolute().parent for record in data.records])
    return [record.path.absolute().relative_to(root).as_posix() for record in data.records]
