"""A detector to evaluate, whatever runs it: a checkpoint or an exported file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from understudy.checkpoints import load_checkpoint
from understudy.errors import UserError
from understudy.evaluation.detections import choose_device, on_device
from understudy.evaluation.inferring import Precision
from understudy.evaluation.runtimes import FileRuntime, Runtime, TorchRuntime, onnx_runtime, openvino_runtime

Library = Literal["onnxruntime", "openvino"]
"""What runs an exported file."""

EXPORTED: Mapping[str, tuple[Library, ...]] = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}
"""Libraries that run an exported file, by the ending of its name; the first is the default."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A detector that can be run on a data set.

    Attributes:
        path: the checkpoint or exported file.
        classes: names of the classes. Labels are positions in it.
        category_ids: of the data set that it was trained on.
        config: of its run, as plain values; of a file its section ``data`` alone.
        runtime: runs it.
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    config: Mapping[str, Any]
    runtime: Runtime


def is_exported(path: Path | str) -> bool:
    """Return whether a path names an exported file."""
    return Path(path).suffix.lower() in EXPORTED


def library_of(path: Path | str) -> Library:
    """Return the library that runs an exported file by default."""
    return EXPORTED[Path(path).suffix.lower()][0]


def open_runnable(
    path: Path | str,
    device: torch.device | str | None = None,
    precision: Precision = "32",
    threads: int | None = None,
    library: Library | None = None,
    *,
    quantised: bool = False,
) -> Runnable:
    """Open a checkpoint, a run folder, an ONNX file or an OpenVINO file.

    Args:
        path: the file or folder.
        device: by default a GPU if there is one.
        precision: of PyTorch's arithmetic; that of a file is fixed.
        threads: of a file's arithmetic; None: as many as PyTorch.
        library: that runs a file, one of :data:`EXPORTED`; None: the first.
        quantised: as of :func:`.load_checkpoint`.

    Raises:
        UserError: it cannot be read, its library is not installed, or a precision is given for a file.
    """
    path, device = Path(path), choose_device(device)
    if not is_exported(path):
        loaded = load_checkpoint(path, quantised=quantised)
        runtime = TorchRuntime(on_device(loaded.detector, device), device, precision)
        ids = tuple(loaded.meta["category_ids"])
        return Runnable(loaded.path, loaded.classes, ids, loaded.config, runtime)
    if precision != "32":
        raise UserError(f"The precision of {path} is that of the file. Leave out --precision.")
    if (library or library_of(path)) == "onnxruntime":
        return of_file(path, onnx_runtime(path, threads, device))
    return of_file(path, openvino_runtime(path, threads))


def of_file(path: Path, runtime: FileRuntime) -> Runnable:
    """Describe an exported file that a runtime has loaded."""
    facts = runtime.facts
    sizes = {"shorter_side": [facts.resize["shorter_side"]], "longer_side": facts.resize["longer_side"]}
    return Runnable(path, facts.classes, facts.category_ids, {"data": {"path": None, "val": "val", **sizes}}, runtime)
