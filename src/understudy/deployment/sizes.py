"""Sizes of a detector as it is deployed: weights, multiply-adds at the size of an image, bytes of its file."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from understudy.data import Batch
from understudy.detectors.sizes import multiply_adds
from understudy.errors import UserError
from understudy.evaluation.models import Runnable
from understudy.evaluation.runtimes import FileRuntime, TorchRuntime, needed


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a detector.

    Attributes:
        parameters: of a checkpoint, all weights that training can change; of a file, the numbers in the kernels of its
            convolutions and matrix products. None: not known.
        multiply_adds: of one image. None: not known.
        file_bytes: of the checkpoint, or the exported file with its weights.
        missing: why a number is not known, in words; empty if all are.
    """

    parameters: int | None
    multiply_adds: int | None
    file_bytes: int
    missing: str = ""


def sizes_of(detector: Runnable, batch: Batch) -> Sizes:
    """Measure a detector.

    Args:
        detector: the detector.
        batch: of one image, at whose size the multiply-adds are counted.
    """
    runtime, taken = detector.runtime, file_bytes(detector.path)
    if isinstance(runtime, TorchRuntime):
        counted = multiply_adds(lambda: runtime(batch.images, batch.image_sizes))
        return Sizes(sum(each.numel() for each in runtime.detector.network.parameters()), counted, taken)
    assert isinstance(runtime, FileRuntime)
    try:
        graph = (_OpenVINOGraph if detector.path.suffix == ".xml" else _ONNXGraph)(detector.path)
        shapes = graph.outputs(runtime.pixels(batch.images, batch.image_sizes))
    except (UserError, RuntimeError, ValueError) as error:
        return Sizes(None, None, taken, " ".join(str(error).split()))
    counted = sum(each.multiply_adds(shape) for each, shape in zip(graph.operations, shapes, strict=True))
    return Sizes(_parameters(graph.operations), counted // len(batch.image_sizes), taken)


def file_bytes(path: Path) -> int:
    """Return the bytes of a checkpoint or of an exported file, with the weights that are in a file beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" and beside.is_file() else 0)


# ------------------------------------------------------------------------------------------------- exported files


Shape = tuple[int, ...]

_PASSED = {  # operations between a stored kernel and the convolution that uses it: quantisation, order of axes
    "Cast",
    "Convert",
    "DequantizeLinear",
    "FakeQuantize",
    "Identity",
    "Multiply",
    "QuantizeLinear",
    "Reshape",
    "Subtract",
    "Transpose",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """A convolution or a matrix product with a stored kernel.

    Attributes:
        name: of its output.
        axis: of the channels in its output.
        kernel_name: several operations can share a kernel.
        kernel: its shape.
    """

    name: str
    axis: int
    kernel_name: str
    kernel: Shape

    def multiply_adds(self, output: Shape) -> int:
        """Return its multiply-adds, given the shape of its output."""
        return math.prod(output) * math.prod(self.kernel) // output[self.axis]


def parameters_of_file(file: Path) -> int | None:
    """Return the numbers in the kernels of an exported file; None if the package that reads it is not installed."""
    try:
        return _parameters((_OpenVINOGraph if file.suffix == ".xml" else _ONNXGraph)(file).operations)
    except UserError:
        return None


def _parameters(operations: Iterable[Operation]) -> int:
    return sum(math.prod(shape) for shape in {each.kernel_name: each.kernel for each in operations}.values())


class _ONNXGraph:
    """The operations of an ONNX file."""

    def __init__(self, file: Path):
        self.model = needed("onnx", "counting the multiply-adds of ONNX files").load(str(file))
        graph = self.model.graph
        stored = {each.name: tuple(each.dims) for each in graph.initializer}
        makers = {output: node for node in graph.node for output in node.output}
        self.operations = []
        for node in graph.node:
            if node.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            kernel = node.input[1]
            while kernel in makers and makers[kernel].op_type in _PASSED:
                kernel = makers[kernel].input[0]
            if kernel in stored:
                axis = 1 if node.op_type == "Conv" else -1
                self.operations.append(Operation(node.output[0], axis, kernel, stored[kernel]))

    def outputs(self, pixels: np.ndarray) -> list[Shape]:
        """Return the shape of each operation's output, by running the graph: of free sizes, ONNX infers none."""
        onnx, library = import_module("onnx"), needed("onnxruntime", "counting the multiply-adds of ONNX files")
        graph = self.model.graph
        for each in self.operations:
            graph.node.append(onnx.helper.make_node("Shape", [each.name], [f"shape of {each.name}"]))
            shape = onnx.helper.make_tensor_value_info(f"shape of {each.name}", onnx.TensorProto.INT64, None)
            graph.output.append(shape)
        options = library.SessionOptions()
        options.log_severity_level = 4
        session = library.InferenceSession(self.model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = [f"shape of {each.name}" for each in self.operations]
        return [tuple(shape.tolist()) for shape in session.run(names, {"image": pixels})]


class _OpenVINOGraph:
    """The operations of an OpenVINO file."""

    def __init__(self, file: Path):
        self.model = needed("openvino", "running files with OpenVINO").Core().read_model(str(file))
        self.operations = []
        for node in self.model.get_ordered_ops():
            if node.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
                continue
            kernel = node.input_value(1).get_node()
            while kernel.get_type_name() in _PASSED:
                kernel = kernel.input_value(0).get_node()
            if kernel.get_type_name() == "Constant":
                axis = -1 if node.get_type_name() == "MatMul" else 1
                shape = tuple(kernel.get_output_shape(0))
                self.operations.append(Operation(node.get_friendly_name(), axis, kernel.get_friendly_name(), shape))

    def outputs(self, pixels: np.ndarray) -> list[Shape]:
        """Return the shape of each operation's output.

        Raises:
            ValueError: a shape depends on the content of the image.
        """
        self.model.reshape({"image": list(pixels.shape)})
        nodes = {node.get_friendly_name(): node for node in self.model.get_ordered_ops()}
        shapes = [nodes[each.name].get_output_partial_shape(0) for each in self.operations]
        if any(shape.is_dynamic for shape in shapes):
            raise ValueError("the sizes of some feature maps depend on the content of the image")
        return [tuple(shape.to_shape()) for shape in shapes]
