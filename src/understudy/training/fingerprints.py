"""Fingerprints of what a run reads: its data and its teacher's weights, so that a resumed run reads the same.

Annotations and weights are compared by content, image files by name and size: their content would have to be read, and
a copy has other times. That is one ``stat`` for each file. Measured on two CPU cores for a data set of COCO's size
(118,000 images with 860,000 objects, warm file cache): see docs/reliability.md.
"""

import hashlib
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from understudy.data import DetectionData
from understudy.detectors import Detector


def fingerprints(
    train: DetectionData, val: DetectionData, unlabelled: DetectionData | None, teacher: Detector | None
) -> dict[str, str]:
    """Return a digest of each part of what a run reads, by the part's name."""
    found = {}
    for key, data in {"data.train": train, "data.val": val}.items():
        found[f"annotations of {key}"] = _of_annotations(data)
        found[f"image files of {key} (names and sizes)"] = _of_files(data)
    if unlabelled is not None:
        found["image files of data.unlabelled (names and sizes)"] = _of_files(unlabelled)
    if teacher is not None:
        found["weights of the teacher"] = weights_digest(teacher)
    return found


def _of_annotations(data: DetectionData) -> str:
    records = data.records
    columns = [torch.column_stack([records.images, records.ends.diff()])]
    columns += [getattr(records, name) for name in ("boxes", "labels", "ignore", "areas", "annotation_ids")]
    return _digest([repr((data.classes, data.category_ids)).encode(), *map(_bytes, columns)])


def _of_files(data: DetectionData) -> str:
    root = f"{data.image_root or data.source}{os.sep}"  # so that a data set that was moved is still the same
    return _digest(f"{path.removeprefix(root)}\0{_size(path)}\n".encode() for path in data.records.paths())


def _size(path: str) -> int:
    """Return the size of a file in bytes; -1 if there is none, which is reported when it is read."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - it is called for every image
    except OSError:
        return -1


def weights_digest(detector: Detector) -> str:
    """Return a digest of the names and values of a detector's weights."""
    weights = sorted(detector.network.state_dict().items())
    return _digest(part for name, weight in weights for part in (name.encode(), _bytes(weight)))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
