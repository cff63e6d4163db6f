"""Write a detector as files that run without PyTorch, and check each before it stays."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from understudy.checkpoints import Checkpoint
from understudy.data import Batch
from understudy.data.transforms import padded_size
from understudy.deployment.agreement import PIXELS, SCORE, Agreement, compare, largest_difference
from understudy.deployment.graph import graph_of
from understudy.deployment.onnx_file import Options, Written, to_onnx
from understudy.errors import RunError, UserError
from understudy.evaluation import loader_at_evaluation_size, open_split
from understudy.evaluation.runtimes import (
    KEY,
    Facts,
    FileRuntime,
    Found,
    Runtime,
    TorchRuntime,
    needed,
    on_canvas,
    onnx_runtime,
    openvino_runtime,
    session_of,
)
from understudy.evaluation.speed import spread
from understudy.files import write_atomically

logger = logging.getLogger(__name__)

CHECKED = 8
"""Images on which a file is compared with the detector."""

ONNX = "student.onnx"
"""Name of the file."""


def write_onnx(checkpoint: Checkpoint, folder: Path, options: Options, images: Sequence[Batch]) -> Written:
    """Write a detector as an ONNX file.

    Args:
        checkpoint: the detector.
        folder: exists.
        options: of the file.
        images: on which file and detector are compared, one image a batch.

    Raises:
        UserError: options are wrong, the detector has no graph, or packages are missing.
        RunError: the file does not detect the same, or ONNX refuses it; then no file is left.
    """
    onnx = needed("onnx", "--format onnx")
    needed("onnxruntime", "--format onnx")
    model = to_onnx(checkpoint, options)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unchecked-") as unchecked:
        file = Path(unchecked) / ONNX
        try:
            write_atomically(file, model.SerializeToString())
            onnx.checker.check_model(str(file), full_check=True)
        except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise RunError(f"The ONNX file would be invalid ({' '.join(str(error).split())[:300]}).") from error
        checked = _check_raw(checkpoint, file, images) if options.raw else check(checkpoint, onnx_runtime(file), images)
        file.replace(folder / ONNX)
    return Written(folder / ONNX, checked)


def write_openvino(checkpoint: Checkpoint, onnx_file: Path, images: Sequence[Batch]) -> Written:
    """Convert an exported ONNX file to OpenVINO's format, beside it; arguments and errors as of :func:`write_onnx`.

    A file in INT8 is not compared with the detector.
    """
    openvino = needed("openvino", "--format openvino")
    facts = Facts.of(onnx_file)
    facts = replace(facts, versions={**facts.versions, "openvino": openvino.__version__})
    target, checked = onnx_file.with_suffix(".xml"), "not compared with PyTorch"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unchecked-") as unchecked:
        file = Path(unchecked) / target.name
        try:
            model = openvino.convert_model(str(onnx_file))
            model.set_rt_info(facts.to_json(), KEY)
            openvino.save_model(model, str(file), compress_to_fp16=False)
        except Exception as error:  # its exceptions have no common class
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"OpenVINO {openvino.__version__} could not convert {onnx_file} ({reason}).") from error
        if not facts.raw:
            try:
                runtime = openvino_runtime(file)
            except UserError as error:
                raise RunError(
                    f"OpenVINO cannot run {onnx_file.name}, so {target.name} was not written: {error}"
                ) from error
            if facts.precision == "float32":
                checked = check(checkpoint, runtime, images)
        for suffix in (".xml", ".bin"):
            file.with_suffix(suffix).replace(target.with_suffix(suffix))
    return Written(target, checked)


def check(checkpoint: Checkpoint, file: FileRuntime, images: Sequence[Batch]) -> str:
    """Compare the detections of an exported file with those of its detector.

    Returns:
        The result, in words.

    Raises:
        RunError: too many differ.
    """
    agreement = agreement_with(TorchRuntime(checkpoint.detector), file, images)
    said = f"{agreement}, compared with PyTorch"
    if not agreement.holds:
        raise RunError(
            f"{file.name} does not detect the same as the detector in PyTorch, so the file was removed: {said}."
        )
    return said


def agreement_with(detector: Runtime, file: FileRuntime, images: Sequence[Batch]) -> Agreement:
    """Compare a file with its detector, which gets the same pixels: rounded to bytes, on the canvas of a fixed size."""
    facts, size = file.facts, file.facts.size

    def same_pixels(pixels: torch.Tensor, image_sizes: Sequence[tuple[int, int]]) -> Found:
        if facts.input == "uint8":
            pixels = (pixels * 255).round() / 255
        return detector(pixels, image_sizes)

    def on_same_canvas(pixels: torch.Tensor, image_sizes: Sequence[tuple[int, int]]) -> Found:
        assert size
        return on_canvas(lambda filled: same_pixels(_padded(filled), [size] * len(filled)), pixels, image_sizes, facts)

    return compare(on_same_canvas if size else same_pixels, file, images, facts)


def photos_for_check(checkpoint: Checkpoint, data: Path | str | None, split: str | None = None) -> list[Batch]:
    """Load a few real images, evenly spread over a split, as batches of one.

    Args:
        checkpoint: the validation split of its run is the default.
        data: another data set.
        split: of it.

    Raises:
        UserError: the data set that was given cannot be read.
    """
    try:
        opened = open_split(checkpoint, data, split, argument="--data DATA")
    except UserError as error:
        if data is not None:
            raise
        logger.warning("No photos of its run to check the file on (%s); give some: --data DATA.", error)
        return _noise(checkpoint)
    return list(loader_at_evaluation_size(spread(opened, CHECKED), checkpoint.config))


def _noise(checkpoint: Checkpoint) -> list[Batch]:
    sizes = checkpoint.config["data"]
    height = padded_size((sizes["shorter_side"][-1],) * 2)[0]
    image = torch.rand(1, 3, height, height, generator=torch.Generator().manual_seed(0))
    return [Batch(image, [{}], [(height, height)], [(height, height)], [0], [True])]


def _check_raw(checkpoint: Checkpoint, file: Path, images: Sequence[Batch]) -> str:
    """Compare the raw predictions of a file with those of PyTorch."""
    session, graph = session_of(file), graph_of(checkpoint.detector, raw=True)
    facts = Facts.of(file)
    boxes, scores = 0.0, 0.0
    for batch in images:
        height, width = facts.size or batch.image_sizes[0]
        image = torch.nn.functional.interpolate(batch.images, (height, width)) if facts.size else batch.images
        image = image[:, :, :height, :width].expand(facts.batch or 1, -1, -1, -1)
        image = (image * 255).round().byte() if facts.input == "uint8" else image
        with torch.no_grad():
            expected = graph(image)
        found = [torch.from_numpy(each) for each in session.run(None, {"image": np.ascontiguousarray(image.numpy())})]
        differences = largest_difference(expected, found)
        boxes, scores = max(boxes, differences[0]), max(scores, differences[1])
    said = f"boxes within {boxes:.2g} pixels, scores within {scores:.0e} in {len(images)} images, compared with PyTorch"
    if boxes > PIXELS or scores > SCORE:
        raise RunError(f"The file does not predict the same as the detector in PyTorch, so it was removed: {said}.")
    return said


def _padded(images: torch.Tensor) -> torch.Tensor:
    """Pad images to multiples of 32, as a batch of training is."""
    right, below = (-images.shape[axis] % 32 for axis in (-1, -2))
    return torch.nn.functional.pad(images, (0, right, 0, below))
