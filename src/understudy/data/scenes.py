"""A generated data set: drawn scenes with labelled shapes, unlabelled look-alikes and clutter.

Detectors can be trained and distilled on it within minutes and without a download. The four classes differ in shape
alone; colour, size, rotation, lighting and texture are random. Each class has a *look-alike*: a similar shape that
belongs to no class and has no label. A trained teacher gives look-alikes a low score. That information is outside every
ground-truth box, and feature richness measures it.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from understudy.errors import UserError

Array = NDArray[np.float32]
Shape = list[tuple[NDArray[np.float64], int]]
"""Outlines (P, 2) within the unit circle in drawing order, each with 1 to fill it or 0 to cut it out."""

_Drawn = tuple[str, NDArray[np.bool_], int]  # name, visible pixels, number of pixels before others covered some

_OVERSAMPLING = 4  # masks are drawn larger by this factor and averaged, for smooth edges
_MAX_HIDDEN = 0.3  # largest fraction of a shape that later shapes may cover
_SPLITS = ("train", "val")


def _arc(radius: float, start: float, end: float, centre: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """Points on a circle from one angle to another, in degrees."""
    angles = np.radians(np.linspace(start, end, 33))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) + centre


def _spikes(count: int, inner: float) -> NDArray[np.float64]:
    """Return a star with ``count`` points and notches at radius ``inner``; one point is at the top."""
    angles = np.radians(-90 + np.arange(2 * count) * 180 / count)
    radii = np.where(np.arange(2 * count) % 2 == 0, 1.0, inner)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _bar(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _star() -> Shape:
    return [(_spikes(5, 0.42), 1)]


def _ring() -> Shape:
    return [(_arc(0.95, 0, 360), 1), (_arc(0.55, 0, 360), 0)]


def _cross() -> Shape:
    return [(_bar(-0.95, -0.3, 0.95, 0.3), 1), (_bar(-0.3, -0.95, 0.3, 0.95), 1)]


def _arrow() -> Shape:
    return [(_bar(-0.22, -0.3, 0.22, 1), 1), (np.array([(0, -1), (0.8, 0), (-0.8, 0)]), 1)]


def _burst() -> Shape:
    return [(_spikes(9, 0.62), 1)]


def _open_ring() -> Shape:
    return [*_ring(), (np.array([(0, 0), (1.3, -0.75), (1.3, 0.75)]), 0)]


def _tee() -> Shape:
    return [(_bar(-0.9, -0.8, 0.9, -0.2), 1), (_bar(-0.3, -0.8, 0.3, 0.95), 1)]


def _paddle() -> Shape:
    return [(_bar(-0.22, -0.3, 0.22, 1), 1), (_arc(0.62, 0, 360, centre=(0, -0.38)), 1)]


_LABELLED: dict[str, Callable[[], Shape]] = {
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "arrow": _arrow,
}
_LOOKALIKES: dict[str, Callable[[], Shape]] = {  # in the order of the classes that they resemble
    "burst": _burst,
    "open ring": _open_ring,
    "tee": _tee,
    "paddle": _paddle,
}

SCENE_CLASSES = tuple(_LABELLED)
"""The class names of the data set, in the order of their labels."""

LOOKALIKE_CLASSES = tuple(_LOOKALIKES)
"""Shapes that are drawn but not labelled; each resembles the class at the same index in :data:`SCENE_CLASSES`."""


def make_scenes(folder: Path, *, train: int, val: int, size: int, seed: int) -> Path:
    """Draw a small data set of scenes and write it as COCO JSON.

    An image depends on the seed, its split, its number and its size alone, so a larger set contains a smaller one.
    Boxes are tight around the visible pixels of an object. In addition to COCO's keys, every JSON has ``unlabelled``:
    the name, image and box of each look-alike, for figures and not for training.

    Args:
        folder: the new or empty folder for ``instances_train.json``, ``instances_val.json`` and ``images/``.
        train: number of training images.
        val: number of validation images.
        size: height and width of the images in pixels, at least 48.
        seed: the same seed draws the same images.

    Returns:
        The folder.

    Raises:
        UserError: the folder is not empty, or a number is out of range.
    """
    folder = Path(folder)
    faults = [
        f"{name}: expected at least {least}, got {value}"
        for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, 48), ("seed", seed, 0))
        if value < least
    ]
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        faults.append(f"folder: expected a new or empty folder, got {folder}, which is not empty")
    if faults:
        raise UserError.listing("Invalid arguments for the scenes:", faults)

    (folder / "images").mkdir(parents=True)
    for split_number, (split, count) in enumerate(zip(_SPLITS, (train, val), strict=True)):
        images, annotations, unlabelled = [], [], []
        for number in range(count):
            pixels, objects = draw_scene(np.random.default_rng((seed, split_number, number)), size)
            image_id = number + 1
            file_name = f"{split}_{image_id:05d}.jpg"
            Image.fromarray(pixels).save(folder / "images" / file_name, quality=92, subsampling=0)
            images.append({"id": image_id, "file_name": file_name, "width": size, "height": size})
            for name, box in objects:
                found = {"image_id": image_id, "bbox": box}
                if name in _LABELLED:
                    label = {"category_id": SCENE_CLASSES.index(name) + 1, "area": box[2] * box[3], "iscrowd": 0}
                    annotations.append({"id": len(annotations) + 1, **found, **label})
                else:
                    unlabelled.append({"name": name, **found})
        categories = [{"id": place, "name": name} for place, name in enumerate(SCENE_CLASSES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories, "unlabelled": unlabelled}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def read_unlabelled(file: Path) -> dict[int, list[list[float]]]:
    """Return the boxes of the look-alikes in a split.

    Args:
        file: the JSON of the split; the result is empty for a file that :func:`make_scenes` did not write.

    Returns:
        The boxes (xyxy in pixels) by image id.
    """
    content = json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" else {}
    boxes: dict[int, list[list[float]]] = {}
    for entry in content.get("unlabelled", []):
        x, y, width, height = entry["bbox"]
        boxes.setdefault(entry["image_id"], []).append([x, y, x + width, y + height])
    return boxes


def draw_scene(rng: Generator, size: int) -> tuple[NDArray[np.uint8], list[tuple[str, list[int]]]]:
    """Draw one scene.

    Args:
        rng: the random generator.
        size: height and width in pixels.

    Returns:
        The pixels (size, size, 3), and the name and visible box (x, y, width, height) of every shape and look-alike in
        drawing order.
    """
    canvas = _background(rng, size)
    labelled = rng.choice(SCENE_CLASSES, rng.integers(1, 5)).tolist()
    others = [*labelled[1:], *rng.choice(LOOKALIKE_CLASSES, rng.integers(0, 4)).tolist()]
    rng.shuffle(others)
    drawn: list[_Drawn] = []
    for name in [labelled[0], *others]:  # the first can always be placed: every image has an object
        mask = _place(rng, name, size, drawn)
        if mask is None:
            continue  # there is no room
        _paint(rng, canvas, mask)
        solid = mask > 0.5
        drawn = [(other, visible & ~solid, area) for other, visible, area in drawn]
        drawn.append((name, solid, int(solid.sum())))
    canvas += rng.normal(0, rng.uniform(2, 9), canvas.shape).astype(np.float32)
    return canvas.clip(0, 255).astype(np.uint8), [(name, _box(visible)) for name, visible, _ in drawn]


def _place(rng: Generator, name: str, size: int, drawn: list[_Drawn]) -> Array | None:
    """Return the mask (size, size) of a shape where it covers little of the others; None after eight attempts."""
    for _ in range(8):
        diameter = size * np.exp(rng.uniform(np.log(0.2), np.log(0.5)))
        centre = rng.uniform(0.3 * diameter, size - 0.3 * diameter, 2)  # up to a fifth is outside the image
        mask = _mask(rng, {**_LABELLED, **_LOOKALIKES}[name](), diameter, centre, size)
        solid = mask > 0.5
        if all((visible & ~solid).sum() >= (1 - _MAX_HIDDEN) * area for _, visible, area in drawn):
            return mask
    return None


def _mask(rng: Generator, shape: Shape, diameter: float, centre: NDArray[np.float64], size: int) -> Array:
    """Return a slightly rotated and stretched shape, as the coverage (0..1) of every pixel (size, size)."""
    angle = np.radians(rng.uniform(-15, 15))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([rng.uniform(0.85, 1.15), 1.0])
    # Only the patch around the shape is oversampled; whole images would take ten times as long.
    origin = np.floor(centre - 0.65 * diameter).astype(int)
    side = int(np.ceil(1.3 * diameter)) + 2
    patch = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pencil = ImageDraw.Draw(patch)
    for outline, ink in shape:
        points = ((outline * stretch) @ turn.T * diameter / 2 + centre - origin) * _OVERSAMPLING
        pencil.polygon([(float(x), float(y)) for x, y in points], fill=255 * ink)
    coverage = np.asarray(patch.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    mask = np.zeros((size, size), dtype=np.float32)
    left, top = np.maximum(origin, 0)
    right, bottom = np.minimum(origin + side, size)
    mask[top:bottom, left:right] = coverage[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]]
    return mask


def _paint(rng: Generator, canvas: Array, mask: Array) -> None:
    """Fill a mask (size, size) on the canvas (size, size, 3) with a contrasting colour, shaded from one side."""
    rows, columns = np.nonzero(mask > 0)
    window = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    below = canvas[window]
    surrounding = below.mean((0, 1))
    colour = max((rng.uniform(10, 245, 3) for _ in range(3)), key=lambda trial: np.abs(trial - surrounding).sum())
    height, width = below.shape[:2]
    along_y, along_x = np.mgrid[-1 : 1 : complex(0, height), -1 : 1 : complex(0, width)].astype(np.float32)
    light = 1 + rng.uniform(-0.25, 0.25) * along_x + rng.uniform(-0.25, 0.25) * along_y
    if rng.random() < 0.3:  # stripes
        light = light * (1 + 0.15 * np.sin(rng.uniform(4, 12) * along_x + rng.uniform(4, 12) * along_y))
    coverage = mask[window][..., None]
    canvas[window] = below * (1 - coverage) + coverage * colour * light[..., None]


def _background(rng: Generator, size: int) -> Array:
    """Return a blotchy background (size, size, 3) with lines, polygons and dots, none of which resembles a class."""
    ground = np.full((size, size, 3), rng.uniform(60, 190) + rng.uniform(-35, 35, 3), dtype=np.float32)
    for cells, strength in ((3, 32), (9, 16), (32, 8)):
        # Mostly brightness, a little colour.
        blotches = 128 + rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, 0.35 * strength, (cells, cells, 3))
        grid = Image.fromarray(blotches.clip(0, 255).astype(np.uint8))
        ground += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) - 128
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    pencil = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(3, 10)):
        colour = (*rng.integers(0, 256, 3).tolist(), int(rng.integers(50, 170)))
        x, y = rng.uniform(0, size, 2)
        reach_x, reach_y = rng.normal(0, 0.3 * size, 2)
        match rng.integers(3):
            case 0:
                pencil.line([(x, y), (x + reach_x, y + reach_y)], fill=colour, width=int(rng.integers(1, 4)))
            case 1:
                pencil.polygon([(x, y), (x + reach_x, y), (x + reach_x, y + reach_y), (x, y + reach_y)], fill=colour)
            case _:
                radius = rng.uniform(0.01, 0.05) * size
                pencil.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    return np.asarray(image, dtype=np.float32).copy()


def _box(visible: NDArray[np.bool_]) -> list[int]:
    """Return the box (x, y, width, height) in whole pixels around the visible pixels."""
    rows, columns = np.nonzero(visible)
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
