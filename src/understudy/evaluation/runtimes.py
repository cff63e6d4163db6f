"""What runs a detector: PyTorch, or ONNX Runtime or OpenVINO for an exported file. All are called in the same way."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from understudy.data.transforms import clip_boxes, resize
from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.evaluation.inferring import Precision, inferring

logger = logging.getLogger(__name__)

KEY = "understudy"
"""The entry of a file's metadata that holds its :class:`Facts` as JSON."""

FORMAT = 1
"""Version of these facts."""

Found = list[dict[str, Tensor]]
"""Per image ``boxes`` (M, 4) xyxy in pixels of the padded batch, ``scores`` (M,), best first, ``labels`` (M,)."""


class Runtime(Protocol):
    """Something that runs a detector."""

    @property
    def name(self) -> str:
        """Library, version and device, in words."""
        ...

    def __call__(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Found:
        """Detect objects.

        Args:
            images: (N, 3, H, W) RGB, float in 0..1.
            image_sizes: height and width of each image without its padding at the bottom and the right.
        """
        ...


@dataclass(slots=True)
class TorchRuntime:
    """Runs an opened detector with PyTorch.

    Attributes:
        detector: on the device; its training mode is restored after each call.
        device: that the batches are moved to.
        precision: of the arithmetic.
    """

    detector: Detector
    device: torch.device | str = "cpu"
    precision: Precision = "32"

    @property
    def name(self) -> str:
        """Library, version and device."""
        return f"PyTorch {version('torch')} ({torch.device(self.device).type.upper()})"

    def __call__(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Found:
        """Detect objects; see :class:`Runtime`."""
        with inferring(self.detector, self.device, self.precision):
            outputs = self.detector(images.to(self.device), image_sizes)
            return self.detector.detect(outputs, image_sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an exported file states about its detector.

    Attributes:
        classes: names of the classes. Labels are positions in it.
        category_ids: of the data set that it was trained on.
        detector: family and backbone.
        conventions: the library whose implementation it matches.
        input: ``float32`` in 0..1, or ``uint8``.
        raw: it ends before the choice of detections.
        size: height and width of its images; None: any.
        batch: images at once; None: any number.
        resize: ``shorter_side`` and ``longer_side`` in pixels, to which images are resized.
        mean: of red, green and blue in 0..1, with which an image is filled up to a fixed size.
        score_threshold: the score of a detection is above this.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        detections: most detections of an image.
        AP: of the checkpoint on its validation split; None: not known.
        precision: ``float32`` or ``int8``.
        opset: of the graph.
        licence: of the weights, as the user states it; None: not stated.
        versions: of the libraries that wrote it.
        format: version of these facts.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    detector: str
    conventions: str
    input: str
    raw: bool
    size: tuple[int, int] | None
    batch: int | None
    resize: Mapping[str, int]
    mean: tuple[float, ...]
    score_threshold: float
    nms_threshold: float
    detections: int
    AP: float | None
    precision: str = "float32"
    opset: int
    licence: str | None
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """Write the facts as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, file: Path) -> "Facts":
        """Read the facts of an ONNX file, which ONNX Runtime must be able to load."""
        return cls.read(session_of(file, 1).get_modelmeta().custom_metadata_map.get(KEY), file)

    @classmethod
    def read(cls, text: str | None, file: Path) -> "Facts":
        """Read the facts of a file.

        Raises:
            UserError: there are none, they are damaged, or they are of a later version.
        """
        wanted = f"expected a file that `understudy export RUN FOLDER --format {file.suffix[1:] or 'onnx'}` wrote"
        if text is None:
            raise UserError(f"{file} was not exported by understudy: it does not state its classes; {wanted}.")
        try:
            stated = json.loads(text)
            if stated["format"] > FORMAT:
                raise UserError(
                    f"{file} was exported by a later version of understudy. Update: pip install -U understudy"
                )
            known = {each.name: stated[each.name] for each in fields(cls)}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The metadata of {file} are damaged ({type(error).__name__}: {error}); {wanted}."
            ) from None
        known["size"] = known["size"] and tuple(known["size"])
        for key in ("classes", "category_ids", "mean"):
            known[key] = tuple(known[key])
        return cls(**known)


@dataclass(slots=True)
class FileRuntime:
    """Runs an exported file.

    Attributes:
        facts: what the file states.
        name: library, version and device.
        infer: computes ``boxes``, ``scores``, ``labels`` and ``count`` from images (N, 3, H, W).
    """

    facts: Facts
    name: str
    infer: Callable[[np.ndarray], Sequence[np.ndarray]]
    _warned: bool = False

    @property
    def description(self) -> str:
        """The name, and the precision if it is not float32."""
        return self.name if self.facts.precision == "float32" else f"{self.name}, {self.facts.precision}"

    def __call__(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Found:
        """Detect objects; see :class:`Runtime`."""
        if self.facts.size:
            self._warn_of_larger(image_sizes)
            return on_canvas(self._of_fixed_size, images, image_sizes, self.facts)
        sizes = {(int(height), int(width)) for height, width in image_sizes}
        if len(sizes) == 1:
            ((height, width),) = sizes
            return self._detect(images[:, :, :height, :width])
        pairs = zip(images, image_sizes, strict=True)
        return [self._detect(image[None, :, :height, :width])[0] for image, (height, width) in pairs]

    def _warn_of_larger(self, image_sizes: Sequence[tuple[int, int]]) -> None:
        height, width = self.facts.size or (0, 0)
        larger = [size for size in image_sizes if size[0] > height or size[1] > width]
        if larger and not self._warned:
            self._warned = True
            logger.warning(
                "Images larger than the fixed size of the file, %dx%d (height x width), are reduced to fit, such as "
                "one of %dx%d. Export with a larger --size, or without it for images of any size.",
                *(height, width, *larger[0]),
            )

    def _of_fixed_size(self, images: Tensor) -> Found:
        at_once, found = self.facts.batch or 1, []
        for some in images.split(at_once):
            filled = torch.cat([some, some[-1:].expand(at_once - len(some), -1, -1, -1)])
            found += self._detect(filled)[: len(some)]
        return found

    def _detect(self, images: Tensor) -> Found:
        return self.detect(self._as_input(images))

    def pixels(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return images of one size as the file takes them: on its canvas, if its size is fixed, and of its type."""
        height, width = (int(side) for side in image_sizes[0])
        images = images[:, :, :height, :width]
        if self.facts.size:
            images = torch.stack([fitted(image.cpu(), self.facts.size, self.facts.mean)[0] for image in images])
        return self._as_input(images)

    def _as_input(self, images: Tensor) -> np.ndarray:
        if self.facts.input == "uint8":
            images = (images * 255).round().to(torch.uint8)
        return np.ascontiguousarray(images.cpu().numpy())

    def detect(self, pixels: np.ndarray) -> Found:
        """Detect objects in the input of the file; boxes are in its pixels."""
        boxes, scores, labels, counts = (torch.from_numpy(np.array(output)) for output in self.infer(pixels))
        return [
            {"boxes": boxes[row, :count], "scores": scores[row, :count], "labels": labels[row, :count]}
            for row, count in enumerate(counts.tolist())
        ]


def on_canvas(
    detect: Callable[[Tensor], Found], images: Tensor, image_sizes: Sequence[tuple[int, int]], facts: Facts
) -> Found:
    """Detect objects in images on canvases of the fixed size of a file.

    Args:
        detect: computes the detections of canvases (N, 3, H, W).
        images: (N, 3, H, W) as a :class:`Runtime` gets them.
        image_sizes: height and width of each image without its padding.
        facts: of the file.
    """
    assert facts.size
    own = [(int(height), int(width)) for height, width in image_sizes]
    placed = [
        fitted(image[:, :height, :width].cpu(), facts.size, facts.mean)
        for image, (height, width) in zip(images, own, strict=True)
    ]
    found = detect(torch.stack([canvas for canvas, _ in placed]))
    return [to_image(one, size, image) for one, (_, size), image in zip(found, placed, own, strict=True)]


def fitted(image: Tensor, canvas: tuple[int, int], mean: Sequence[float]) -> tuple[Tensor, tuple[int, int]]:
    """Put an image (3, h, w) into the upper left corner of a canvas that is filled with a colour.

    Args:
        image: float in 0..1; it is reduced if it does not fit.
        canvas: height and width.
        mean: the colour.

    Returns:
        The canvas (3, H, W), and height and width of the image in it.
    """
    height, width = image.shape[-2:]
    scale = min(1.0, canvas[0] / height, canvas[1] / width)
    size = (height, width)
    if scale < 1:
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        image = resize(image, size)
    filled = torch.tensor(mean, dtype=image.dtype)[:, None, None].expand(3, *canvas).clone()
    filled[:, : size[0], : size[1]] = image
    return filled, size


def to_image(found: dict[str, Tensor], size: tuple[int, int], image_size: tuple[int, int]) -> dict[str, Tensor]:
    """Return detections on a canvas as those on the image, whose size on it and own size (h, w) are given."""
    boxes = clip_boxes(found["boxes"], size)
    if size != image_size:
        boxes = boxes * torch.tensor([image_size[1] / size[1], image_size[0] / size[0]] * 2)
    return {**found, "boxes": boxes}


def onnx_runtime(file: Path, threads: int | None = None, device: torch.device | str = "cpu") -> FileRuntime:
    """Load an exported ONNX file into ONNX Runtime.

    Args:
        file: the file.
        threads: of the arithmetic; None: as many as PyTorch.
        device: a GPU is used if the installed ONNX Runtime can.

    Raises:
        UserError: ONNX Runtime is not installed or cannot load the file, or the file was not exported by understudy.
    """
    session = session_of(file, threads, device)
    facts = Facts.read(session.get_modelmeta().custom_metadata_map.get(KEY), file)
    _refuse_raw(facts, file)
    where = "CUDA" if "CUDAExecutionProvider" in session.get_providers() else "CPU"
    return FileRuntime(
        facts, f"ONNX Runtime {version('onnxruntime')} ({where})", lambda images: session.run(None, {"image": images})
    )


def session_of(file: Path, threads: int | None = None, device: torch.device | str = "cpu") -> Any:
    """Return a session of ONNX Runtime, whatever the file holds; see :func:`onnx_runtime`."""
    library = needed("onnxruntime", "running ONNX files")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4
    on_gpu = torch.device(device).type == "cuda" and "CUDAExecutionProvider" in library.get_available_providers()
    providers = [*(["CUDAExecutionProvider"] if on_gpu else []), "CPUExecutionProvider"]
    existing(file)
    try:
        return library.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its exceptions have no common class
        raise UserError(_not_loaded(file, f"ONNX Runtime {library.__version__}", error)) from None


def openvino_runtime(file: Path, threads: int | None = None) -> FileRuntime:
    """Load an exported file (OpenVINO's ``.xml``, or ONNX) into OpenVINO, on the CPU and in float32.

    Arguments and errors are those of :func:`onnx_runtime`.
    """
    library = needed("openvino", "running files with OpenVINO")
    core = library.Core()
    try:
        model = core.read_model(str(existing(file)))
        where = KEY if file.suffix == ".xml" else ["framework", KEY]  # of a converted file, and of an ONNX file
        stated = model.get_rt_info(where).astype(str) if model.has_rt_info(where) else None
        facts = Facts.read(stated, file)
        _refuse_raw(facts, file)
        # Its default on some CPUs is bfloat16, which changes scores by 1e-3.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
        compiled = core.compile_model(model, "CPU", settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_not_loaded(file, f"OpenVINO {library.__version__}", error)) from None
    outputs = [compiled.output(name) for name in ("boxes", "scores", "labels", "count")]

    def infer(images: np.ndarray) -> list[np.ndarray]:
        found = compiled({"image": images})
        return [found[output] for output in outputs]

    return FileRuntime(facts, f"OpenVINO {library.__version__.partition('-')[0]} (CPU)", infer)


def needed(module: str, purpose: str) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        extra = "openvino" if module in ("openvino",) else "onnx"
        raise UserError(
            f"The package {module}, which {purpose} needs, cannot be imported ({error}). "
            f"Install it: pip install 'understudy[{extra}]'"
        ) from None


def existing(file: Path) -> Path:
    """Return a file that exists.

    Raises:
        UserError: it does not.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist; expected an exported detector (.onnx, .xml).")
    return file


def _refuse_raw(facts: Facts, file: Path) -> None:
    if facts.raw:
        raise UserError(f"{file} was exported with --raw, so it does not choose detections. Export it without --raw.")


def _not_loaded(file: Path, library: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"{file} cannot be loaded by {library} ({reason}). Expected a file that `understudy export` wrote, with an "
        "opset that the library knows: update the library, or export again with a lower --opset."
    )
