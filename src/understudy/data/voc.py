"""The PASCAL VOC format: one XML file for each image, and the splits as lists of names."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from understudy.data.drafts import AnnotatedObject, Box, SplitDraft, repeated
from understudy.data.images import SUFFIXES, UnreadableImage, image_size
from understudy.data.limits import LIMITS, DataFolder, Limits
from understudy.data.records import SPLIT_NAMES
from understudy.errors import UserError
from understudy.reading import read_text, require_file
from understudy.text import shown

LAYOUTS = (
    "VOC: Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt, also below VOCdevkit/VOC2007; "
    "or train/*.xml beside the images (Roboflow)"
)

_DIFFICULT = {"1": True, "true": True, "0": False, "false": False, "unspecified": False, "": False}


def find_splits(path: Path, root: Path | None = None, limits: Limits = LIMITS) -> dict[str, Callable[[], SplitDraft]]:
    """Return the splits of a VOC data set by name, each with the function that reads it; none if it is not VOC.

    Raises:
        UserError: the path is a single XML file.
    """
    if path.is_file():
        if path.suffix.lower() == ".xml":
            raise UserError(f"{path} annotates a single image. Give the data set's folder.")
        return {}
    data_folder, years = DataFolder(path, limits), _year_folders(path)
    if len(years) == 1:
        return _splits_of_year(years[0], data_folder)
    if years:  # VOC2007 and VOC2012 side by side: the year is part of the name
        splits = {year.name: _splits_of_year(year, data_folder) for year in years}
        return {f"{year}/{name}": read for year, of_year in splits.items() for name, read in of_year.items()}
    folders = [path / name for name in SPLIT_NAMES if (path / name).is_dir() and _xml_folder(path / name)]
    return {folder.name: partial(_read_folder, folder, folders, data_folder) for folder in folders}


class _Layout(NamedTuple):
    """The folders of a VOC data set."""

    annotations: Path
    images: Path


def _year_folders(path: Path) -> list[Path]:
    """Return the folders that have an `Annotations` folder: `path` itself, or folders in it or in its VOCdevkit."""
    if _annotation_folder(path):
        return [path]
    below = sorted([*path.glob("VOC*"), *path.glob("VOCdevkit/VOC*")])
    return [folder for folder in below if folder.is_dir() and _annotation_folder(folder)]


def _annotation_folder(path: Path) -> Path | None:
    for folder in (path / "Annotations", path / "annotations"):
        if folder.is_dir() and next(folder.glob("*.xml"), None):
            return folder
    return None


def _xml_folder(folder: Path) -> Path | None:
    """Return the folder of a split's XML files: an inner Annotations folder, or the split's own folder."""
    return _annotation_folder(folder) or (folder if next(folder.glob("*.xml"), None) else None)


def _layout(folder: Path) -> _Layout:
    annotations = _xml_folder(folder) or folder
    images = [folder / name for name in ("JPEGImages", "images", "Images")]
    return _Layout(annotations, next((inner for inner in images if inner.is_dir()), annotations))


def _splits_of_year(year: Path, folder: DataFolder) -> dict[str, Callable[[], SplitDraft]]:
    lists = sorted((year / "ImageSets" / "Main").glob("*.txt"))
    names = {file.stem for file in lists}
    # aeroplane_train.txt lists the images of train that show aeroplanes: it is not a split
    lists = [file for file in lists if file.stem.rpartition("_")[2] not in names - {file.stem}]
    if not lists:
        return {"all": partial(_read_folder, year, [year], folder)}
    return {file.stem: partial(_read_list, year, file, folder) for file in lists}


def _read_list(year: Path, file: Path, folder: DataFolder) -> SplitDraft:
    """Read the images that a list in ImageSets/Main names; the classes are those of all annotations."""
    if not folder.allows(file):
        raise UserError(folder.refusal(file))
    layout = _layout(year)
    _check_inside(layout, folder)
    draft = SplitDraft(source=year, image_root=layout.images)
    stems = []
    for line in filter(None, map(str.strip, read_text(file, "list of images").splitlines())):
        if folder.named(layout.annotations, f"{line}.xml") is None:
            draft.fault("file outside the data set", file.name, folder.refusal(line))
        else:
            stems.append(line)
    _read_images(draft, layout, stems, [layout.annotations], folder)
    return draft


def _read_folder(folder: Path, siblings: list[Path], data_folder: DataFolder) -> SplitDraft:
    """Read all images of a folder; the classes include those of the sibling folders, so that splits agree."""
    layout = _layout(folder)
    _check_inside(layout, data_folder)
    draft = SplitDraft(source=folder, image_root=layout.images)
    stems = sorted(file.stem for file in layout.annotations.glob("*.xml"))
    _read_images(draft, layout, stems, [_layout(sibling).annotations for sibling in siblings], data_folder)
    return draft


def _check_inside(layout: _Layout, folder: DataFolder) -> None:
    """Raise if a folder of the data set is a link that leads outside: one message instead of one for each image."""
    for place in layout:
        if not folder.allows(place):
            raise UserError(folder.refusal(place))


def _read_images(
    draft: SplitDraft, layout: _Layout, stems: list[str], annotation_folders: list[Path], folder: DataFolder
) -> None:
    for stem in repeated(stems):
        draft.fault("duplicate id", str(draft.source), f'image "{stem}" is listed twice')
    trees = {file: _parse(file, folder) for place in annotation_folders for file in sorted(place.glob("*.xml"))}
    draft.classes = tuple(sorted({name for tree in trees.values() for name in _class_names(tree)}))
    draft.category_ids = tuple(range(1, len(draft.classes) + 1))
    label_of = {name: label for label, name in enumerate(draft.classes)}
    next_id = 1
    for image_id, stem in enumerate(dict.fromkeys(stems), start=1):
        file = layout.annotations / f"{stem}.xml"
        tree = trees.get(file, "the file does not exist")
        if isinstance(tree, str):
            draft.fault("annotation unreadable", file.name, tree)
            continue
        path = _image_path(layout, stem, tree, folder)
        if not folder.allows(path):
            draft.fault("file outside the data set", file.name, folder.refusal(path))
            continue
        size = _size(tree, path, file, folder.limits, draft)
        objects = list(_objects(tree, label_of, file, draft, first_id=next_id))
        next_id += len(objects)
        if size:
            draft.add(image_id, path, size, objects)
    draft.close()


class _RefuseDoctype(ElementTree.TreeBuilder):
    """Builds the tree, unless the file declares a document type, whose entities could exhaust the memory."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("the file declares a DOCTYPE, which is not allowed")


