"""Data sets with faults: annotations, images, and files outside the data set."""

import json

from faults.making import BOMB, annotations, fifo, first, folder, image, large_png, link, one, xml
from faults.running import Case, Content

NAMES = {"markup": "[/b]", "a line feed": "a\nb", "an escape": "\x1b[31mred", "a surrogate": "\ud800", "a null": "a\0b"}
"""Class names that a terminal, or rich, would take for something else."""

COCO = {
    "empty": "",
    "not json": "{",
    "nesting": "[" * 100_000,
    "a list": "[1]",
    "text": '"x"',
    "nothing in it": "{}",
    "latin-1": b'{"images": "\xe9"}',
    "lists are mappings": '{"images": {}, "annotations": {}, "categories": {}}',
    "no images": annotations(lambda content: content["images"].clear()),
    "no annotations": annotations(lambda content: content["annotations"].clear()),
    "no categories": annotations(lambda content: content["categories"].clear()),
    "rows are numbers": annotations(lambda content: content | {"images": [1], "annotations": [2], "categories": [3]}),
    "id is text": first("images", id="1"),
    "id is a boolean": first("images", id=True),
    "id is large": first("images", id=10**30),
    "id is twice": first("images", id=2),
    "file is a number": first("images", file_name=3),
    "file is empty": first("images", file_name=""),
    "file is absent": first("images", file_name="absent.jpg"),
    "file is a null": first("images", file_name="a\0.jpg"),
    "file is long": first("images", file_name="x" * 5000),
    "file is a surrogate": first("images", file_name="\ud800.jpg"),
    "file is absolute": first("images", file_name="/etc/passwd"),
    "file is above": first("images", file_name="../../../etc/passwd"),
    "file is an escape": first("images", file_name="\x1b[31m.jpg"),
    "file is a folder": first("images", file_name="."),
    "width is zero": first("images", width=0),
    "width is text": first("images", width="100"),
    "width is wrong": first("images", width=101),
    "width is large": first("images", width=10**18),
    "height is a list": first("images", height=[[[[80]]]]),
    "category is unknown": first("annotations", category_id=9),
    "category is text": first("annotations", category_id="2"),
    "image is unknown": first("annotations", image_id=9),
    "annotation twice": first("annotations", id=11),
    "box is short": first("annotations", bbox=[1, 2, 3]),
    "box is text": first("annotations", bbox=["1", "2", "3", "4"]),
    "box is null": first("annotations", bbox=None),
    "box is nested": first("annotations", bbox=json.loads("[" * 300 + "]" * 300)),
    "box is nan": first("annotations", bbox=[1, 1, float("nan"), 5]),
    "box is infinite": first("annotations", bbox=[1, 1, float("inf"), 5]),
    "box is large": first("annotations", bbox=[10**400, 0, 1, 1]),
    "box is empty": first("annotations", bbox=[1, 1, 0, 5]),
    "box is outside": first("annotations", bbox=[500, 1, 5, 5]),
    "name is a number": first("categories", name=3),
    "name is empty": first("categories", name=""),
    "name is twice": first("categories", name="cat"),
    **{f"name is {kind}": first("categories", name=name) for kind, name in NAMES.items() if kind != "markup"},
    "a pipe": fifo,
    "a folder": folder,
    "a device": link("/dev/zero"),
    "a link outside": link("/etc/passwd"),
}

VOC = {
    "empty": "",
    "not xml": "<annotation>",
    "another root": "<a/>",
    "a document type": '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>',
    "an unknown encoding": '<?xml version="1.0" encoding="x-y"?><annotation/>',
    "nesting": "<annotation>" + "<a>" * 2000,
    "nulls": b"\0\0\0",
    "size is wrong": xml(one(), "<width>10</width><height>80</height>"),
    "no name": xml(one(name="")),
    "name is a line feed": xml(one(name="a\nb")),
    "no box": xml("<object><name>cat</name></object>"),
    "box is text": xml(one(box="<xmin>a</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>")),
    "box is short": xml(one(box="<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>")),
    "box is nan": xml(one(box="<xmin>nan</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>")),
    "box is empty": xml(one(box="<xmin>9</xmin><ymin>1</ymin><xmax>1</xmax><ymax>9</ymax>")),
    "box is outside": xml(one(box="<xmin>900</xmin><ymin>1</ymin><xmax>901</xmax><ymax>9</ymax>")),
    "a pipe": fifo,
    "a folder": folder,
    "a link outside": link("/etc/passwd"),
    "a link to nothing": link("absent"),
}

