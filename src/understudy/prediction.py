"""Detections of a trained detector on images: as COCO results, and drawn."""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from understudy.data import DetectionData, Record, UnreadableImage, evaluation_loader, load_image, open_data, splits
from understudy.data.images import SUFFIXES, open_image
from understudy.errors import RunError, UserError
from understudy.evaluation import Detection, choose_device, detect_all, match_classes, with_progress
from understudy.pairing import listed
from understudy.runs import write_atomically

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
    device: torch.device | str | None = None,
    workers: int = 0,
) -> list[Detection]:
    """Detect objects in images; write ``detections.json`` and, into ``images/``, every image with its boxes drawn.

    ``detections.json`` is in COCO's results format, and each row also names its file and its class. It holds all that
    the detector finds, however unsure: average precision needs the unsure ones, and they are easily left out later.

    Args:
        checkpoint: a checkpoint or a run folder (its best checkpoint).
        source: an image, a folder of images, or a data set.
        output: a new or empty folder.
        score_threshold: detections below it, 0..1, are not drawn.
        split: of a data set.
        device: by default a GPU where there is one.
        workers: processes that read images.

    Returns:
        The rows of ``detections.json``. An image of a plain folder has its place in the order of the names as
        ``image_id``, from 1, and boxes are those of the photo held upright; an image of a data set has the data set's
        own id and orientation, and boxes of the classes that the data set has; the classes left out are named in the
        log.

    Raises:
        UserError: no checkpoint, nothing to predict on, images that cannot be read (all are listed), a data set with
            no class of the detector's, or an output folder with something in it.
    """
    from understudy.checkpoints import load_checkpoint

    output = Path(output)
    if not 0 <= score_threshold <= 1:
        raise UserError(f"the score threshold is a number from 0 to 1, not {score_threshold}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not an empty folder; choose another one, so that nothing is lost")
    loaded = load_checkpoint(checkpoint)
    data = _open_source(Path(source), split, loaded.classes, loaded.meta["category_ids"])
    category_ids = match_classes(loaded.classes, data)
    if unused := [name for name, number in zip(loaded.classes, category_ids, strict=True) if number is None]:
        logger.warning("%s does not have these classes of the detector, left out: %s", source, listed(unused))
    output.mkdir(parents=True, exist_ok=True)

    device = choose_device(device)
    settings = loaded.config["data"]
    loader = evaluation_loader(
        data,
        batch_size=1,
        shorter_side=settings["shorter_side"][-1],
        longer_side=settings["longer_side"],
        workers=workers,
    )
    rows = detect_all(loaded.detector.to(device), with_progress(loader, "detecting"), device, category_ids)
    names = dict(zip(data.category_ids, data.classes, strict=True))
    files = dict(zip((record.image_id for record in data.records), _names_below(data), strict=True))
    rows = [row | {"file_name": files[row["image_id"]], "category": names[row["category_id"]]} for row in rows]
    write_atomically(output / "detections.json", json.dumps(rows, indent=1).encode())
    _draw_all(data, rows, output / "images", score_threshold)
    return rows


def draw_detections(
    image: Tensor, detections: Sequence[Detection], names: Mapping[int, str], score_threshold: float = 0.0
) -> Image.Image:
    """An image with the boxes of its detections, the surest on top, each with its class and score.

    Args:
        image: (3, H, W) float in 0..1.
        detections: rows of COCO's results format, in pixels of this image.
        names: category id to class name; a class has its colour by its place in here.
        score_threshold: detections below it are left out.
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
        # The label stands on the box, moved inwards where it would leave the picture.
        text_x = min(max(x, 0), max(picture.width - right, 0))
        text_y = min(max(y - bottom, 0), max(picture.height - bottom, 0))
        pencil.rectangle((text_x + left, text_y, text_x + right, text_y + bottom), fill=colour)
        pencil.text((text_x, text_y), text, fill="white", font=font)
    return picture


def _open_source(source: Path, split: str, classes: Sequence[str], category_ids: Sequence[int]) -> DetectionData:
    """A data set where the source is one; else the images, as a split without objects of the detector's classes."""
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return _as_split([source], source, classes, category_ids)
    try:
        splits(source)
    except UserError as error:
        files = _images_in(source)
        if not files:
            raise UserError(
                f"nothing to predict on: {source} is no image, has no images directly in it "
                f"({', '.join(sorted(SUFFIXES))}), and is no data set either. {error}"
            ) from None
        return _as_split(files, source, classes, category_ids)
    data = open_data(source, split)
    _readable_sizes([r.path for r in data.records], {r.path: (r.width, r.height) for r in data.records})
    return data


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _as_split(files: list[Path], source: Path, classes: Sequence[str], category_ids: Sequence[int]) -> DetectionData:
    """Images without annotations, as a split without objects."""
    nothing = torch.zeros(0, dtype=torch.int64)
    records = []
    for number, (file, (width, height)) in enumerate(zip(files, _readable_sizes(files), strict=True), start=1):
        boxes = torch.zeros(0, 4, dtype=torch.float64)
        records.append(Record(number, file, width, height, boxes, nothing, nothing.bool(), nothing.double(), nothing))
    return DetectionData(tuple(classes), tuple(category_ids), tuple(records), "coco", source, "images")


def _readable_sizes(
    files: Sequence[Path], stated: Mapping[Path, tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """Width and height of images, each decoded once before the work begins, so that all faults are named at once.

    Args:
        files: the images.
        stated: their sizes by the data set; without it, a photo is taken as its camera says it is to be turned.
    """
    sizes, faults = [], []
    for file in files:
        try:
            size = stated[file] if stated else _upright_size(file)
            load_image(file, size)
            sizes.append(size)
        except UnreadableImage as error:
            faults.append(str(error))
    if faults:
        raise UserError.listing(f"{len(faults)} of {len(files)} images cannot be used", faults)
    return sizes


def _upright_size(file: Path) -> tuple[int, int]:
    """Width and height of a photo held upright: EXIF orientations 5 to 8 lie on their side."""
    with open_image(file) as image:
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if lies else image.size


def _draw_all(data: DetectionData, rows: list[Detection], output: Path, score_threshold: float) -> None:
    names = dict(zip(data.category_ids, data.classes, strict=True))
    by_image: dict[int, list[Detection]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    for record, name in zip(data.records, _names_below(data), strict=True):
        image = load_image(record.path, (record.width, record.height))
        picture = draw_detections(image, by_image[record.image_id], names, score_threshold)
        file = output / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
        except OSError as error:
            raise RunError(f"{file} could not be saved ({error.strerror or error}).") from error


def _names_below(data: DetectionData) -> list[str]:
    """The images' paths below the folder that all of them share."""
    if not data.records:
        return []
    root = os.path.commonpath([record.path.absolute().parent for record in data.records])
    return [record.path.absolute().relative_to(root).as_posix() for record in data.records]
