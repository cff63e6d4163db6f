"""Draw detections on an image: boxes with class and score, labels that do not cover each other."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from understudy.evaluation.arrays import Detection

Array = NDArray[np.floating]

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


def draw_detections(
    image: Tensor, detections: Sequence[Detection], names: Mapping[int, str], score_threshold: float = 0.0
) -> Image.Image:
    """Draw detections on an image, each box with its class and score, the highest scores on top.

    A line leads from a label that had to be put beside its box to the box.

    >>> import torch
    >>> cat = {"image_id": 1, "category_id": 1, "bbox": [20, 40, 60, 40], "score": 0.9}
    >>> draw_detections(torch.zeros(3, 100, 120), [cat], {1: "cat"}).size
    (120, 100)

    Args:
        image: (3, H, W) float in 0..1, or uint8.
        detections: rows of COCO's results format, in pixels of this image.
        names: category id to class name; the order decides the colours.
        score_threshold: lowest score of a detection that is drawn, 0..1.
    """
    picture = to_pil_image(image)
    pencil = ImageDraw.Draw(picture)
    shorter = min(picture.size)
    line, font = max(1, round(shorter / 250)), ImageFont.load_default(size=max(10, shorter / 40))
    colours = {category: _COLOURS[i % len(_COLOURS)] for i, category in enumerate(names)}
    shown = sorted((row for row in detections if row["score"] >= score_threshold), key=lambda row: -row["score"])
    for row in reversed(shown):
        x, y, width, height = row["bbox"]
        # Boxes are edges, Pillow's corners are the outermost pixels: the last is one before the right edge.
        corners = (x, y, max(x + width - 1, x), max(y + height - 1, y))
        pencil.rectangle(corners, outline=colours[row["category_id"]], width=line)
    texts = [f"{names[row['category_id']]} {row['score']:.2f}" for row in shown]
    sizes = [pencil.textbbox((0, 0), text, font=font)[2:] for text in texts]
    boxes = [row["bbox"] for row in shown]
    for row, text, (left, top, right, bottom) in zip(
        shown, texts, place_labels(boxes, sizes, picture.size), strict=True
    ):
        colour = colours[row["category_id"]]
        x, y, width, height = row["bbox"]
        nearest = min(max(left, x), x + width), min(max(top, y), y + height)
        if not (left - 1 <= nearest[0] <= right + 1 and top - 1 <= nearest[1] <= bottom + 1):
            pencil.line([((left + right) / 2, (top + bottom) / 2), nearest], fill=colour, width=line)
        pencil.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        pencil.text((left, top), text, fill="white", font=font)
    return picture


def place_labels(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[tuple[float, float, float, float]]:
    """Choose places of labels that cover no other label, as near to their boxes as there is room.

    A label is above its box if that is free, otherwise at another corner or side, otherwise further away; if the
    picture is full, where it covers the least of others.

    >>> place_labels([(0, 20, 30, 30), (5, 20, 30, 30)], [(25, 10), (25, 10)], (100, 100))
    [(0.0, 10.0, 25.0, 20.0), (5.0, 20.0, 30.0, 30.0)]

    Args:
        boxes: x, y, width and height, the most important first.
        sizes: width and height of each label.
        picture: width and height; no label leaves it.

    Returns:
        The corners xyxy of each label.
    """
    placed = np.zeros((0, 4))
    for box, size in zip(boxes, sizes, strict=True):
        candidates = _candidates(box, size, picture)
        covered = _overlaps(candidates, placed).sum(1)
        placed = np.vstack([placed, candidates[covered.argmin()]])  # the first of equally good ones
    return [tuple(corners) for corners in placed.tolist()]


def _candidates(box: Sequence[float], size: tuple[float, float], picture: tuple[int, int]) -> Array:
    """Return possible places (C, 4) xyxy of a label, the best first, moved inwards if they would leave the picture."""
    (x, y, width, height), (label_width, label_height) = box, size
    near = [
        (x, y - label_height),
        (x, y),
        (x + width - label_width, y - label_height),
        (x, y + height),
        (x, y + height - label_height),
        (x + width - label_width, y + height),
        (x + width, y),
        (x - label_width, y),
    ]
    middle = np.array([x, y - label_height])
    columns = np.arange(0, picture[0], label_width / 2)
    rows = np.arange(0, picture[1], label_height)
    far = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    far = far[np.abs(far - middle).sum(1).argsort(kind="stable")]
    room = np.maximum(np.array(picture) - (label_width, label_height), 0)
    starts = np.vstack([near, far]).clip(0, room)
    return np.hstack([starts, starts + np.array([label_width, label_height])])


def _overlaps(one: Array, other: Array) -> Array:
    """Return the common area (C, P) of boxes (C, 4) and (P, 4) xyxy."""
    sides = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2])
    return sides.clip(0).prod(2)
