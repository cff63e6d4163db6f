"""The YOLO format: a text file of normalised boxes for each image, and a YAML file with splits and class names."""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from understudy.data.drafts import AnnotatedObject, Box, SplitDraft, repeated
from understudy.data.images import SUFFIXES, UnreadableImage, shown_size
from understudy.data.limits import LIMITS, DataFolder, Limits, is_possible
from understudy.data.records import SPLIT_NAMES, Fault
from understudy.errors import UserError
from understudy.reading import read_bytes, read_text, read_yaml
from understudy.text import listed, shown

LAYOUTS = (
    "YOLO: a .yaml file with train, val and names; images/train with labels/train, or train/images with "
    "train/labels; train.txt, a list of image files"
)

_NAME_FILES = ("classes.txt", "obj.names", "names.txt", "classes.names")
_LARGEST_FRACTION = 1.01  # tools round up a little; larger values are pixels, not fractions


def find_splits(path: Path, root: Path | None = None, limits: Limits = LIMITS) -> dict[str, Callable[[], SplitDraft]]:
    """Return the splits of a YOLO data set by name, each with the function that reads it; none if it is not YOLO.

    Raises:
        UserError: a YAML file does not describe a data set, or several do and none is data.yaml.
    """
    if path.is_file():
        folder = DataFolder(root or path.parent, limits)
        if path.suffix.lower() in (".yaml", ".yml"):
            return _splits_of_yaml(path, folder)
        return _splits_of_lists(folder, [path]) if path.suffix.lower() == ".txt" else {}
    folder = DataFolder(path, limits)
    if file := _file_of_folder(path, folder):
        return _splits_of_yaml(file, folder)
    lists = [file for name in SPLIT_NAMES if (file := path / f"{name}.txt").is_file()]
    return _splits_of_folders(folder) or _splits_of_lists(folder, lists) or _undivided(folder)


