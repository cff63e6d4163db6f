"""The COCO format: the official folders, Roboflow's, a flat folder, or one JSON file."""

import contextlib
import ctypes
import gc
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from understudy.data import cache
from understudy.data.drafts import Box, Objects, SplitDraft, repeated
from understudy.data.images import UnreadableImage, image_size
from understudy.data.limits import LIMITS, DataFolder, Limits, is_possible
from understudy.data.records import SPLIT_NAMES
from understudy.errors import UserError
from understudy.reading import read_bytes, require_file
from understudy.text import shown

LAYOUTS = (
    "COCO: annotations/instances_train2017.json with train2017/, instances_train.json with images/, "
    "train/_annotations.coco.json (Roboflow), or one .json file"
)

_SPLIT_WORD = re.compile(rf"(?:^|[_.-])((?:{'|'.join(SPLIT_NAMES)})\d{{0,4}})(?:[_.-]|$)")

_OUTLINES = re.compile(rb'"segmentation"\s*:\s*\[[][0-9 \t\r\n.,eE+-]*\]')
"""Polygons and masks, which take most of a file and of the time to read it, and are not used. No text can contain this:
its quotation marks would have backslashes in front."""

_IDS = ("id", "image_id", "category_id")
"""What an annotation must have beside its box."""

_NUMBERS = frozenset({int, float})
"""Types of numbers in JSON; bool is not one of them."""


def find_splits(path: Path, root: Path | None = None, limits: Limits = LIMITS) -> dict[str, Callable[[], SplitDraft]]:
    """Return the splits of a COCO data set by name, each with the function that reads it; none if it is not COCO.

    Args:
        path: a folder, or one JSON file.
        root: the data set's folder, if `path` is a file inside it; otherwise it is derived from `path`.
        limits: of the data set.
    """
    if path.is_file():
        if path.suffix.lower() != ".json":
            return {}
        root = root or (path.parent.parent if path.parent.name == "annotations" else path.parent)
        return {_split_name(path): partial(read, path, DataFolder(root, limits))}
    folder = DataFolder(path, limits)
    return {_split_name(file): partial(read, file, folder) for file in _annotation_files(path)}


@contextlib.contextmanager
def _memory_at_once() -> Generator[None]:
    """Make and free millions of objects at once: the collector does not look through them, and no memory is kept."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc keeps freed memory, and can be told
            ctypes.CDLL(None).malloc_trim(0)


@_memory_at_once()
def read(file: Path, folder: DataFolder) -> SplitDraft:
    """Read one COCO annotation file of a data set.

    Raises:
        UserError: the file is not JSON, not COCO, or outside the data set.
    """
    if not folder.allows(file):
        raise UserError(folder.refusal(file))
    if draft := _cached(file, folder):
        return draft
    raw = read_bytes(file, "annotation file")
    entry = cache.entry(io.BytesIO(raw))
    content = _parse(raw, file)
    del raw
    names = [row["file_name"] for row in content["images"] if _is_text(row, "file_name")]
    draft = SplitDraft(source=file, image_root=_image_root(file, folder, names))
    if not folder.allows(draft.image_root):
        raise UserError(folder.refusal(draft.image_root))
    label_of = _read_categories(content["categories"], draft)
    images = _read_images(content["images"], folder, draft)
    objects = _read_objects(content["annotations"], label_of, images, draft)
    rows = np.array([(image_id, *size) for image_id, (_, size) in images.items()], np.int64)
    draft.fill([name for name, _ in images.values()], rows.reshape(-1, 3), objects)
    if entry and not draft.faults and all("width" in row for row in content["images"]):  # not sizes of image files
        cache.store(entry, draft)
    return draft


def _cached(file: Path, folder: DataFolder) -> SplitDraft | None:
    """Return the split from the cache; None if it is not there, or one of its images may not be read.

    The annotations are those of the cache, but whether a link leads outside the data set depends on its folder.
    """
    require_file(file, "annotation file")
    draft = SplitDraft(source=file, image_root=Path())
    try:
        with file.open("rb") as stream:
            entry = cache.entry(stream)
    except OSError:  # reported when it is read
        return None
    if not entry or not cache.load(entry, draft):
        return None
    names = draft.records.paths()
    draft.image_root = _image_root(file, folder, names)
    draft.records = replace(draft.records, root=draft.image_root)
    inside = folder.allows(draft.image_root) and all(folder.holds(draft.image_root, name) for name in names)
    return draft if inside else None


def _annotation_files(root: Path) -> list[Path]:
    """Return the annotation files of a folder, by the most specific layout that is present."""
    folders = [folder for folder in (root / "annotations", root) if folder.is_dir()]
    for folder in folders:
        if files := sorted(folder.glob("instances_*.json")):
            return files
    if files := sorted(root.glob("*/_annotations.coco.json")):
        return files
    for folder in folders:
        if files := [file for file in sorted(folder.glob("*.json")) if _SPLIT_WORD.search(file.stem)]:
            return files
    others = [file for folder in folders for file in sorted(folder.glob("*.json"))]
    in_split_folders = [file for file in sorted(root.glob("*/*.json")) if _SPLIT_WORD.fullmatch(file.parent.name)]
    return [file for file in others + in_split_folders if _looks_like_coco(file)]


def _looks_like_coco(file: Path) -> bool:
    """Return whether a JSON file of any name begins like COCO; a whole file may be too large to read for that."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(65536)
    return start.lstrip().startswith(b"{") and any(key in start for key in (b'"images"', b'"annotations"'))


