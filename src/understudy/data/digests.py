"""Digests of a split, so that two splits can be compared by content, wherever they are.

Annotations are compared by content, image files by name and size: their content would have to be read, and a copy has
other times. That is one ``stat`` for each file. Measured on two CPU cores for a data set of COCO's size (118,000 images
with 860,000 objects, warm file cache): see docs/reliability.md.
"""

import hashlib
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from understudy.data.records import DetectionData


def digest_of_split(data: DetectionData) -> str:
    """Return a digest of a split: that of its annotations and that of its image files."""
    return joined_digest(digest_of_annotations(data), digest_of_files(data))


def joined_digest(annotations: str, files: str) -> str:
    """Return the digest of a split whose two parts are known."""
    return f"{annotations}-{files}"


def digest_of_annotations(data: DetectionData) -> str:
    """Return a digest of the classes, the ids and sizes of the images, and the objects."""
    records = data.records
    columns = [torch.column_stack([records.images, records.ends.diff()])]
    columns += [getattr(records, name) for name in ("boxes", "labels", "ignore", "areas", "annotation_ids")]
    return digest([repr((data.classes, data.category_ids)).encode(), *map(bytes_of, columns)])


def digest_of_files(data: DetectionData) -> str:
    """Return a digest of the names of the image files, relative to the data set, and their sizes in bytes."""
    root = f"{data.image_root or data.source}{os.sep}"  # so that a data set that was moved is still the same
    return digest(f"{path.removeprefix(root)}\0{_size(path)}\n".encode() for path in data.records.paths())


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the values of a tensor as bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return the digest of some bytes as 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _size(path: str) -> int:
    """Return the size of a file in bytes; -1 if there is none, which is reported when it is read."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - it is called for every image
    except OSError:
        return -1
