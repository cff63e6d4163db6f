"""What every detector offers to methods and to training."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from understudy.detectors.towers import Towers, entered, halves, recorded, tower_channels
from understudy.errors import UserError
from understudy.outputs import Outputs, Spec, Target, TowerMaps, flatten_levels, unflatten_levels

PROBE_SIZE = 256  # pixels; a multiple of every stride in use


class Detector(nn.Module, ABC):
    """Opens a detector: the same record in train and eval, and its head callable on any features.

    The network inside stays the library's own object, with its own weights and parameter names: it is what the user
    takes home. Anything that torchvision's one-stage detectors share is here; a family adds its head's record, its
    assignment, its loss and its boxes.

    Args:
        network: a torchvision detector, or one built in its style (``backbone``, ``head``, ``transform``,
            ``anchor_generator``).
        name: what messages call it; the family's name by default.

    Attributes:
        spec: channels, strides and sizes, measured once on an empty image.
        network: the plain detector.
    """

    family: ClassVar[str]
    box_code: ClassVar[str]
    objectness: ClassVar[bool] = False
    spec: Spec
    network: Any  # a torchvision detector, read by the names that its families share

    def __init__(self, network: nn.Module, name: str | None = None):
        super().__init__()
        self.network = network
        self._kept: tuple[int, ...] = ()
        self.spec = self._probe(name or self.family)

    def forward(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> Outputs:
        """Compute the record of a batch.

        Args:
            images: (N, 3, H, W) RGB, float in 0..1 (or uint8), not normalised: a detector normalises by itself.
            image_sizes: height and width of each image without its padding at the bottom and the right; what lies
                outside is set to zero after normalisation, as torchvision and mmdet do. None: no padding.
        """
        stages = self.backbone(images, image_sizes)
        outputs = replace(self.head(self.neck(stages), (images.shape[-2], images.shape[-1])), stages=stages)
        if image_sizes is None:
            return outputs
        return replace(outputs, image_sizes=tuple((int(height), int(width)) for height, width in image_sizes))

    def backbone(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Normalise images (N, 3, H, W) and compute the backbone's outputs, each (N, C, H, W), fine to coarse."""
        images = self._normalise(images, image_sizes)
        backbone = self.network.backbone
        if self._has_neck:
            return list(backbone.body(images).values())
        features = backbone(images)
        return [features] if isinstance(features, Tensor) else list(features.values())

    def neck(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Compute the feature pyramid, each level (N, C, H, W), from the backbone's outputs."""
        if not self._has_neck:
            return list(stages)
        named = OrderedDict((str(number), stage) for number, stage in enumerate(stages))
        return list(self.network.backbone.fpn(named).values())

    def head(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Outputs:
        """Compute the record from any features of the right shape, a student's for a teacher included.

        Args:
            features: one (N, C, H, W) per level.
            image_size: height and width in pixels of the padded batch; anchors are laid over it. The record takes
                every image to be of this size.
        """
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        with recorded(self._towers, self._kept) if self._kept else nullcontext({}) as tower_maps:
            predictions = self._predictions(features)
        return Outputs(
            stages=[],
            features=list(features),
            anchors=self._anchors(sizes, image_size, features[0].device),
            image_sizes=((image_size[0], image_size[1]),) * len(features[0]),
            tower_maps=tower_maps,
            **predictions,
        )

    @contextmanager
    def keeping(self, *places: int) -> Generator[None]:
        """While it lasts, let every record have the maps inside the head's two towers as ``tower_maps``.

        Args:
            *places: numbers of the convolutions, from 0, after which maps are kept; none costs nothing.

        Raises:
            UserError: the towers have no such convolution.
        """
        if missing := [place for place in places if not 0 <= place < len(self.spec.tower_channels)]:
            raise UserError(
                f"{self.spec.name} has {len(self.spec.tower_channels)} convolutions in each tower of its head, counted "
                f"from 0, and no number {', '.join(map(str, missing))}."
            )
        before, self._kept = self._kept, places
        try:
            yield
        finally:
            self._kept = before

    def tower_maps(self, outputs: Outputs, place: int) -> TowerMaps:
        """The maps inside the head's two towers after a convolution: those that were kept, or computed from features.

        Args:
            outputs: a whole record of this detector.
            place: number of the convolution, from 0.
        """
        if place in outputs.tower_maps:
            return outputs.tower_maps[place]
        starts = [halves(tower, place)[0] for tower in self._towers]
        return TowerMaps(*([start(feature) for feature in outputs.features] for start in starts))

    def head_from(self, tower_maps: TowerMaps, place: int, outputs: Outputs) -> Outputs:
        """Run the end of the head on maps of the right shape, a student's for a teacher included.

        Args:
            tower_maps: taken for those after the convolution `place` of the two towers, at every level.
            place: number of the convolution, from 0.
            outputs: a whole record of this detector for the same batch.

        Returns:
            This record with the other predictions.
        """
        with entered(self._towers, place, tower_maps):
            return replace(outputs, tower_maps={}, **self._predictions(outputs.features))

    @property
    def _towers(self) -> Towers:
        head = self.network.head
        return head.classification_head.conv, head.regression_head.conv

    @property
    def _tower_channels(self) -> tuple[int, ...]:
        try:
            return tower_channels(self._towers)
        except AttributeError:  # a head without two towers
            return ()

    def _predictions(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Run the head and lay out what it emits, by the names of the record."""
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        anchors_per_cell = self._anchor_generator.num_anchors_per_location()[0]
        raw = self._raw(list(features))
        return {
            "class_logits": unflatten_levels(raw["cls_logits"], sizes, anchors_per_cell),
            "box_raw": unflatten_levels(raw["bbox_regression"], sizes, anchors_per_cell),
            "extra": self._extra(raw),
        }

    def _raw(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Run the head: ``cls_logits`` (N, R, K), ``bbox_regression`` (N, R, D) and what else the family has."""
        return self.network.head(features)

    @property
    def _anchor_generator(self) -> Any:
        return self.network.anchor_generator

    def _extra(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    @abstractmethod
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors to objects: (N, R) int64, number of the object, -1 background, -2 ignored. No gradient."""

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Compute the detector's own training losses, by torchvision's names and with torchvision's reductions."""

    @abstractmethod
    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Compute the boxes of every anchor, each level (N, H, W, A, 4), xyxy in pixels of the padded batch."""

    @torch.no_grad()
    def detect(self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Choose the detections of each image: score threshold, best candidates per level, NMS, best overall.

        Args:
            outputs: the record of the batch.
            image_sizes: unpadded height and width of each image, to which boxes are clipped.

        Returns:
            Per image ``boxes`` (M, 4) xyxy in pixels of the padded batch, ``scores`` (M,), ``labels`` (M,) in 0..K-1.
        """
        flat_anchors = [anchors.flatten(0, 2) for anchors in outputs.anchors]
        return self.network.postprocess_detections(
            self._per_level(outputs), [flat_anchors] * len(image_sizes), [tuple(size) for size in image_sizes]
        )

    def label_names(self, classes: Sequence[str]) -> list[str]:
        """Name the labels that the plain network itself returns, given the names of the classes."""
        return list(classes)

    def _per_level(self, outputs: Outputs) -> dict[str, list[Tensor]]:
        return {
            "cls_logits": [logits.flatten(1, 3).float() for logits in outputs.class_logits],
            "bbox_regression": [box.flatten(1, 3).float() for box in outputs.box_raw],
        }

    def _library_loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        raw = {
            "cls_logits": flatten_levels(outputs.class_logits).float(),
            "bbox_regression": flatten_levels(outputs.box_raw).float(),
            **{f"bbox_{name}": value.float().unsqueeze(-1) for name, value in self._library_extra(outputs).items()},
        }
        anchors = torch.cat([anchors.flatten(0, 2) for anchors in outputs.anchors])
        return self.network.head.compute_loss(list(targets), raw, [anchors] * len(targets), list(gt_index))

    def _library_extra(self, outputs: Outputs) -> dict[str, Tensor]:
        return {}

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

    @property
    def _has_neck(self) -> bool:
        return hasattr(self.network.backbone, "body") and hasattr(self.network.backbone, "fpn")

    def _normalise(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> Tensor:
        if images.dtype == torch.uint8:
            images = images / 255
        images = self.network.transform.normalize(images)
        if image_sizes is None or all(size == tuple(images.shape[-2:]) for size in map(tuple, image_sizes)):
            return images
        rows = torch.arange(images.shape[-2], device=images.device)
        columns = torch.arange(images.shape[-1], device=images.device)
        sizes = torch.tensor(image_sizes, device=images.device)
        inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None, :]
        return images * inside[:, None]

    def _anchors(
        self, level_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], device: torch.device
    ) -> list[Tensor]:
        # The generator reads shapes, dtype and device only: hand it shapes that own no memory. float32 always: under
        # autocast the features are bfloat16, in which a coordinate above 256 is off by pixels.
        nothing = torch.empty((), device=device)
        batch = ImageList(nothing.expand(1, 1, *image_size), [image_size])
        flat = self._anchor_generator(batch, [nothing.expand(1, 1, *size) for size in level_sizes])[0]
        per_cell = self._anchor_generator.num_anchors_per_location()[0]
        return [level[0] for level in unflatten_levels(flat[None], level_sizes, per_cell)]

    @torch.no_grad()
    def _probe(self, name: str) -> Spec:
        parameter = next(self.network.parameters())
        with evaluating(self):
            stages = self.backbone(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=parameter.device))
            outputs = self.head(self.neck(stages), (PROBE_SIZE, PROBE_SIZE))
        return Spec(
            channels=tuple(feature.shape[1] for feature in outputs.features),
            strides=tuple(_stride(feature) for feature in outputs.features),
            num_anchors=outputs.class_logits[0].shape[-2],
            num_classes=outputs.class_logits[0].shape[-1],
            box_size=outputs.box_raw[0].shape[-1],
            box_code=self.box_code,
            objectness=self.objectness,
            stage_channels=tuple(stage.shape[1] for stage in stages),
            stage_strides=tuple(_stride(stage) for stage in stages),
            tower_channels=self._tower_channels,
            first_anchors=_first_anchors(outputs.anchors),
            family=self.family,
            name=name,
        )


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Put a module and all of its parts into ``eval()``, and afterwards each back as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _first_anchors(anchors: Sequence[Tensor]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    if anchors[0].is_meta:  # a detector that is only described
        return ()
    return tuple(tuple(map(tuple, level[0, 0].tolist())) for level in anchors)


def _stride(feature: Tensor) -> int:
    return 2 ** round(math.log2(PROBE_SIZE / feature.shape[-1]))
