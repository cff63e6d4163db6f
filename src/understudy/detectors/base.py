"""The interface of a detector to methods and to training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from understudy.detectors.families import FAMILIES
from understudy.errors import UserError
from understudy.outputs import Needs, Origin, Outputs, Spec, Target, TowerMaps

PROBE_SIZE = 256
"""Side in pixels of the image of noise that a Spec is measured on; a multiple of every stride in use."""


class Detector(nn.Module, ABC):
    """Open a detector: one record in train and eval, and a head that runs on any features.

    The network inside stays the library's own object, with its weights and parameter names. Users deploy this network.
    :class:`.DenseDetector` implements most of this for one-stage detectors in torchvision's style; a detector of
    another kind implements the abstract methods here.

    Args:
        network: the plain network.
        name: the name in messages; by default the family's.

    Attributes:
        family: a key of :data:`.FAMILIES`; the facts of its entry go into the Spec.
        box_code: encoding of the dense box outputs, a key of :data:`understudy.boxes.BOX_CODES`.
        assigns_by_anchors: whether :meth:`assign` reads no predictions.
        spec: channels, strides and sizes, measured once on an image of noise.
        network: the plain network.
    """

    family: str
    box_code: str = "deltas"
    assigns_by_anchors: bool = False
    spec: Spec
    network: Any

    def __init__(self, network: nn.Module, name: str | None = None):
        super().__init__()
        self.network = network
        self._kept: tuple[int, ...] = ()
        self.spec = self._probe(name or self.family)

    def forward(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        targets: Sequence[Target] | None = None,
        needs: Needs | None = None,
    ) -> Outputs:
        """Compute the record of a batch.

        Args:
            images: (N, 3, H, W) RGB, float in 0..1 (or uint8), not normalised: a detector normalises by itself.
            image_sizes: height and width of each image without its padding at the bottom and the right. The padding is
                set to zero after normalisation, as in torchvision and mmdet. None: no padding.
            targets: ground truth per image, for heads that read it in training (denoising queries); others ignore it.
            needs: the parts to compute, as :attr:`.Learner.needs`; layers whose outputs nobody reads do not run. None:
                the whole record.
        """
        size, needs = (images.shape[-2], images.shape[-1]), needs or Needs()
        stages = self.backbone(images, image_sizes) if needs.beyond() else []
        features = self.neck(stages) if needs.beyond("stages") else []
        if needs.beyond("stages", "features"):
            with self.keeping(*needs.convolutions) if needs.convolutions else nullcontext():
                outputs = self.predictions(features, size, targets, needs)
        else:
            outputs = Outputs([], features)
        sizes = tuple(map(tuple, image_sizes)) if image_sizes is not None else (size,) * len(images)
        return replace(
            outputs,
            stages=stages,
            size=size,
            image_sizes=tuple((int(height), int(width)) for height, width in sizes),
            origin=Origin.of(images, self.training),
        )

    @abstractmethod
    def backbone(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Normalise images (N, 3, H, W) and compute the backbone's outputs, each (N, C, H, W), fine to coarse."""

    @abstractmethod
    def neck(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Compute the features, each level (N, C, H, W), from the backbone's outputs."""

    @abstractmethod
    def head(
        self, features: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target] | None = None
    ) -> Outputs:
        """Compute the record from any features of the right shape, including a student's features for a teacher.

        Args:
            features: one (N, C, H, W) per level.
            image_size: height and width in pixels of the padded batch. The record takes every image to be of this
                size.
            targets: as in :meth:`forward`.
        """

    def predictions(
        self,
        features: Sequence[Tensor],
        image_size: tuple[int, int],
        targets: Sequence[Target] | None,
        needs: Needs,
    ) -> Outputs:
        """Compute the record from features, or only a part of it if that saves time; see :meth:`head`."""
        return self.head(features, image_size, targets)

    @abstractmethod
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match predictions to objects: (N, R) int64, number of the object, -1 background, -2 ignored. No gradient.

        Without dense predictions it matches queries, (N, Q). It may read the predictions.
        """

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Compute the detector's own training losses by name, with its library's reductions."""

    @abstractmethod
    def detect(self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Compute the final detections of each image.

        Args:
            outputs: the record of the batch.
            image_sizes: unpadded height and width of each image, to which boxes are clipped.

        Returns:
            Per image ``boxes`` (M, 4) xyxy in pixels of the padded batch, ``scores`` (M,), ``labels`` (M,) in 0..K-1.
        """

    def proposals(
        self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]] | None = None, *, training: bool = False
    ) -> list[Tensor]:
        """Choose the boxes that the second stage classifies.

        Args:
            outputs: the record of the batch.
            image_sizes: unpadded height and width of each image, to which boxes are clipped; None: the record's.
            training: choose as many as in training, not as in detection.

        Returns:
            Per image (P, 4), xyxy in pixels of the padded batch, the best first.

        Raises:
            UserError: the detector has no second stage.
        """
        raise self._without_second_stage()

    def score_boxes(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Classify and correct boxes with the second stage. Gradients reach the features, not the boxes.

        Args:
            features: one (N, C, H, W) per level; this detector's own.
            boxes: per image (P_i, 4), xyxy in pixels of the padded batch.

        Returns:
            For the P boxes of all images the class logits (P, K + 1), the background first, and the corrected boxes for
            each class (P, K + 1, 4); those of the background have no meaning.

        Raises:
            UserError: the detector has no second stage.
        """
        raise self._without_second_stage()

    def _without_second_stage(self) -> UserError:
        return UserError(f"{self.spec.name} has no second stage.")

    def compile_layers(self) -> None:
        """Compile the layers that take most of the time, in place: modules and names of weights stay as they are.

        A detector of another kind compiles nothing unless it overrides this.
        """

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Compute the dense boxes of every anchor, each level (N, H, W, A, 4), xyxy in pixels of the padded batch.

        Raises:
            UserError: the detector has no dense predictions.
        """
        raise UserError(f"{self.spec.name} has no dense boxes to decode: it has {self.spec.predictions}.")

    def lay_anchors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Lay the dense anchors of an image without computing anything else, each level (H, W, A, 4), on the CPU.

        Args:
            image_size: height and width in pixels of the padded batch.
        """
        levels = []
        for stride, anchors in zip(self.spec.strides, self.spec.first_anchors, strict=True):
            rows, columns = (torch.arange(math.ceil(side / stride)) * stride for side in image_size)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            levels.append(torch.stack([x, y, x, y], dim=-1)[:, :, None] + torch.tensor(anchors))
        return levels

    @property
    def background_below(self) -> float | None:
        """IoU below which an anchor is background unless it is an object's best; None: matched by other rules."""
        return None

    @property
    def num_labels(self) -> int | None:
        """Number of labels that targets may have, 0..K-1; None if it is unknown."""
        return None if self.spec.objectness else self.spec.num_classes

    def label_names(self, classes: Sequence[str]) -> list[str]:
        """Name the labels that the plain network itself returns, given the names of the classes."""
        return list(classes)

    # --- the maps inside a head of two towers, for methods that read or replace them ---

    @contextmanager
    def keeping(self, *convolutions: int) -> Generator[None]:
        """Keep the feature maps inside the head's two towers in every record computed within this context.

        Args:
            *convolutions: numbers of the convolutions, from 0, whose outputs are kept as ``tower_maps``; none costs
                nothing.

        Raises:
            UserError: the towers have no such convolution.
        """
        count = len(self.spec.tower_channels)
        if missing := [number for number in convolutions if not 0 <= number < count]:
            raise UserError(
                f"{self.spec.name} has {count} convolutions in each tower of its head (counted from 0), and no number "
                f"{', '.join(map(str, missing))}."
            )
        before, self._kept = self._kept, convolutions
        try:
            yield
        finally:
            self._kept = before

    def tower_maps(self, outputs: Outputs, convolution: int) -> TowerMaps:
        """Return the feature maps inside the head's two towers: those kept in the record, else computed from features.

        Args:
            outputs: a whole record of this detector.
            convolution: number of the convolution, from 0.
        """
        raise UserError(f"The head of {self.spec.name} does not have two towers.")

    def head_from(self, tower_maps: TowerMaps, convolution: int, outputs: Outputs) -> Outputs:
        """Run the end of the head on maps of the right shape, including a student's maps for a teacher.

        Args:
            tower_maps: used as the outputs of a convolution of the two towers, at every level.
            convolution: number of the convolution, from 0.
            outputs: a whole record of this detector for the same batch.

        Returns:
            This record with the other predictions.
        """
        raise UserError(f"The head of {self.spec.name} does not have two towers.")

    def train(self, mode: bool = True) -> Self:
        """Switch to training; batch normalisation whose weights are frozen keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if (
                isinstance(module, nn.modules.batchnorm._BatchNorm)
                and module.affine
                and not module.weight.requires_grad
            ):
                module.eval()
        return self

    def _measured(self, outputs: Outputs) -> dict[str, Any]:
        """Measure further fields of the Spec on the record of an image of noise."""
        return {}

    @torch.no_grad()
    def _probe(self, name: str) -> Spec:
        parameter = next(self.network.parameters())
        with evaluating(self):
            # Noise, not an empty image: the signs of a stage's values are measured, too.
            noise = torch.rand(1, 3, PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(0), device="cpu")
            outputs = self(noise.to(parameter.device))
        family = FAMILIES.get(self.family)
        measured: dict[str, Any] = {
            "channels": tuple(feature.shape[1] for feature in outputs.features),
            "strides": tuple(_stride(feature) for feature in outputs.features),
            "stage_channels": tuple(stage.shape[1] for stage in outputs.stages),
            "stage_strides": tuple(_stride(stage) for stage in outputs.stages),
            "stage_relu": () if parameter.is_meta else tuple(bool((stage >= 0).all()) for stage in outputs.stages),
            "assigns_by_anchors": self.assigns_by_anchors,
            "family": self.family,
            "name": name,
            "dense": bool(outputs.class_logits),
            "num_anchors": 0,
        }
        if outputs.queries:
            measured["queries"], measured["num_classes"] = outputs.queries.class_logits[-1].shape[1:]
            measured["decoder_layers"] = len(outputs.queries.class_logits)
        if outputs.class_logits:
            measured["num_anchors"], measured["num_classes"] = outputs.class_logits[0].shape[-2:]
            measured["box_size"] = outputs.box_raw[0].shape[-1]
            measured["box_code"] = self.box_code
            measured["first_anchors"] = _first_anchors(outputs.anchors)
        if family:
            measured |= {**family.facts, "default_weights": family.weights}
        return Spec(**measured, **self._measured(outputs))


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Put a module and all of its parts into ``eval()``, and restore the mode of each afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _first_anchors(anchors: Sequence[Tensor]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    if anchors[0].is_meta:  # a detector that is described, not built
        return ()
    return tuple(tuple(map(tuple, level[0, 0].tolist())) for level in anchors)


def _stride(feature: Tensor) -> int:
    return 2 ** round(math.log2(PROBE_SIZE / feature.shape[-1]))
