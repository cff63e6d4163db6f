"""A sheet of sample images with their boxes and class names, to see whether a data set is read correctly."""

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from understudy.data.images import load_image
from understudy.data.limits import LIMITS, Limits
from understudy.data.records import Record
from understudy.files import write_output

_TILES = 12
_COLUMNS = 3
_TILE_WIDTH, _TILE_HEIGHT, _CAPTION_HEIGHT, _GAP = 480, 360, 24, 8
_IGNORED_COLOUR = (150, 150, 150)


def draw_contact_sheet(
    records: Mapping[str, Sequence[Record]], classes: Mapping[str, Sequence[str]], file: Path, limits: Limits = LIMITS
) -> None:
    """Draw up to 12 images as a PNG, spread over the splits and chosen to show many classes.

    Args:
        records: the readable images of each split.
        classes: the class names of each split.
        file: the PNG to write; its folder is created.
        limits: of the images.

    Raises:
        UserError: its folder cannot be created.
        RunError: the file cannot be written.
    """
    chosen = _choose(records)
    rows = max(1, math.ceil(len(chosen) / _COLUMNS))
    cell_width, cell_height = _TILE_WIDTH + _GAP, _TILE_HEIGHT + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * cell_width + _GAP, rows * cell_height + _GAP), "white")
    for number, (split, record) in enumerate(chosen):
        corner = (number % _COLUMNS * cell_width + _GAP, number // _COLUMNS * cell_height + _GAP)
        sheet.paste(_tile(split, record, classes[split], limits), corner)
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_output(file, content.getvalue())


def _choose(records: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
    """Choose the images: an equal share of the tiles for each split, in the order of the splits."""
    filled = {name: of_split for name, of_split in records.items() if of_split}
    share = math.ceil(_TILES / max(1, len(filled)))
    return [(name, record) for name, of_split in filled.items() for record in _varied(of_split, share)][:_TILES]


def _varied(records: Sequence[Record], number: int) -> list[Record]:
    """Choose images of one split: first those with a class not yet shown, then others spread evenly over the split."""
    chosen: list[int] = []
    seen: set[int] = set()
    for position, record in enumerate(records):
        labels = set(record.labels.tolist())
        if labels - seen and len(chosen) < number:
            chosen.append(position)
            seen |= labels
    spread = [step * len(records) // number for step in range(number)]
    chosen += [position for position in dict.fromkeys(spread) if position not in chosen]
    return [records[position] for position in sorted(chosen[:number])]


def _tile(split: str, record: Record, classes: Sequence[str], limits: Limits) -> Image.Image:
    """One image scaled into its tile, with boxes and names, and a caption below."""
    pixels = load_image(record.path, (record.width, record.height), limits.max_pixels).mul(255).round().byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = min(_TILE_WIDTH / record.width, _TILE_HEIGHT / record.height)
    image = image.resize((max(1, round(record.width * scale)), max(1, round(record.height * scale))))
    _draw_objects(image, record, classes, scale)
    tile = Image.new("RGB", (_TILE_WIDTH, _TILE_HEIGHT + _CAPTION_HEIGHT), (235, 235, 235))
    tile.paste(image, ((_TILE_WIDTH - image.width) // 2, (_TILE_HEIGHT - image.height) // 2))
    caption = f"{split}: {record.path.name}  {record.width}x{record.height}, objects: {len(record.labels)}"
    ImageDraw.Draw(tile).text((6, _TILE_HEIGHT + 4), caption, fill="black", font=ImageFont.load_default(14))
    return tile


def _draw_objects(image: Image.Image, record: Record, classes: Sequence[str], scale: float) -> None:
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    rows = list(zip(record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True))
    for box, label, ignored in rows:
        draw.rectangle(_in_tile(box, scale, image.size), outline=_colour(label, ignored), width=2)
    for box, label, ignored in rows:  # names after all boxes, so that no line crosses a name
        name = f"{classes[label]} (ignored)" if ignored else classes[label]
        width, height = draw.textlength(name, font=font) + 6, 16
        x, y = _in_tile(box, scale, image.size)[:2]
        x, y = max(0, min(x, image.width - width)), max(0, y - height)  # above the box, and inside the tile
        draw.rectangle((x, y, x + width, y + height), fill=_colour(label, ignored))
        draw.text((x + 3, y + 1), name, fill="white", font=font)


def _in_tile(box: Sequence[float], scale: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box at the tile's scale, clipped such that all four sides are visible."""
    right, bottom = size[0] - 1, size[1] - 1
    x1, x2 = (min(max(value * scale, 0), right) for value in box[0::2])
    y1, y2 = (min(max(value * scale, 0), bottom) for value in box[1::2])
    return x1, y1, x2, y2


def _colour(label: int, ignored: bool) -> tuple[int, int, int]:
    """Return a dark, saturated colour; steps of the golden ratio separate the hues of consecutive labels."""
    if ignored:
        return _IGNORED_COLOUR
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.9, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)
