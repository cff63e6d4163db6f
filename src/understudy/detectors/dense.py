"""One-stage detectors in torchvision's style, and the first stage of two-stage ones."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from understudy.detectors.base import Detector
from understudy.detectors.towers import Towers, entered, halves, recorded, tower_channels
from understudy.outputs import Needs, Outputs, Target, TowerMaps, flat_anchors, unflatten_levels


class DenseDetector(Detector):
    """Open a detector with a prediction for each anchor of each cell, built as torchvision builds its own.

    A family adds its assignment, its boxes, and the outputs that no other family has.

    Args:
        network: a torchvision detector, or one built in its style: ``backbone`` (with ``body`` and ``fpn``, or any
            module that returns its levels), ``head``, ``transform``, ``anchor_generator``.
        name: the name in messages; by default the family's.

    Attributes:
        least_side: detections whose box has a shorter side, in pixels, or an empty one, are dropped; None: none are.
    """

    least_side: ClassVar[float | None] = None

    def backbone(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Normalise images (N, 3, H, W) and compute the backbone's outputs, each (N, C, H, W), fine to coarse."""
        return self.body(self._normalise(images, image_sizes))

    def body(self, images: Tensor) -> list[Tensor]:
        """Compute the backbone's outputs, each (N, C, H, W), from images that are normalised and padded already."""
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

    def head(
        self, features: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target] | None = None
    ) -> Outputs:
        """Compute the record; see :meth:`.Detector.head`. Anchors cover the padded batch."""
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

    def predictions(
        self,
        features: Sequence[Tensor],
        image_size: tuple[int, int],
        targets: Sequence[Target] | None,
        needs: Needs,
    ) -> Outputs:
        """Compute the record, or its class logits alone by the class tower; see :meth:`.Detector.predictions`."""
        tower = self._class_tower
        if tower is None or needs.convolutions or needs.beyond("stages", "features", "class_logits"):
            return self.head(features, image_size, targets)
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        anchors = self._anchors(sizes, image_size, features[0].device)
        record = Outputs(stages=[], features=list(features), anchors=anchors)
        levels = range(len(features)) if needs.levels is None else needs.levels
        anchors_per_cell = self._anchor_generator.num_anchors_per_location()[0]
        flat = tower([features[level] for level in levels])
        found = iter(unflatten_levels(flat, [sizes[level] for level in levels], anchors_per_cell))
        zero = flat.new_zeros(())  # expanded, it owns no memory
        return replace(
            record,
            class_logits=[
                next(found) if level in levels else zero.expand(len(flat), *size, anchors_per_cell, flat.shape[-1])
                for level, size in enumerate(sizes)
            ],
        )

    @property
    def _class_tower(self) -> Callable[[list[Tensor]], Tensor] | None:
        """The part of the head that computes class logits (N, R, K) from levels; None: there is no such part."""
        return None

    def tower_maps(self, outputs: Outputs, convolution: int) -> TowerMaps:
        """Return the feature maps inside the head's two towers; see :meth:`.Detector.tower_maps`."""
        if convolution in outputs.tower_maps:
            return outputs.tower_maps[convolution]
        starts = [halves(tower, convolution)[0] for tower in self._towers]
        return TowerMaps(*([start(feature) for feature in outputs.features] for start in starts))

    def head_from(self, tower_maps: TowerMaps, convolution: int, outputs: Outputs) -> Outputs:
        """Run the end of the head on other maps; see :meth:`.Detector.head_from`."""
        with entered(self._towers, convolution, tower_maps):
            return replace(outputs, tower_maps={}, **self._predictions(outputs.features))

    @property
    def _towers(self) -> Towers:
        head = self.network.head
        return head.classification_head.conv, head.regression_head.conv

    def _predictions(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Run the head, and lay out its outputs by the names of the record."""
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        anchors_per_cell = self._anchor_generator.num_anchors_per_location()[0]
        raw = self.head_outputs(list(features))
        return {
            "class_logits": unflatten_levels(raw["cls_logits"], sizes, anchors_per_cell),
            "box_raw": unflatten_levels(raw["bbox_regression"], sizes, anchors_per_cell),
            "extra": self._extra(raw),
        }

    def head_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Run the head: ``cls_logits`` (N, R, K), ``bbox_regression`` (N, R, D), and further outputs of the family."""
        return self.network.head(features)

    def boxes_at(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Decode box outputs (P, D) at anchors (P, 4), one by one: (P, 4)."""
        return self._box_coder.decode_single(raw, anchors)

    @property
    def _box_coder(self) -> Any:
        return self.network.box_coder

    def scored(self, raw: Mapping[str, Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor] | None]:
        """Compute the scores by which detections are chosen.

        Args:
            raw: the head's outputs by name, each level (N, R_l, X).

        Returns:
            Per level the scores (N, R_l, K), to which the score threshold applies, and the qualities (N, R_l) that the
            scores of the chosen candidates are multiplied by; None if there are none.
        """
        return [logits.sigmoid() for logits in raw["cls_logits"]], None

    def anchor_steps(self, stride: int, level_size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the distance between the anchors of neighbouring cells of a level, in pixels, down and across.

        Args:
            stride: the level's.
            level_size: height and width in cells.
            image_size: height and width of the padded batch in pixels.
        """
        if not isinstance(self._anchor_generator, AnchorGenerator):
            return stride, stride
        # torchvision divides the image's size by the number of cells, which is not the stride at coarse levels.
        return image_size[0] // level_size[0], image_size[1] // level_size[1]

    @property
    def _anchor_generator(self) -> Any:
        return self.network.anchor_generator

    def _extra(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def detect(self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Apply score threshold, best candidates per level, NMS, best overall; see :meth:`.Detector.detect`."""
        return self.network.postprocess_detections(
            self._per_level(outputs), [flat_anchors(outputs)] * len(image_sizes), [tuple(size) for size in image_sizes]
        )

    def _per_level(self, outputs: Outputs) -> dict[str, list[Tensor]]:
        """Lay out the record as the network does: by its own names, each level (N, H * W * A, X), in float32."""
        return {
            "cls_logits": [logits.flatten(1, 3).float() for logits in outputs.class_logits],
            "bbox_regression": [box.flatten(1, 3).float() for box in outputs.box_raw],
        }

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Compute the losses of the network's own head by name."""
        raw = {name: torch.cat(levels, dim=1) for name, levels in self._per_level(outputs).items()}
        anchors = torch.cat(flat_anchors(outputs))
        return self.network.head.compute_loss(list(targets), raw, [anchors] * len(targets), list(gt_index))

    def compile_layers(self) -> None:
        """Compile backbone and neck; see :meth:`.Detector.compile_layers`."""
        backbone = self.network.backbone
        for part in (backbone.body, backbone.fpn) if self._has_neck else (backbone,):
            part.compile()

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
        # The generator reads shapes, dtype and device alone, so it gets shapes that own no memory. Always float32:
        # under autocast the features are bfloat16, in which a coordinate above 256 is off by pixels.
        nothing = torch.empty((), device=device)
        batch = ImageList(nothing.expand(1, 1, *image_size), [image_size])
        flat = self._anchor_generator(batch, [nothing.expand(1, 1, *size) for size in level_sizes])[0]
        per_cell = self._anchor_generator.num_anchors_per_location()[0]
        return [level[0] for level in unflatten_levels(flat[None], level_sizes, per_cell)]

    def lay_anchors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Lay the network's own anchors; see :meth:`.Detector.lay_anchors`."""
        height, width = image_size
        sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.spec.strides]
        return self._anchors(sizes, image_size, torch.device("cpu"))

    def _measured(self, outputs: Outputs) -> dict[str, Any]:
        """Measure the channels of the head's towers."""
        try:
            return {"tower_channels": tower_channels(self._towers)}
        except AttributeError:  # a head without two towers
            return {}