def _parse(file: Path, folder: DataFolder) -> ElementTree.Element | str:
    """Return the root element, or the fault of the file."""
    if not folder.allows(file):
        return folder.refusal(file)
    try:
        require_file(file, "annotation file")
        with file.open("rb") as stream:
            parser = ElementTree.XMLParser(target=_RefuseDoctype())
            root = ElementTree.parse(stream, parser).getroot()
    except UserError as error:
        return str(error)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        return f"invalid XML: {error}"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return root if root.tag == "annotation" else f"expected the root element <annotation>, got <{root.tag}>"


def _class_names(tree: ElementTree.Element | str) -> Iterable[str]:
    if isinstance(tree, str):
        return []
    return filter(None, (_text(item, "name") for item in tree.findall("object")))


def _image_path(layout: _Layout, stem: str, tree: ElementTree.Element, folder: DataFolder) -> Path:
    """Return the image of an annotation: the file of the same name, otherwise the file that the annotation names."""
    for suffix in (".jpg", ".jpeg", ".png", *sorted(SUFFIXES)):
        for spelled in (suffix, suffix.upper()):
            if (path := layout.images / f"{stem}{spelled}").is_file():
                return path
    named = folder.named(layout.images, _text(tree, "filename"))
    return named if named and named.is_file() else layout.images / f"{stem}.jpg"


def _size(
    tree: ElementTree.Element, path: Path, file: Path, limits: Limits, draft: SplitDraft
) -> tuple[int, int] | None:
    """Width and height as annotated; if missing or impossible (many tools write 0), those of the image file."""
    try:
        width, height = (int(float(_text(tree, f"size/{name}"))) for name in ("width", "height"))
    except (ValueError, OverflowError):
        width = height = 0
    if 0 < width < 2**63 and 0 < height < 2**63:
        return width, height
    try:
        return image_size(path, limits.max_pixels)
    except UnreadableImage as error:
        draft.fault("image unreadable", file.name, f"it has no <size>, and {error}")
        return None


def _objects(
    tree: ElementTree.Element, label_of: dict[str, int], file: Path, draft: SplitDraft, first_id: int
) -> Iterable[AnnotatedObject]:
    for position, item in enumerate(tree.findall("object")):
        where = f"{file.name}, object {position + 1}"
        name, box, difficult = _text(item, "name"), _box(item), _text(item, "difficult").lower()
        if not name:
            draft.fault("annotation unreadable", where, "it has no <name>")
        elif box is None:
            draft.fault("annotation unreadable", where, "<bndbox> must hold xmin, ymin, xmax and ymax as numbers")
        elif difficult not in _DIFFICULT:
            draft.fault("annotation unreadable", where, f"<difficult>: expected 0 or 1, got {shown(difficult)}")
        else:
            yield AnnotatedObject(first_id + position, label_of[name], box, ignore=_DIFFICULT[difficult])


def _box(item: ElementTree.Element) -> Box | None:
    """Convert a box: VOC counts pixels from 1 and includes the last; here a box ends where its last pixel ends."""
    try:
        x1, y1, x2, y2 = (float(_text(item, f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return x1 - 1, y1 - 1, x2, y2


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