LABELS = {
    "text": "cat\n",
    "a word": "0 0.5 0.5 0.1 wide\n",
    "short": "0 0.5 0.5\n",
    "long": "0 0.5 0.5 0.1 0.1 0.1\n",
    "pixels": "0 50 50 10 10\n",
    "nan": "0 nan 0.5 0.1 0.1\n",
    "infinite": "0 inf 0.5 0.1 0.1\n",
    "a fraction of a class": "0.5 0.5 0.5 0.1 0.1\n",
    "a negative class": "-1 0.5 0.5 0.1 0.1\n",
    "an unknown class": "9 0.5 0.5 0.1 0.1\n",
    "a huge class": "1e300 0.5 0.5 0.1 0.1\n",
    "no width": "0 0.5 0.5 0 0.1\n",
    "binary": bytes(range(256)),
    "utf-16": "0 0.5 0.5 0.1 0.1\n".encode("utf-16"),
    "an escape": "0 \x1b[31m 0.5 0.1 0.1\n",
    "a pipe": fifo,
    "a folder": folder,
    "a link outside": link("/etc/passwd"),
}

YAML = {
    "not yaml": "names: [",
    "a bomb of aliases": BOMB,
    "nesting": "names: " + "[" * 3000,
    "an alias to itself": "names: &a [*a]\n",
    "a list": "- cat\n",
    "empty": "",
    "latin-1": "names: [d\xe9j\xe0]\ntrain: images/train\n".encode("latin-1"),
    "utf-16": "names: [cat]\n".encode("utf-16"),
    "an invalid date": "names: [cat]\ntrain: 2001-99-99\n",
    "no names": "train: images/train\n",
    "names with gaps": "names: {0: cat, 2: dog}\ntrain: images/train\n",
    "names twice": "names: [cat, cat]\ntrain: images/train\n",
    "names are markup": "names: ['[/b]', dog]\ntrain: images/train\nnc: 3\n",
    "names are an escape": 'names: ["\\e[31m", dog]\ntrain: images/train\nval: images/val\n',
    "names are a surrogate": 'names: ["\\ud800", dog]\ntrain: images/train\n',
    "another count": "names: [cat, dog]\nnc: 3\ntrain: images/train\n",
    "count is nested": "names: [cat, dog]\nnc: [[[3]]]\ntrain: images/train\n",
    "no splits": "names: [cat, dog]\n",
    "a split is a number": "names: [cat, dog]\ntrain: 3\n",
    "a split is absent": "names: [cat, dog]\ntrain: absent\n",
    "a split is long": "names: [cat, dog]\ntrain: " + "x" * 300 + "\n",
    "a split is a null": 'names: [cat, dog]\ntrain: "a\\0b"\n',
    "a split is /etc": "names: [cat, dog]\ntrain: /etc\n",
    "a split is a foreign list": "names: [cat, dog]\ntrain: /etc/passwd\n",
    "a split is above": "names: [cat, dog]\ntrain: ../../..\n",
    "a pipe": fifo,
    "a folder": folder,
    "a device": link("/dev/zero"),
    "a link outside": link("/etc/passwd"),
}

LISTS = {
    "latin-1": "images/train/d\xe9j\xe0.jpg\n".encode("latin-1"),
    "utf-16": "images/train/a.jpg\n".encode("utf-16"),
    "absent": "images/train/absent.jpg\n",
    "absolute": "/etc/passwd\n",
    "above": "../../../etc/passwd\n",
    "long": "x" * 5000 + "\n",
    "twice": "images/train/a.jpg\nimages/train/a.jpg\n",
    "empty": "",
    "a null": "images/train/a\0.jpg\n",
}

