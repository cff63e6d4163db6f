"""The PASCAL VOC format: one XML file for each image, and the splits as lists of names."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from understudy.data.images import SUFFIXES, UnreadableImage, image_size
from understudy.data.records import SPLIT_NAMES, AnnotatedObject, Box, SplitDraft, repeated, safe_path
from understudy.errors import UserError

LAYOUTS = (
    "VOC: Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt, also below VOCdevkit/VOC2007; "
    "or train/*.xml beside the images (Roboflow)"
)


def find_splits(path: Path, root: Path | None = None) -> dict[str, Callable[[], SplitDraft]]:
    """Return the splits of a VOC data set by name, each with the function that reads it; none if it is not VOC.

    Raises:
        UserError: the path is a single XML file.
    """
    if path.is_file():
        if path.suffix.lower() == ".xml":
            raise UserError(f"{path} annotates a single image. Give the data set's folder.")
        return {}
    years = _year_folders(path)
    if len(years) == 1:
        return _splits_of_year(years[0])
    if years:  # VOC2007 and VOC2012 side by side: the year is part of the name
        return {f"{year.name}/{name}": read for year in years for name, read in _splits_of_year(year).items()}
    folders = [path / name for name in SPLIT_NAMES if (path / name).is_dir() and _xml_folder(path / name)]
    return {folder.name: partial(_read_folder, folder, siblings=folders) for folder in folders}


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


def _splits_of_year(year: Path) -> dict[str, Callable[[], SplitDraft]]:
    lists = sorted((year / "ImageSets" / "Main").glob("*.txt"))
    names = {file.stem for file in lists}
    # aeroplane_train.txt lists the images of train that show aeroplanes: it is not a split
    lists = [file for file in lists if file.stem.rpartition("_")[2] not in names - {file.stem}]
    if not lists:
        return {"all": partial(_read_folder, year, siblings=[year])}
    return {file.stem: partial(_read_list, year, file) for file in lists}


def _read_list(year: Path, file: Path) -> SplitDraft:
    """Read the images that a list in ImageSets/Main names; the classes are those of all annotations."""
    layout = _layout(year)
    draft = SplitDraft(source=year, image_root=layout.images)
    stems = []
    for line in filter(None, map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())):
        if safe_path(layout.annotations, f"{line}.xml") is None:
            what = f'"{line}" is not inside the data set ({layout.annotations})'
            draft.fault("file outside the data set", file.name, what)
        else:
            stems.append(line)
    _read_images(draft, layout, stems, [layout.annotations])
    return draft


def _read_folder(folder: Path, siblings: list[Path]) -> SplitDraft:
    """Read all images of a folder; the classes include those of the sibling folders, so that splits agree."""
    layout = _layout(folder)
    draft = SplitDraft(source=folder, image_root=layout.images)
    stems = sorted(file.stem for file in layout.annotations.glob("*.xml"))
    _read_images(draft, layout, stems, [_layout(sibling).annotations for sibling in siblings])
    return draft


def _read_images(draft: SplitDraft, layout: _Layout, stems: list[str], annotation_folders: list[Path]) -> None:
    for stem in repeated(stems):
        draft.fault("duplicate id", str(draft.source), f'image "{stem}" is listed twice')
    trees = {file: _parse(file) for folder in annotation_folders for file in sorted(folder.glob("*.xml"))}
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
        path = _image_path(layout, stem, tree)
        size = _size(tree, path, file, draft)
        objects = list(_objects(tree, label_of, file, draft, first_id=next_id))
        next_id += len(objects)
        if size:
            draft.add(image_id, path, size, objects)


class _RefuseDoctype(ElementTree.TreeBuilder):
    """Builds the tree, unless the file declares a document type, whose entities could exhaust the memory."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("the file declares a DOCTYPE, which is not allowed")


def _parse(file: Path) -> ElementTree.Element | str:
    """Return the root element, or the fault of the file."""
    try:
        with file.open("rb") as stream:
            parser = ElementTree.XMLParser(target=_RefuseDoctype())
            root = ElementTree.parse(stream, parser).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        return f"invalid XML: {error}"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return root if root.tag == "annotation" else f"expected the root element <annotation>, got <{root.tag}>"


def _class_names(tree: ElementTree.Element | str) -> Iterable[str]:
    if isinstance(tree, str):
        return []
    return filter(None, (_text(item, "name") for item in tree.findall("object")))


def _image_path(layout: _Layout, stem: str, tree: ElementTree.Element) -> Path:
    """Return the image of an annotation: the file of the same name, otherwise the file that the annotation names."""
    for suffix in (".jpg", ".jpeg", ".png", *sorted(SUFFIXES)):
        for spelled in (suffix, suffix.upper()):
            if (path := layout.images / f"{stem}{spelled}").is_file():
                return path
    named = safe_path(layout.images, _text(tree, "filename"))
    return named if named and named.is_file() else layout.images / f"{stem}.jpg"


def _size(tree: ElementTree.Element, path: Path, file: Path, draft: SplitDraft) -> tuple[int, int] | None:
    """Width and height as annotated; if missing or 0 (many tools write 0), those of the image file."""
    try:
        width, height = (int(float(_text(tree, f"size/{name}"))) for name in ("width", "height"))
    except (ValueError, OverflowError):
        width = height = 0
    if width > 0 and height > 0:
        return width, height
    try:
        return image_size(path)
    except UnreadableImage as error:
        draft.fault("image unreadable", file.name, f"it has no <size>, and {error}")
        return None


def _objects(
    tree: ElementTree.Element, label_of: dict[str, int], file: Path, draft: SplitDraft, first_id: int
) -> Iterable[AnnotatedObject]:
    for position, item in enumerate(tree.findall("object")):
        where = f"{file.name}, object {position + 1}"
        name, box = _text(item, "name"), _box(item)
        if not name:
            draft.fault("annotation unreadable", where, "it has no <name>")
        elif box is None:
            draft.fault("annotation unreadable", where, "<bndbox> must hold xmin, ymin, xmax and ymax as numbers")
        else:
            difficult = _text(item, "difficult") not in ("", "0")
            yield AnnotatedObject(first_id + position, label_of[name], box, ignore=difficult)


def _box(item: ElementTree.Element) -> Box | None:
    """Convert a box: VOC counts pixels from 1 and includes the last; here a box ends where its last pixel ends."""
    try:
        x1, y1, x2, y2 = (float(_text(item, f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return x1 - 1, y1 - 1, x2, y2


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
