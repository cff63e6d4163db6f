"""Makes the faulty files of the fault suite."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from data_sets import coco, voc_xml
from PIL import Image

Maker = Callable[[Path], Any]

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
"""Eleven lines of YAML that stand for 9 to the power of 12 values."""

fifo: Maker = os.mkfifo
folder: Maker = Path.mkdir


def link(target: str) -> Maker:
    """A symbolic link."""
    return lambda file: file.symlink_to(target)


def removed(file: Path) -> None:
    """Removes a file of a base."""
    file.unlink()


def edited(change: Callable[[str], str]) -> Maker:
    """Rewrites the text of a file of a base."""
    return lambda file: file.write_text(change(file.read_text()))


def cut(length: int) -> Maker:
    """Cuts a file of a base after some bytes; below zero: that many before its end."""
    return lambda file: file.write_bytes(file.read_bytes()[:length])


def annotations(change: Callable[[dict], Any]) -> str:
    """The COCO annotations of the small data set, changed in place or replaced."""
    content = coco()
    result = change(content)
    return json.dumps(content if result is None else result)


def first(key: str, **values: Any) -> str:
    """The same with other values in the first row of a list."""
    return annotations(lambda content: content[key][0].update(values))


def xml(objects: str = "", size: str = "<width>100</width><height>80</height>") -> str:
    """A VOC file with the XML of its objects."""
    return voc_xml([], f"<size>{size}</size>").replace("</annotation>", f"{objects}</annotation>")


def one(name: str = "cat", box: str = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>") -> str:
    """The XML of one object."""
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def image(width: int, height: int, mode: str = "RGB", **options: Any) -> Maker:
    """An image file; its format follows from the name."""
    return lambda file: Image.new(mode, (width, height)).save(file, **options)


def large_png(file: Path) -> None:
    """The beginning of a PNG of 12,000 x 12,000 pixels; only its header is read."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    parts = [struct.pack(">I", 13), header, struct.pack(">I", zlib.crc32(header)), struct.pack(">I", 9), b"IDAT"]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@lru_cache(maxsize=4)
def loaded(checkpoint: bytes) -> dict[str, Any]:
    """The content of a checkpoint; its two levels of dicts are to be copied before a change."""
    return torch.load(io.BytesIO(checkpoint), weights_only=True)


def checkpoint(change: Callable[[dict], Any]) -> Maker:
    """Changes the content of a checkpoint of a base in place, or replaces it."""

    def make(file: Path) -> None:
        content = {
            key: dict(part) if isinstance(part, dict) else part for key, part in loaded(file.read_bytes()).items()
        }
        result = change(content)
        torch.save(content if result is None else result, file)

    return make


def meta(**values: Any) -> Maker:
    """Changes the metadata of a checkpoint; a value of `...` removes the key."""

    def change(content: dict) -> None:
        for key, value in values.items():
            content["understudy"].pop(key, None)
            content["understudy"] |= {} if value is ... else {key: value}

    return checkpoint(change)


def weight(change: Callable[[torch.Tensor], Any]) -> Maker:
    """Replaces the first weight of a checkpoint."""

    def replace(content: dict) -> None:
        name = next(iter(content["state_dict"]))
        content["state_dict"][name] = change(content["state_dict"][name])

    return checkpoint(replace)


def result(**values: Any) -> Maker:
    """Changes a JSON file of a base; a value of `...` removes the key."""
    return edited(lambda text: json.dumps({k: v for k, v in (json.loads(text) | values).items() if v is not ...}))
