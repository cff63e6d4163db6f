"""A tiny annotated data set, written in every format and layout that can be read."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from understudy.data import open_data
from understudy.data.records import DetectionData, Record, Records
from understudy.errors import UserError

SIZE = (100, 80)
OBJECTS = {
    "a.jpg": [("cat", (10, 20, 40, 60)), ("dog", (0, 0, 100, 80))],
    "b.jpg": [("cat", (50, 10, 90, 30))],
    "c.jpg": [],
}


def write_image(file: Path, size: tuple[int, int] = SIZE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(file)


def coco() -> dict:
    """The annotated images as a COCO dict; category ids have a gap and are not in order."""
    categories = {"dog": 7, "cat": 2}
    annotations = [
        {
            "id": 10 * i + j,
            "image_id": i,
            "category_id": categories[name],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": 5.5,
        }
        for i, objects in enumerate(OBJECTS.values(), start=1)
        for j, (name, (x1, y1, x2, y2)) in enumerate(objects)
    ]
    return {
        "images": [{"id": i, "file_name": f, "width": SIZE[0], "height": SIZE[1]} for i, f in enumerate(OBJECTS, 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
    }


def write_coco(annotation_file: Path, images: Path, content: dict | None = None) -> None:
    for name in OBJECTS:
        write_image(images / name)
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    annotation_file.write_text(json.dumps(coco() if content is None else content))


VOC_SIZE = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"


def voc_xml(objects: list, size: str = VOC_SIZE) -> str:
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    return f"<annotation><filename>wrong.jpg</filename>{size}{rows}</annotation>"


def write_voc(year: Path, lists: dict[str, list[str]]) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for name, objects in OBJECTS.items():
        write_image(year / "JPEGImages" / name)
        (year / "Annotations" / name).with_suffix(".xml").write_text(voc_xml(objects))
    for split, stems in lists.items():
        (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def write_yolo(images: Path, labels: Path) -> None:
    labels.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    for name, objects in OBJECTS.items():
        write_image(images / name)
        lines = []
        for kind, (x1, y1, x2, y2) in objects:
            centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            lines.append(f"{int(kind == 'dog')} {centre[0]} {centre[1]} {(x2 - x1) / width} {(y2 - y1) / height}")
        if lines:  # an image without objects has no label file
            (labels / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def make(layout: str, root: Path) -> tuple[Path, str]:
    """Write the data set in one layout; returns what to open and the split."""
    match layout:
        case "coco official":
            write_coco(root / "annotations/instances_train2017.json", root / "train2017")
            write_coco(root / "annotations/captions_train2017.json", root / "train2017", {})
        case "coco roboflow":
            write_coco(root / "train/_annotations.coco.json", root / "train")
        case "coco flat":
            write_coco(root / "instances_train.json", root / "images")
        case "coco beside":
            write_coco(root / "train.json", root)
        case "coco file":
            write_coco(root / "annotations/mine.json", root / "images")
            return root / "annotations/mine.json", "anything"
        case "coco file as split":
            write_coco(root / "x/mine.json", root / "images")
            return root, "x/mine.json"
        case "voc":
            write_voc(root, {"train": ["a", "b", "c"], "cat_train": ["a  1", "b  1", "c -1"]})
        case "voc devkit":
            write_voc(root / "VOCdevkit/VOC2007", {"train": ["a", "b", "c"]})
        case "voc roboflow":
            for name, objects in OBJECTS.items():
                write_image(root / "train" / name)
                (root / "train" / name).with_suffix(".xml").write_text(voc_xml(objects, size=""))
        case "yolo yaml":
            write_yolo(root / "d/images/train", root / "d/labels/train")
            content = {"path": "/nowhere/else", "train": "d/images/train", "nc": 2, "names": {0: "cat", 1: "dog"}}
            (root / "data.yaml").write_text(yaml.safe_dump(content))
            return root / "data.yaml", "train"
        case "yolo roboflow":
            write_yolo(root / "train/images", root / "train/labels")
            (root / "data.yaml").write_text(yaml.safe_dump({"train": "../train/images", "names": ["cat", "dog"]}))
        case "yolo folders":
            write_yolo(root / "images/train", root / "labels/train")
            (root / "classes.txt").write_text("cat\ndog\n")
        case "yolo list":
            write_yolo(root / "images", root / "labels")
            (root / "train.txt").write_text(f"images/a.jpg\n./images/b.jpg\n{root}/images/c.jpg\n")
            (root / "obj.names").write_text("cat\ndog\n")
    return root, "train"


LAYOUTS = [
    "coco official", "coco roboflow", "coco flat", "coco beside", "coco file", "coco file as split",
    "voc", "voc devkit", "voc roboflow", "yolo yaml", "yolo roboflow", "yolo folders", "yolo list",
]  # fmt: skip


def message_of(path: Path, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        open_data(path, split)
    return str(error.value)


def squares(side: float, count: int = 20, size: tuple[int, int] = (200, 160)) -> DetectionData:
    """Images of this width and height with a square each, anywhere; one more is ignored."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for number in range(count):
        corner = torch.rand(1, 2, generator=generator, dtype=torch.float64) * (torch.tensor(size) - side)
        boxes = torch.cat([torch.cat([corner, corner + side], 1), torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
        ignore, ids = torch.tensor([False, True]), torch.arange(2)
        labels, areas = torch.zeros(2, dtype=torch.int64), (boxes[:, 2:] - boxes[:, :2]).prod(1)
        records.append(Record(number, Path(f"{number}.png"), *size, boxes, labels, ignore, areas, ids))
    return DetectionData(("a",), (1,), Records.of(records), "coco", Path(), "train")