def _splits_of_folders(folder: DataFolder) -> dict[str, Callable[[], SplitDraft]]:
    """Folders images/train with labels/train, or train/images with train/labels."""
    places: dict[str, Path] = {}
    root = folder.root
    for name in SPLIT_NAMES:
        for images, labels in ((f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")):
            if (root / images).is_dir() and (root / labels).is_dir():
                places.setdefault(name, root / images)
    every = [[place] for place in places.values()]
    return {name: partial(_read, root, folder, root, [place], every) for name, place in places.items()}


def _undivided(folder: DataFolder) -> dict[str, Callable[[], SplitDraft]]:
    """Folders images and labels without splits."""
    root, images = folder.root, folder.root / "images"
    found = images.is_dir() and (root / "labels").is_dir()
    return {"all": partial(_read, root, folder, root, [images], [[images]])} if found else {}


def _splits_of_lists(folder: DataFolder, lists: list[Path]) -> dict[str, Callable[[], SplitDraft]]:
    """Text files that list images."""
    every = [[file] for file in lists]
    return {file.stem: partial(_read, file, folder, folder.root, [file], every) for file in lists}


def _file_of_folder(path: Path, folder: DataFolder) -> Path | None:
    """Return the YAML file that describes the data set in a folder; None if there is none."""
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    if named := [file for file in files if file.stem == "data"]:
        return named[0]  # if it does not describe a data set, this is a fault to report
    found = [file for file in files if _describes_data(file, folder)]
    if len(found) > 1:  # they may name other classes or splits
        raise UserError(
            f"{path} has several data set files: {listed([file.name for file in found])}. Give one of them, e.g. "
            f"{found[0]}, or rename it to data.yaml."
        )
    return found[0] if found else None


def _describes_data(file: Path, folder: DataFolder) -> bool:
    """Return whether a YAML file in the folder describes the data set; it may be a config or hyper-parameters."""
    try:
        return folder.allows(file) and "names" in read_yaml(file)
    except UserError:
        return False


def _splits_of_yaml(file: Path, folder: DataFolder) -> dict[str, Callable[[], SplitDraft]]:
    if not folder.allows(file):
        raise UserError(folder.refusal(file))
    content = _load_yaml(file)
    classes = _class_names(content["names"])
    root = _yaml_root(file, content)
    places = {
        name: _places(file, root, value if isinstance(value, list) else [value], folder)
        for name, value in content.items()
        if name in SPLIT_NAMES and value
    }
    every = list(places.values())
    return {name: partial(_read, file, folder, root, places[name], every, classes) for name in places}


def _load_yaml(file: Path) -> dict:
    """Read the YAML file; all of its faults are reported at once."""
    content = read_yaml(file, "data set file")
    faults = []
    classes = _class_names(content.get("names"))
    if not classes:
        faults.append("names: expected a list of class names, or a mapping 0: name, 1: name, ... without gaps")
    elif wrong := [name for name in _listed_names(content["names"]) if not _is_name(name)]:
        others = listed(list(map(shown, wrong)))
        faults.append(f'names: expected text, got {others}; put such names in quotes, e.g. "no"')
    elif len(set(classes)) < len(classes):
        faults.append("names: a class name is used twice")
    if classes and content.get("nc", len(classes)) != len(classes):
        quoted = content["nc"] == str(len(classes))
        found = f"the text '{content['nc']}'; leave out the quotes" if quoted else shown(content["nc"])
        faults.append(f"nc: expected {len(classes)}, the number of names, got {found}")
    if not any(content.get(name) for name in SPLIT_NAMES):
        faults.append("train, val: expected a path for at least one split")
    for name in (*SPLIT_NAMES, "path"):
        value = content.get(name)
        texts = value if isinstance(value, list) and name != "path" else [value]
        if value and not all(isinstance(text, str) and is_possible(text) for text in texts):
            faults.append(f"{name}: expected a path, got {shown(value)}")
    if faults:
        raise UserError.listing(f"{file} is not a valid YOLO data set:", faults)
    return content


def _class_names(names: object) -> tuple[str, ...]:
    """Return the classes of a YAML file's `names`; empty if it is not valid."""
    return tuple(map(str, _listed_names(names)))


def _listed_names(names: object) -> list:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[label] for label in range(len(names))]
    return names if isinstance(names, list) else []


def _is_name(value: object) -> bool:
    """Return whether a class name is text or a number; YAML reads yes, no and null without quotes as other values."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _yaml_root(file: Path, content: dict) -> Path:
    """Return the folder named by a YAML file's `path`, relative to the file or as given; otherwise the file's own.

    Published YAML files often name a folder of the author's machine.
    """
    given = Path(content.get("path") or ".")
    candidates = [file.parent / given, given] if content.get("path") else [file.parent]
    return next((folder for folder in candidates if folder.is_dir()), file.parent)


def _places(file: Path, root: Path, values: list[str], folder: DataFolder) -> list[Path]:
    """Return the folders or lists of one split. Roboflow writes `../train/images` for train/images beside the file."""
    places = []
    for value in values:
        candidates = [root / value, file.parent / value, file.parent / value.removeprefix("../")]
        present = [place for place in candidates if place.exists()] or [root / value]
        places.append(next(filter(folder.allows, present), present[0]))
    return places


def _read(
    source: Path,
    folder: DataFolder,
    root: Path,
    places: list[Path],
    every: list[list[Path]],
    classes: tuple[str, ...] = (),
) -> SplitDraft:
    """Read one split.

    Args:
        source: the YAML file, list or folder of the split.
        folder: the data set's folder.
        root: the folder that paths in lists are relative to.
        places: folders of images, or lists of image files.
        every: the places of all splits; without class names, the classes are counted over all of them.
        classes: the names from the YAML file; empty if there is none.
    """
    draft = SplitDraft(source=source, image_root=root)
    paths = [path for place in places for path in _image_paths(place, root, folder, draft)]
    for path in repeated(map(str, paths)):
        draft.fault("duplicate id", source.name, f"image {path} is listed twice")
    draft.classes = classes or _classes_beside(root, folder) or _numbered_classes(every, root, folder)
    draft.category_ids = tuple(range(len(draft.classes)))
    next_id = 1
    for image_id, path in enumerate(dict.fromkeys(paths), start=1):
        try:
            size = shown_size(path, folder.limits.max_pixels)
        except UnreadableImage as error:
            draft.fault("image unreadable", path.name, str(error))
            continue
        objects = list(_objects(_label_file(path), folder, size, len(draft.classes), draft, first_id=next_id))
        next_id += len(objects)
        draft.add(image_id, path, size, objects)
    for place in filter(Path.is_dir, places):
        _note_lost_labels(place, paths, folder, draft)
    return draft.close()


def _note_lost_labels(place: Path, images: list[Path], folder: DataFolder, draft: SplitDraft) -> None:
    """Note label files with objects that belong to none of the images in a folder, e.g. by a misspelt name."""
    labels = _mirrored(place)
    if labels is None or not labels.is_dir() or not (folder.allows(place) and folder.allows(labels)):
        return  # label files beside the images: other text files may be there
    known = {_mirrored(path.with_suffix(".txt")) for path in images}
    for file in sorted(labels.rglob("*.txt")):
        if file not in known and file.name not in _NAME_FILES and file.is_file() and file.stat().st_size:
            draft.notes.append(Fault("labels without image", file.name, f"no image of this name in {place}"))


def _image_paths(place: Path, root: Path, folder: DataFolder, draft: SplitDraft) -> list[Path]:
    """Return the images of a folder and its subfolders, sorted, or those that a list names."""
    outside = "file outside the data set"
    if not folder.allows(place):
        draft.fault(outside, draft.source.name, folder.refusal(place))
        return []
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        for path in found:
            if not folder.allows(path):
                draft.fault(outside, path.name, folder.refusal(path))
        return [path for path in found if folder.allows(path)]
    if not place.exists():
        draft.fault("image folder missing", str(draft.source), f"{place} does not exist")
        return []
    paths = []
    for line in filter(None, map(str.strip, read_text(place, "list of images").splitlines())):
        # Lists often have absolute paths, which are accepted inside the data set.
        given = Path(line.removeprefix("./"))
        if given.is_relative_to(root.absolute()):
            given = given.relative_to(root.absolute())
        absolute = is_possible(line) and given.is_absolute() and folder.allows(given)  # root may be a link
        path = given if absolute else folder.named(root, str(given))
        if path is None:
            draft.fault(outside, place.name, folder.refusal(line))
        else:
            paths.append(path)
    return paths


def _label_file(image: Path) -> Path:
    """Return the label file of an image: in the `labels` folder parallel to its `images` folder, or beside it."""
    beside = image.with_suffix(".txt")
    mirrored = _mirrored(beside)
    return mirrored if mirrored and mirrored.is_file() else beside


def _mirrored(path: Path) -> Path | None:
    """Return the path in the `labels` folder parallel to an `images` folder; None if it is in no such folder."""
    head, found, tail = f"{path}/".rpartition("/images/")
    return Path(f"{head}/labels/{tail}") if found else None


def _classes_beside(root: Path, folder: DataFolder) -> tuple[str, ...]:
    """Class names from a text file, one per line; empty if there is no such file."""
    for file in (place / name for place in (root, root / "labels") for name in _NAME_FILES):
        if file.exists():
            if not folder.allows(file):
                raise UserError(folder.refusal(file))
            return tuple(filter(None, map(str.strip, read_text(file, "list of classes").splitlines())))
    return ()


def _numbered_classes(every: list[list[Path]], root: Path, folder: DataFolder) -> tuple[str, ...]:
    """Class names if none are given: the numbers from 0 to the largest that any split uses."""
    largest = -1
    discarded = SplitDraft(source=root, image_root=root)  # faults of other splits are reported by their own readers
    for place in (place for places in every for place in places):
        for path in _image_paths(place, root, folder, discarded):
            numbers = re.findall(r"^\s*(\d{1,4})\s", _text(_label_file(path), folder), flags=re.MULTILINE)
            largest = max([largest, *map(int, numbers)])
    return tuple(map(str, range(largest + 1)))


def _text(file: Path, folder: DataFolder) -> str:
    """Return the text of a label file that may be read; an image without a label file has no objects."""
    if not (file.exists() and folder.allows(file)):
        return ""
    return read_bytes(file, "label file").decode("utf-8-sig", errors="replace")


def _objects(
    file: Path, folder: DataFolder, size: tuple[int, int], num_classes: int, draft: SplitDraft, first_id: int
) -> Iterable[AnnotatedObject]:
    if not folder.allows(file):
        draft.fault("file outside the data set", file.name, folder.refusal(file))
    for number, line in enumerate(_text(file, folder).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            label, box = _parse_line(line, size)
        except ValueError as error:
            draft.fault("annotation unreadable", where, str(error))
            continue
        if 0 <= label < num_classes:
            yield AnnotatedObject(first_id, label, box)
            first_id += 1
        else:
            draft.fault("unknown category", where, f"expected a class from 0 to {num_classes - 1}, got {label}")


def _parse_line(line: str, size: tuple[int, int]) -> tuple[int, Box]:
    """Parse `class cx cy w h`, or a polygon `class x1 y1 x2 y2 ...` (its bounding box), in fractions of the image."""
    try:
        label, *values = map(float, line.split())
    except ValueError:
        raise ValueError(f'expected numbers "class cx cy w h", got {shown(line.strip())}') from None
    if label % 1 or len(values) < 4 or (len(values) > 4 and (len(values) < 6 or len(values) % 2)):
        raise ValueError(f'expected "class cx cy w h" or a polygon "class x y x y x y ...", got {shown(line.strip())}')
    if any(math.isfinite(value) and abs(value) > _LARGEST_FRACTION for value in values):
        raise ValueError(f"expected fractions of the image, 0 to 1, got {shown(line.strip())} (pixels?)")
    if len(values) == 4:
        return int(label), _in_pixels(*values, size)
    width, height = size
    xs, ys = values[0::2], values[1::2]
    return int(label), (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)


def _in_pixels(cx: float, cy: float, w: float, h: float, size: tuple[int, int]) -> Box:
    width, height = size
    return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
