"""The record between detectors and methods: read this file first.

A detector returns one record, the same in ``train()`` and ``eval()``; a distillation method reads two of them. Neither
knows the other, so D detectors and M methods need D + M pieces of code, never D x M.

Letters used in every shape of this package::

    N images of a batch         C channels              H x W cells of one level
    A anchors per cell          K classes, no background
    D numbers per box           R = sum of H * W * A over the levels
    M objects of one image      L levels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Target = dict[str, Tensor]
"""Ground truth of one image: ``boxes`` (M, 4) xyxy in pixels of the padded batch, ``labels`` (M,) int64 in 0..K-1."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a detector before it has seen an image; methods are built, and refused, from two of these.

    Attributes:
        channels: channels C of the neck outputs, one per level, fine to coarse.
        strides: pixels per cell of the neck outputs.
        num_anchors: anchors A per cell.
        num_classes: classes K, without background.
        box_size: numbers D per box: 4, or ``4 * (reg_max + 1)`` where sides are distributions.
        box_code: what these numbers are: ``"deltas"`` to the anchor, ``"distances in strides"`` or ``"distances in
            pixels"`` from the cell to the four sides, ``"distributions"`` over distances in strides.
        objectness: the class logits, of which there is one, only say whether there is an object (an RPN's).
        stage_channels: channels of the backbone outputs.
        stage_strides: pixels per cell of the backbone outputs.
        tower_channels: channels after each convolution of the head's two towers, which are alike; none where the head
            is built otherwise.
        first_anchors: the A anchors of the first cell of every level, xyxy in pixels: their sizes, and where in a cell
            they lie; empty where they are not known.
        family: the kind of detector, e.g. ``"retinanet"``; published weights are looked up by it.
        name: what messages call it, e.g. ``"retinanet_resnet50"``.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_anchors: int
    num_classes: int
    box_size: int = 4
    box_code: str = "deltas"
    objectness: bool = False
    stage_channels: tuple[int, ...] = ()
    stage_strides: tuple[int, ...] = ()
    tower_channels: tuple[int, ...] = ()
    first_anchors: tuple[tuple[tuple[float, ...], ...], ...] = ()
    family: str = "detector"
    name: str = "detector"

    @property
    def scored(self) -> str:
        """What the class logits are scores of, in words."""
        return "objectness" if self.objectness else f"{self.num_classes} class{'' if self.num_classes == 1 else 'es'}"


@dataclass(frozen=True, slots=True)
class TowerMaps:
    """Maps inside the two towers of a head, all after the convolution of the same number, before the activation.

    Attributes:
        classes: of the tower of the classes, each level (N, C, H, W), fine to coarse.
        boxes: of the tower of the boxes, likewise.
    """

    classes: list[Tensor]
    boxes: list[Tensor]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a detector computes for a batch, level by level, fine to coarse.

    Attributes:
        stages: backbone outputs, each (N, C, H, W).
        features: neck outputs, each (N, C, H, W).
        class_logits: each (N, H, W, A, K), before sigmoid or softmax.
        box_raw: each (N, H, W, A, D), as the head emits them.
        anchors: each (H, W, A, 4), xyxy in pixels of the padded batch; the same for every image.
        extra: what one family has beside, e.g. FCOS' ``centerness`` (N, R), as logits.
        image_sizes: height and width in pixels of each image without its padding; None: no image is padded.
        tower_maps: maps inside the head, by number of the convolution; those that the detector was asked to keep
            (:meth:`.Detector.keeping`), which by default is none. Not in a part of a record.
    """

    stages: list[Tensor]
    features: list[Tensor]
    class_logits: list[Tensor]
    box_raw: list[Tensor]
    anchors: list[Tensor]
    extra: dict[str, Tensor] = field(default_factory=dict)
    image_sizes: tuple[tuple[int, int], ...] | None = None
    tower_maps: dict[int, TowerMaps] = field(default_factory=dict)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width in cells of every level."""
        return [(feature.shape[-2], feature.shape[-1]) for feature in self.features]

    def of_images(self, images: Sequence[int]) -> "Outputs":
        """The record of some of the N images, by their places in the batch; views where they are its first ones."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[: len(images)] if list(images) == list(range(len(images))) else tensor[list(images)]

        return Outputs(
            stages=[chosen(stage) for stage in self.stages],
            features=[chosen(feature) for feature in self.features],
            class_logits=[chosen(logits) for logits in self.class_logits],
            box_raw=[chosen(raw) for raw in self.box_raw],
            anchors=self.anchors,
            extra={name: chosen(value) for name, value in self.extra.items()},
            image_sizes=None if self.image_sizes is None else tuple(self.image_sizes[image] for image in images),
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth beside two records.

    Attributes:
        targets: one :data:`Target` per image.
        gt_index: (N, R) int64, the student's assignment: number of the object, -1 background, -2 ignored. Of an
            unlabelled image all are ignored.
        left_out: per image the boxes (X, 4) of the objects that are not among the targets, since the teacher does not
            know their classes: what lies there is neither an object to compare nor background. Empty: there are none.
    """

    targets: Sequence[Target]
    gt_index: Tensor
    left_out: Sequence[Tensor] = ()

    @property
    def labelled(self) -> Tensor:
        """Which images have a ground truth, (N,) bool; what stands in the others is not known."""
        return (self.gt_index > -2).any(1)


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Join levels (N, H, W, A, X) to (N, R, X), in the order level, row, column, anchor."""
    return torch.cat([level.flatten(1, 3) for level in levels], dim=1)


def unflatten_levels(flat: Tensor, level_sizes: Sequence[tuple[int, int]], num_anchors: int) -> list[Tensor]:
    """Split (N, R, X) into views (N, H, W, A, X), one per level; the inverse of :func:`flatten_levels`.

    Raises:
        ValueError: R is not the number of anchors of these levels.
    """
    counts = [height * width * num_anchors for height, width in level_sizes]
    if flat.shape[1] != sum(counts):
        raise ValueError(
            f"expected {sum(counts)} anchors ({num_anchors} per cell of the levels {list(level_sizes)}), "
            f"got {flat.shape[1]} in a tensor of shape {tuple(flat.shape)}"
        )
    return [
        part.unflatten(1, (height, width, num_anchors))
        for part, (height, width) in zip(flat.split(counts, dim=1), level_sizes, strict=True)
    ]