def _split_name(file: Path) -> str:
    if file.stem.startswith("instances_"):
        return file.stem.removeprefix("instances_")
    if found := _SPLIT_WORD.search(file.stem):
        return found[1]
    if _SPLIT_WORD.fullmatch(file.parent.name) or file.name == "_annotations.coco.json":
        return file.parent.name
    return file.stem


def _parse(raw: bytes, file: Path) -> dict[str, list]:
    expected = 'an object with the lists "images", "annotations" and "categories"'
    try:
        try:
            content = json.loads(_OUTLINES.sub(b'"segmentation":null', raw))
        except ValueError:
            content = json.loads(raw)  # so that the message states the place in the file itself
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}). Expected COCO annotations: {expected}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not COCO: expected {expected}, got a JSON {type(content).__name__}.")
    faults = [
        f'"{key}" is {"missing" if key not in content else "a " + type(content[key]).__name__ + ", not a list"}'
        for key in ("images", "annotations", "categories")
        if not isinstance(content.get(key), list)
    ]
    if faults:
        raise UserError.listing(f"{file} is not COCO: expected {expected}.", faults)
    return content


def _image_root(file: Path, data_folder: DataFolder, file_names: Sequence[str]) -> Path:
    """Return the folder of the images: of the usual places, the one where most of a sample of the file names exist."""
    name, root = _split_name(file), data_folder.root
    names = list(dict.fromkeys([name, name.rstrip("0123456789")]))
    candidates = [base / inner for base in (root, root / "images") for inner in names]
    candidates += [root / "images", file.parent, file.parent / "images", file.parent / "data", root / "data", root]
    candidates = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    sample = file_names[:: max(1, len(file_names) // 20)]

    def found(folder: Path) -> int:
        return sum(is_possible(name) and (folder / name).is_file() for name in sample)

    return max(candidates, key=found)  # the first of equals


def _read_categories(rows: list, draft: SplitDraft) -> dict[int, int]:
    """Set the classes, in the order of the category ids, and return the label of each id."""
    names: dict[int, str] = {}
    for position, row in enumerate(rows):
        where = f"{draft.source.name}, categories[{position}]"
        if not _is_integer(row, "id") or not _is_text(row, "name"):
            draft.fault("category unreadable", where, 'expected an integer "id" and a string "name"')
        elif row["id"] in names:
            draft.fault("duplicate id", where, f"category id {row['id']} is used twice")
        else:
            names[row["id"]] = row["name"]
    ids = sorted(names)
    draft.category_ids, draft.classes = tuple(ids), tuple(names[i] for i in ids)
    for name in repeated(draft.classes):
        draft.fault("duplicate class name", f"{draft.source.name}, categories", f'several ids have the name "{name}"')
    if not rows:
        draft.fault("no classes", draft.source.name, '"categories" is empty')
    return {category_id: label for label, category_id in enumerate(ids)}


def _read_images(rows: list, folder: DataFolder, draft: SplitDraft) -> dict[int, tuple[str, tuple[int, int]]]:
    """Return the usable images: id -> (name below the image root, (width, height))."""
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    for position, row in enumerate(rows):
        where = f"{draft.source.name}, images[{position}]"
        if not _is_integer(row, "id") or not _is_text(row, "file_name"):
            draft.fault("image entry unreadable", where, 'expected an integer "id" and a string "file_name"')
            continue
        name = row["file_name"]
        if not folder.holds(draft.image_root, name):
            draft.fault("file outside the data set", where, f"file_name {folder.refusal(row['file_name'])}")
        elif row["id"] in images:
            draft.fault("duplicate id", where, f"image id {row['id']} is used twice")
        elif size := _size(row, draft.image_root, where, folder, draft):
            images[row["id"]] = str(Path(name)) if "/" in name else name, size
    return images


def _size(row: dict, image_root: Path, where: str, folder: DataFolder, draft: SplitDraft) -> tuple[int, int] | None:
    """Width and height as annotated, otherwise those of the image file."""
    if "width" not in row and "height" not in row:
        try:
            return image_size(image_root / row["file_name"], folder.limits.max_pixels)
        except UnreadableImage as error:
            draft.fault("image unreadable", where, f'no "width" and "height", and {error}')
            return None
    if _is_integer(row, "width") and _is_integer(row, "height") and row["width"] > 0 and row["height"] > 0:
        return row["width"], row["height"]
    sizes = f"{shown(row.get('width'))} and {shown(row.get('height'))}"
    draft.fault("image entry unreadable", where, f'"width" and "height" must be positive integers, got {sizes}')
    return None


def _read_objects(rows: list, label_of: dict[int, int], images: Iterable[int], draft: SplitDraft) -> Objects:
    """Return the objects without faults; those of the others are added to the draft.

    There may be a million. So the columns are taken out first, and faults are looked for only in rows that have one.
    """
    rows = [row if isinstance(row, dict) else {} for row in rows]
    ids: dict[str, list[Any]] = {key: [_integer(row.get(key)) for row in rows] for key in _IDS}
    boxes = [_box(row.get("bbox")) for row in rows]
    place_of = {image_id: place for place, image_id in enumerate(images)}
    seen: set[int | None] = {None}
    usable = []
    for position, (own, image, category, box) in enumerate(zip(*ids.values(), boxes, strict=True)):
        if own not in seen and image in place_of and category in label_of and box is not None:
            usable.append(position)
            seen.add(own)
            continue
        where = f"{draft.source.name}, annotations[{position}]"
        if missing := [f'"{key}"' for key, values in ids.items() if values[position] is None]:
            draft.fault("annotation unreadable", where, f"expected an integer for {', '.join(missing)}")
            continue
        if own in seen:
            draft.fault("duplicate id", where, f"annotation id {own} is used twice")
        seen.add(own)
        if image not in place_of:
            draft.fault("unknown image", where, f"image_id {image} is not the id of a readable image")
        if category not in label_of:
            known = ", ".join(map(str, sorted(label_of)[:20])) or "none"
            draft.fault("unknown category", where, f"expected a category_id of {known}, got {category}")
        if box is None:
            what = f'"bbox" must be [x, y, width, height], got {shown(rows[position].get("bbox"))}'
            draft.fault("annotation unreadable", where, what)
    return Objects(
        images=np.array([place_of[ids["image_id"][position]] for position in usable], np.int64),
        annotation_ids=np.array([ids["id"][position] for position in usable], np.int64),
        labels=np.array([label_of[ids["category_id"][position]] for position in usable], np.int64),
        boxes=np.array([boxes[position] for position in usable], np.float64).reshape(-1, 4),
        ignore=np.array([rows[position].get("iscrowd") == 1 for position in usable], np.bool_),
        areas=np.array([_area(rows[position].get("area")) for position in usable], np.float64),
    )


def _box(bbox: Any) -> Box | None:
    """Convert xywh to xyxy; None if it is not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not _NUMBERS.issuperset(map(type, bbox)):
        return None
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:  # an integer too large for a float
        return None
    return x, y, x + width, y + height


def _area(area: Any) -> float:
    """Return the annotated area; nan if it is not a usable number (then that of the box is used)."""
    return float(area) if type(area) in _NUMBERS and 0 <= area < 1e18 else np.nan


def _integer(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def _is_integer(row: object, key: str) -> bool:
    return isinstance(row, dict) and _integer(row.get(key)) is not None


def _is_text(row: object, key: str) -> bool:
    return isinstance(row, dict) and isinstance(row.get(key), str) and bool(row[key])
