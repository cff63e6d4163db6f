"""Static quantisation of an exported ONNX file to INT8, with its AP before and after."""

import ast
import logging
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy.checkpoints import Checkpoint
from understudy.data import Batch
from understudy.deployment.onnx_file import SCOPES, Written
from understudy.errors import RunError
from understudy.evaluation import evaluate, loader_at_evaluation_size, match_classes, open_split
from understudy.evaluation.detections import aliases_of
from understudy.evaluation.runtimes import KEY, Facts, fitted, needed
from understudy.evaluation.speed import spread
from understudy.quantisation import IN_FLOAT

CALIBRATED = 64
"""Photos from which the ranges of the activations are taken."""

LIMIT = 1.0
"""Largest loss of AP, in points."""

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
"""Operators that compute in INT8. Those between convolutions too: otherwise each result is converted twice."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a quantisation needs of a data set.

    Attributes:
        photos: of the training split, for the ranges of the activations, one image a batch.
        data: the data set, on whose validation split the AP is measured.
        split: the validation split.
        limit: largest loss of AP, in points.
    """

    photos: list[Batch]
    data: Path | str
    split: str
    limit: float

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, data: Path | str, calibrated: int = CALIBRATED, limit: float = LIMIT
    ) -> "Calibration":
        """Open a data set and load photos of it.

        Args:
            checkpoint: the detector.
            data: a data set with its classes.
            calibrated: photos of the training split.
            limit: largest loss of AP, in points.

        Raises:
            UserError: there are no photos, a split is missing, or the data set has none of the detector's classes.
        """
        train, val = (checkpoint.config["data"][split] for split in ("train", "val"))
        opened, measured = (open_split(checkpoint, data, split) for split in (train, val))
        for each in (opened, measured):
            match_classes(checkpoint.classes, each, aliases_of(checkpoint))
        photos = list(loader_at_evaluation_size(spread(opened, calibrated), checkpoint.config))
        return cls(photos, data, val, limit)

    def ap(self, file: Path) -> float:
        """Return the AP of a file, in percent."""
        return 100 * evaluate(file, self.data, split=self.split).coco["AP"]

    def checked(self, quantised: Path, before: float) -> str:
        """Measure the AP of a file in INT8; remove the file if it loses too much.

        Args:
            quantised: the file.
            before: the AP in float32.

        Returns:
            Both, in words.

        Raises:
            RunError: it loses more than the limit.
        """
        after = self.ap(quantised)
        said = f"AP {before:.1f} in float32, {after:.1f} in INT8"
        if before - after > self.limit:
            for each in (quantised, quantised.with_suffix(".bin")):
                each.unlink(missing_ok=True)
            raise RunError(
                f"INT8 costs {before - after:.1f} AP, more than --max-ap-loss {self.limit:g}, so {quantised.name} was "
                f"removed ({said}). Distil with quantise=true, calibrate on more photos (--calibration-photos), or "
                "allow a larger loss."
            )
        return said


def write_int8(checkpoint: Checkpoint, file: Path, calibration: Calibration, before: float) -> Written:
    """Quantise an exported file.

    Weights are INT8 per output channel, activations UINT8 per tensor, with the ranges that they have on photos of the
    training split; of a student that was trained with ``quantise``, the inputs of its layers have the ranges of the
    training. The AP is measured on the validation split.

    Args:
        checkpoint: the detector of the file.
        file: the file in float32.
        calibration: the data.
        before: the AP of the file.

    Returns:
        The new file, beside the other, and what was measured, in words.

    Raises:
        UserError: packages are missing.
        RunError: the loss of AP is larger than the limit; then no file is left.
    """
    photos = calibration.photos
    target = file.with_suffix(f".int8{file.suffix}")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".unchecked-") as unchecked:
        quantised = Path(unchecked) / target.name
        trained = quantise(file, quantised, photos, checkpoint.meta.get("quantisation", {}))
        checked = calibration.checked(quantised, before)
        smaller = quantised.stat().st_size / file.stat().st_size
        quantised.replace(target)
    ranges = f"{len(photos)} photos for the ranges" + (f", {trained} of which are of the training" if trained else "")
    return Written(target, f"{checked}; {smaller:.0%} of the size; {ranges}")


def quantise(
    file: Path, target: Path, photos: Sequence[Batch], ranges: Mapping[str, Sequence[float]] | None = None
) -> int:
    """Write an exported file in INT8.

    Args:
        file: the file in float32.
        target: the file to write.
        photos: from which the ranges of the activations are taken, one image a batch.
        ranges: of the inputs of layers by their names in the plain network, if they are known from its training.

    Returns:
        The number of activations whose range is one of those.
    """
    onnx = needed("onnx", "--int8")
    library = needed("onnxruntime.quantization", "--int8")
    model = onnx.load(str(file))
    properties = {each.key: each.value for each in model.metadata_props}
    facts = Facts.read(properties.get(KEY), file)

    class Reader(library.CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = _inputs(photos, facts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    known = known_ranges(model, ranges or {})
    overrides = {name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in known.items()}
    with _quiet():
        library.quantize_static(
            str(file),
            str(target),
            Reader(),
            quant_format=library.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=_in_float(model),
            per_channel=True,
            activation_type=library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
            extra_options={"TensorQuantOverrides": overrides},
        )
    quantised = onnx.load(str(target))
    onnx.helper.set_model_props(quantised, properties | {KEY: replace(facts, precision="int8").to_json()})
    onnx.save(quantised, str(target))
    return len(known)


def known_ranges(model: Any, ranges: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Return the ranges of a graph's tensors that are inputs of layers; if several layers read one, that of them all.

    Args:
        model: the graph.
        ranges: smallest and largest input of each layer by its name in the plain network.
    """
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        # Not by the scope: a convolution that a normalisation was folded into has the latter's.
        layer = _of_network(node.input[1]).removesuffix(".weight")
        if layer in ranges:
            (low, high), name = ranges[layer], node.input[0]
            before = found.get(name, (low, high))
            found[name] = min(before[0], low), max(before[1], high)
    return found


def _of_network(name: str) -> str:
    """Return the part of a name in the graph that is the layer's in the plain network; empty: it is outside of it."""
    before, found, layer = name.partition("network.")
    return layer if found and before in ("", "detector.") else ""


def _in_float(model: Any) -> list[str]:
    """Name the nodes that stay in float: outside the layers of the network, and its last layers."""
    found = []
    for node in model.graph.node:
        stated = [each.value for each in node.metadata_props if each.key == SCOPES]
        scopes = ast.literal_eval(stated[0]) if stated else []
        inside = [layer for scope in scopes if (layer := _of_network(scope))]
        if not inside or any(layer.rpartition(".")[2] in IN_FLOAT for layer in inside):
            found.append(node.name)
    return found


def _inputs(photos: Sequence[Batch], facts: Facts) -> Iterator[dict[str, np.ndarray]]:
    for batch in photos:
        height, width = batch.image_sizes[0]
        image = batch.images[0, :, :height, :width]
        if facts.size:
            image = fitted(image, facts.size, facts.mean)[0]
        if facts.input == "uint8":
            image = (image * 255).round().to(torch.uint8)
        yield {"image": image.expand(facts.batch or 1, -1, -1, -1).numpy()}


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the library's advice to preprocess the model, which does not hold for graphs of PyTorch's exporter."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
