"""Export of a trained detector: as weights with the code that builds its network, or as a graph."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from understudy import networks
from understudy.checkpoints import Checkpoint, load_checkpoint, write_checkpoint
from understudy.detectors.families import family_of
from understudy.errors import UserError
from understudy.files import write_atomically

Input = Literal["float32", "uint8"]
"""Type of the pixels: in 0..1, or 0..255."""

Format = Literal["torch", "onnx", "openvino"]
"""What a detector can be exported as."""

_OF_GRAPHS = {"size": None, "batch": 1, "raw": False, "input": "float32", "score_threshold": None, "licence": None}
_OF_INT8 = {"limit": 1.0, "calibrated": 64}
_OPTIONS = {"limit": "max-ap-loss", "calibrated": "calibration-photos", "score_threshold": "score-threshold"}
"""Options with another name on the command line."""


def export(
    checkpoint: str | Path,
    folder: str | Path,
    formats: Sequence[Format] = ("torch",),
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    raw: bool = False,
    input: Input = "float32",
    opset: int | None = None,
    score_threshold: float | None = None,
    licence: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    int8: str | Path | None = None,
    max_ap_loss: float = 1.0,
    calibration_photos: int = 64,
) -> Path:
    """Export a trained detector.

    ===============  ===================  ======================================================================
    ``torch``        ``weights.pt``       the state dict of the plain network
    (for torch and   ``detector.json``    how the network is built, and the names of its classes
    torchvision)     ``detector/``        the code that builds and loads it: ``from detector import load``
    ``onnx``         ``student.onnx``     the whole detector as one graph, for ONNX Runtime
    ``openvino``     ``student.xml``      the same for OpenVINO, with its weights in ``student.bin``; converted from the
                                          ONNX file, which stays beside it
    ===============  ===================  ======================================================================

    ONNX and OpenVINO files are compared with the detector on a few photos; one that does not detect the same is not
    written. Beside them are ``detect.py``, a page for the browser, and ``README.md``, which defines inputs and outputs.

    Args:
        checkpoint: a checkpoint or a run folder.
        folder: must not exist, or be empty.
        formats: what to write.
        size: height and width of the images of an ONNX or OpenVINO file; None: any, and any number of them.
        batch: images at once, of a fixed size.
        raw: end before the choice of detections, for runtimes with their own NMS.
        input: type of the pixels of an ONNX or OpenVINO file: ``float32`` in 0..1, or ``uint8``.
        opset: of the ONNX file; None: the oldest that is needed.
        score_threshold: instead of the detector's own.
        licence: of the weights, to be stated in the file.
        data: photos on which a file is compared with the detector; None: those of its run.
        split: of `data`.
        int8: a data set with which the ONNX file is also quantised to INT8: its training split gives the ranges of the
            activations, its validation split the AP before and after.
        max_ap_loss: largest loss of AP by INT8, in points.
        calibration_photos: photos of the training split for the ranges.

    Returns:
        The folder.

    Raises:
        UserError: the checkpoint cannot be loaded, the folder is not empty or cannot be created, options are wrong,
            packages are missing, or the detector has no graph.
        RunError: a file could not be written, or does not detect the same as the detector.
    """
    options: dict[str, Any] = {"size": size, "batch": batch, "raw": raw, "input": input, "licence": licence}
    options |= {"score_threshold": score_threshold} | ({} if opset is None else {"opset": opset})
    quantise = {"data": int8, "limit": max_ap_loss, "calibrated": calibration_photos}
    for _ in write(checkpoint, folder, formats, options, data, split, quantise):
        pass
    return Path(folder)


def write(
    checkpoint: str | Path,
    folder: str | Path,
    formats: Sequence[str],
    options: Mapping[str, Any],
    data: str | Path | None,
    split: str | None,
    quantise: Mapping[str, Any],
) -> Iterator[str]:
    """Export a detector, and say each file in words when it is there; see :func:`export`.

    Args:
        checkpoint: as of :func:`export`, like the others.
        folder: likewise.
        formats: likewise.
        options: fields of :class:`.onnx_file.Options`.
        data: as of :func:`export`.
        split: likewise.
        quantise: arguments of :meth:`.Calibration.of`; with ``data`` None: no file in INT8.
    """
    folder, unknown = Path(folder), [each for each in formats if each not in get_args(Format)]
    if unknown or not formats:
        got = ", ".join(unknown) or "none"
        raise UserError(f"--format: expected one or several of {', '.join(get_args(Format))}, got {got}")
    if quantise["data"] and (options.get("raw") or not set(formats) - {"torch"}):
        raise UserError(
            "--int8 quantises an ONNX file that chooses detections, since its AP is measured: use --format onnx "
            "without --raw."
        )
    if faults := list(_without_effect(formats, {**options, "data": data, "split": split}, quantise)):
        raise UserError.listing("Options that have no effect here:", faults)
    trained = load_checkpoint(checkpoint)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder. Choose a new one.")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be created: {error.strerror or error}.") from error
    try:
        if set(formats) - {"torch"}:
            yield from _write_graphs(trained, folder, formats, options, data, split, quantise)
        if "torch" in formats:
            _write_torch(trained, folder)
            yield f"{folder / 'weights.pt'}: needs torch and torchvision"
    except BaseException:
        for each in made:  # a folder that is still empty
            with suppress(OSError):
                each.rmdir()
        raise


def _without_effect(formats: Sequence[str], options: Mapping[str, Any], quantise: Mapping[str, Any]) -> Iterator[str]:
    """Describe options that were given and change nothing in what is written."""
    if not set(formats) - {"torch"}:
        for name, value in options.items():
            if value != _OF_GRAPHS.get(name):
                yield f"--{_OPTIONS.get(name, name)}: only with --format onnx or openvino"
    for name, plain in _OF_INT8.items():
        if not quantise["data"] and quantise[name] != plain:
            yield f"--{_OPTIONS[name]}: only with --int8"


def _write_graphs(
    trained: Checkpoint,
    folder: Path,
    formats: Sequence[str],
    options: Mapping[str, Any],
    data: str | Path | None,
    split: str | None,
    quantise: Mapping[str, Any],
) -> Iterator[str]:
    from understudy.deployment import int8, writing
    from understudy.deployment.companions import write_beside
    from understudy.deployment.onnx_file import Options
    from understudy.evaluation.runtimes import Facts, needed

    if "openvino" in formats:
        needed("openvino", "--format openvino")  # now, and not after the minutes that the ONNX file takes
    calibration = int8.Calibration.of(trained, **quantise) if quantise["data"] else None  # likewise
    photos = writing.photos_for_check(trained, data, split)
    written = writing.write_onnx(trained, folder, Options(**options), photos)
    files = [written.file]
    yield str(written)
    write_beside(folder, Facts.of(written.file))
    if calibration:
        before = calibration.ap(written.file)
        smaller = int8.write_int8(trained, written.file, calibration, before)
        files.append(smaller.file)
        yield str(smaller)
    if "openvino" in formats:
        for file in files:
            converted = writing.write_openvino(trained, file, photos)
            if calibration and file != written.file:
                converted = replace(converted, checked=calibration.checked(converted.file, before))
            yield str(converted)


def _write_torch(trained: Checkpoint, folder: Path) -> None:
    write_checkpoint(folder / "weights.pt", trained.detector.network.state_dict())
    description = {
        "build": trained.meta["build"],
        "classes": list(trained.classes),
        "labels": trained.detector.label_names(trained.classes),
        "category_ids": trained.meta["category_ids"],
        "AP": trained.meta.get("AP"),
        "understudy": version("understudy"),
    }
    write_atomically(folder / "detector.json", (json.dumps(description, indent=2) + "\n").encode())
    (folder / "detector").mkdir()
    for name, source in _sources(trained.meta["build"]["name"]).items():
        write_atomically(folder / "detector" / name, source.encode())


def _sources(detector: str) -> dict[str, str]:
    """Return the files of ``detector/``: the package's networks, and the module of a family from a plugin.

    A plugin's module of networks may import from ``understudy.networks``; beside the copy of that package these are
    relative imports.
    """
    files = sorted(Path(networks.__file__).parent.glob("*.py"))
    sources = {file.name: file.read_text(encoding="utf-8") for file in files}
    family = family_of(detector)
    if family and not family.networks.startswith(f"{networks.__name__}."):
        code = inspect.getsource(import_module(family.networks))
        code = code.replace(f"from {networks.__name__}.", "from .").replace(f"from {networks.__name__} ", "from . ")
        sources[f"{family.name}.py"] = code
    return sources