IMAGES = {
    "empty.jpg": "",
    "text.jpg": "not an image",
    "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0",
    "pipe.jpg": fifo,
    "device.jpg": link("/dev/zero"),
    "nothing.jpg": link("absent"),
    "itself.jpg": link("itself.jpg"),
    "folder.jpg": folder,
    "large.png": large_png,
    "outside.jpg": link("/etc/passwd"),
    "float.tiff": image(9, 9, "F"),
}

PHOTO, LINE = image(100, 80), "1 0.5 0.5 0.1 0.1\n"


def data_sets(contents: dict[str, Content], place: str, others: dict[str, Content]) -> list[Case]:
    """Checks of a data set for each content, which is at `place` beside other files."""
    return [
        Case("check data", {f"data/{path}": each for path, each in {**others, place: content}.items()}, name=name)
        for name, content in contents.items()
    ]


YOLO = {"images/train/a.jpg": PHOTO, "labels/train/a.txt": LINE}
LINKED = {"a link outside": link("/etc/passwd"), "a pipe": fifo}

YAML_AWAY = "path: ../away\nnames: [cat]\ntrain: images\n"

GROUPS = {
    "coco": data_sets(COCO, "train/_annotations.coco.json", {"train/a.jpg": PHOTO}),
    "voc": data_sets(VOC, "train/a.xml", {"train/a.jpg": PHOTO}),
    "voc_lists": data_sets(
        {**LISTS, **LINKED}, "ImageSets/Main/train.txt", {"Annotations/a.xml": xml(one()), "JPEGImages/a.jpg": PHOTO}
    ),
    "yolo_labels": data_sets(
        LABELS, "labels/train/a.txt", {**YOLO, "labels/train/b.txt": LINE, "classes.txt": "cat\ndog\n"}
    ),
    "yolo_yaml": data_sets(YAML, "data.yaml", YOLO),
    "yolo_lists": data_sets({**LISTS, **LINKED}, "train.txt", {"images/train/a.jpg": PHOTO}),
    "yolo_classes": data_sets(
        {
            "latin-1": "d\xe9j\xe0\n".encode("latin-1"),
            "utf-16": "cat\n".encode("utf-16"),
            "an escape": "\x1b[31m\ndog\n",
            "too few": "cat\n",
            **LINKED,
        },
        "classes.txt",
        YOLO,
    ),
    "images": [
        *(
            Case("check data", {f"data/images/train/{name}": content, "data/labels/train/b.txt": LINE}, name=name)
            for name, content in IMAGES.items()
        ),
        *(
            Case(f"predict trained {name} -o out", {name: IMAGES[name]}, ("trained",))
            for name in ("text.jpg", "pipe.jpg", "large.png")
        ),
        Case("predict trained data -o out", {"data/large.png": large_png}, ("trained",)),
    ],
    "links": [
        Case("check data", files | {f"data/{place}": link(f"../{up}away")}, name=f"{place} is a link")
        for place, up, files in (
            ("train", "", {"away/a.jpg": PHOTO, "away/a.xml": xml(one()), "data/val/a.xml": xml(one())}),
            ("images/train", "../", {"away/a.jpg": PHOTO, "data/labels/train/a.txt": LINE}),
            ("labels/train", "../", {"away/a.txt": LINE, "data/images/train/a.jpg": PHOTO}),
            ("JPEGImages", "", {"away/a.jpg": PHOTO, "data/Annotations/a.xml": xml(one())}),
            ("Annotations", "", {"away/a.xml": xml(one()), "data/JPEGImages/a.jpg": PHOTO}),
            ("classes.txt", "", {"away": "cat\n", "data/images/train/a.jpg": PHOTO, "data/labels/train/a.txt": LINE}),
            ("images", "", {"away/a.jpg": PHOTO, "data/instances_train.json": annotations(lambda content: None)}),
        )
    ]
    + [Case("check data", {"away/images/a.jpg": PHOTO, "data/data.yaml": YAML_AWAY}, name="a path in data.yaml")],
}
