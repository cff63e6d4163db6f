"""A detector as one ONNX file."""

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from understudy.checkpoints import Checkpoint
from understudy.deployment.graph import Graph, RawGraph, graph_of
from understudy.deployment.suppression import TRANSLATIONS
from understudy.errors import RunError, UserError
from understudy.evaluation.runtimes import KEY, Facts, needed

OPSET = 18
"""The oldest opset of PyTorch's exporter; runtimes since 2023 know it."""

NEWEST_OPSET = 25

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the modules that it is in."""

TRACED = (2, 150, 213)
"""Images, height and width with which a graph of any size is traced; none is 1 or a multiple of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a detector is exported.

    Attributes:
        size: height and width of its images; None: any, and any number of them.
        batch: images at once, of a fixed size.
        raw: end before the choice of detections.
        input: type of the pixels.
        opset: of the graph.
        score_threshold: instead of the detector's own; None: that.
        licence: of the weights, to be stated in the file.
    """

    size: tuple[int, int] | None = None
    batch: int = 1
    raw: bool = False
    input: str = "float32"
    opset: int = OPSET
    score_threshold: float | None = None
    licence: str | None = None

    def check(self) -> None:
        """Refuse options that no file can have.

        Raises:
            UserError: all faults.
        """
        faults = []
        if self.size and min(self.size) < 32:
            faults.append(f"--size {self.size[0]}x{self.size[1]}: expected a height and a width of at least 32 pixels")
        if self.batch < 1:
            faults.append(f"--batch {self.batch}: expected at least 1")
        if self.batch != 1 and not self.size:
            faults.append("--batch: without --size the file takes any number of images; leave it out")
        if not OPSET <= self.opset <= NEWEST_OPSET:
            faults.append(f"--opset {self.opset}: expected {OPSET} to {NEWEST_OPSET}")
        if self.score_threshold is not None and not 0 < self.score_threshold < 1:
            faults.append(f"--score-threshold {self.score_threshold:g}: expected a number between 0 and 1")
        if faults:
            raise UserError.listing("The detector cannot be exported with these options:", faults)


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written.

    Attributes:
        file: the file.
        checked: the result of its check, in words.
    """

    file: Path
    checked: str

    def __str__(self) -> str:
        """Name the file and the result."""
        return f"{self.file}: {self.checked}"


def to_onnx(checkpoint: Checkpoint, options: Options) -> Any:
    """Convert a detector to an ONNX model, with its facts in the metadata.

    Args:
        checkpoint: the detector.
        options: of the file.

    Returns:
        The ``onnx.ModelProto``.

    Raises:
        UserError: options are wrong, the detector has no graph, or packages are missing.
        RunError: PyTorch's exporter failed.
    """
    options.check()
    onnx = needed("onnx", "--format onnx")
    needed("onnxscript", "--format onnx")
    graph = graph_of(checkpoint.detector, raw=options.raw).eval()
    count, height, width = (options.batch, *options.size) if options.size else TRACED
    image = torch.rand(count, 3, height, width)
    if options.input == "uint8":
        image = (image * 255).to(torch.uint8)
    free = torch.export.Dim.DYNAMIC
    names = ["boxes", "scores"] if isinstance(graph, RawGraph) else ["boxes", "scores", "labels", "count"]
    with _threshold(graph, options.score_threshold), _quiet() as said:
        try:
            program = torch.onnx.export(
                graph,
                (image,),
                dynamo=True,
                input_names=["image"],
                output_names=names,
                opset_version=options.opset,
                dynamic_shapes=None if options.size else ({0: free, 2: free, 3: free},),
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
        except Exception as error:  # its exceptions have no common class
            reason = " ".join(str(error).split())[:500]
            raise RunError(
                f"PyTorch {torch.__version__} could not export this {checkpoint.meta['build']['name']} ({reason}). "
                f"Export torch weights: --format torch. {said.getvalue()[:500]}".rstrip()
            ) from error
        facts = facts_of(checkpoint, options, graph)
    assert program is not None
    model = program.model_proto
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        kept = [each for each in node.metadata_props if each.key == SCOPES]  # not the traces of our source
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    if not options.size:
        _name_dimensions(model)
    model.producer_name, model.producer_version = "understudy", version("understudy")
    onnx.helper.set_model_props(model, {KEY: facts.to_json()})
    return model


def facts_of(checkpoint: Checkpoint, options: Options, graph: Graph) -> Facts:
    """Collect what an exported file states about its detector."""
    build, data = checkpoint.meta["build"], checkpoint.config["data"]
    owner = _chooser(graph)
    return Facts(
        classes=checkpoint.classes,
        category_ids=tuple(checkpoint.meta["category_ids"]),
        detector=build["name"],
        conventions=build.get("conventions", "torchvision"),
        input=options.input,
        raw=options.raw,
        size=options.size,
        batch=options.batch if options.size else None,
        resize={"shorter_side": data["shorter_side"][-1], "longer_side": data["longer_side"]},
        mean=tuple(graph.network.transform.image_mean),
        score_threshold=owner.score_thresh,
        nms_threshold=owner.nms_thresh,
        detections=owner.detections_per_img,
        AP=checkpoint.meta.get("AP"),
        opset=options.opset,
        licence=options.licence,
        versions={name: version(name) for name in ("understudy", "torch", "torchvision", "onnx", "onnxscript")},
    )


def _chooser(graph: Graph) -> Any:
    """Return the part of a network that has the thresholds of its detections."""
    return graph.network.roi_heads if graph.detector.spec.two_stage else graph.network


@contextmanager
def _threshold(graph: Graph, score: float | None):
    owner = _chooser(graph)
    before = owner.score_thresh
    owner.score_thresh = before if score is None else score
    try:
        yield
    finally:
        owner.score_thresh = before


@contextmanager
def _quiet():
    """Silence PyTorch's exporter, which warns of its own dependencies and prints its progress."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch._dynamo", "torch.export", "onnxscript", "onnx_ir")
    ]
    before = [logger.level for logger in loggers]
    said = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(said):
            warnings.simplefilter("ignore")
            yield said
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _name_dimensions(model: Any) -> None:
    """Name the free dimensions of the input, and those of the outputs that are the same."""
    shape = model.graph.input[0].type.tensor_type.shape.dim
    names = dict(zip([shape[0].dim_param, shape[2].dim_param, shape[3].dim_param], ("N", "H", "W"), strict=True))
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    del model.graph.value_info[:]  # they use the old names; runtimes infer shapes themselves
