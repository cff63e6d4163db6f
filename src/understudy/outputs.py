"""The record between detectors and methods: read this file first.

A detector returns one record, the same in ``train()`` and ``eval()``. A distillation method reads two of them. Neither
imports the other, so D detectors and M methods need D + M pieces of code, never D x M.

Letters used in every shape of this package::

    N images of a batch         C channels              H x W cells of one level
    A anchors per cell          K classes, no background
    D numbers per box           R = sum of H * W * A over the levels
    M objects of one image      L levels                Q queries
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Target = dict[str, Tensor]
"""Ground truth of one image: ``boxes`` (M, 4) xyxy in pixels of the padded batch, ``labels`` (M,) int64 in 0..K-1."""


@dataclass(frozen=True, slots=True)
class Spec:
    """The facts about a detector that hold for every image. A method is built, or refused, from two of these.

    Every detector has features. Its predictions are dense (one for each anchor of each cell), a set (one for each
    query), or both.

    Attributes:
        channels: channels C of the neck's outputs, one per level, fine to coarse.
        strides: pixels per cell of the neck's outputs.
        num_anchors: anchors A per cell; 0 without dense predictions.
        num_classes: classes K, without background.
        box_size: numbers D per box: 4, or ``4 * (reg_max + 1)`` if each side is a distribution.
        box_code: encoding of these numbers, a key of :data:`understudy.boxes.BOX_CODES`.
        objectness: the only class score is that of an object of any class (an RPN's).
        stage_channels: channels of the backbone's outputs.
        stage_strides: pixels per cell of the backbone's outputs.
        assigns_by_anchors: its assignment of anchors to objects does not depend on its predictions.
        stage_relu: which of the backbone's outputs are without negative values, as after a ReLU (ResNet, RegNet, not
            MobileNet); empty if unknown.
        tower_channels: channels after each convolution of the head's two towers; empty for heads without two equal
            towers.
        first_anchors: the A anchors of the first cell of every level, xyxy in pixels; empty if unknown.
        two_stage: the dense predictions are proposals, and a second stage classifies them.
        points: dense predictions are made at points; their anchors have no size.
        centerness: ``extra["centerness"]`` of the record scores how central each anchor lies in its object.
        dense: the record has dense predictions.
        queries: queries Q of the record's set of predictions; 0 without a set.
        decoder_layers: decoder layers that predict the set; the last one is the result.
        scale: how many times as large as the batch its images are, see :func:`.with_larger_images`.
        family: the kind of detector, a key of :data:`understudy.detectors.families.FAMILIES`.
        default_weights: default weights that the family brings along: by method, then by term.
        name: the name in messages, e.g. ``"retinanet_resnet50"``.

    Examples:
        >>> spec = Spec(channels=(64, 64), strides=(8, 16), num_anchors=1, num_classes=3, name="small")
        >>> spec.scored
        '3 classes'
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
    assigns_by_anchors: bool = False
    stage_relu: tuple[bool, ...] = ()
    tower_channels: tuple[int, ...] = ()
    first_anchors: tuple[tuple[tuple[float, ...], ...], ...] = ()
    two_stage: bool = False
    points: bool = False
    centerness: bool = False
    dense: bool = True
    queries: int = 0
    decoder_layers: int = 0
    scale: int = 1
    family: str = "detector"
    default_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict, compare=False, repr=False)
    name: str = "detector"

    @property
    def scored(self) -> str:
        """The classes that the class logits score, in words."""
        return "objectness" if self.objectness else f"{self.num_classes} class{'' if self.num_classes == 1 else 'es'}"

    @property
    def predictions(self) -> str:
        """The kind of its predictions, in words."""
        kinds = ["dense predictions"] if self.dense else []
        kinds += [f"a set of {self.queries} queries"] if self.queries else []
        return " and ".join(kinds) or "no predictions"


@dataclass(frozen=True, slots=True)
class TowerMaps:
    """Feature maps inside the two towers of a head: the outputs of the same convolution, before the activation.

    Attributes:
        classes: of the class tower, each level (N, C, H, W), fine to coarse.
        boxes: of the box tower, likewise.
    """

    classes: list[Tensor]
    boxes: list[Tensor]


@dataclass(frozen=True, slots=True)
class QueryOutputs:
    """A set of predictions: Q per image, from every decoder layer.

    Attributes:
        class_logits: per decoder layer (N, Q, K), before sigmoid or softmax; the last layer is the result.
        boxes: per decoder layer (N, Q, 4), xyxy in pixels of the padded batch.
    """

    class_logits: list[Tensor]
    boxes: list[Tensor]


@dataclass(frozen=True, slots=True)
class Origin:
    """How a record was computed; the learner recognises mistakes by it.

    Attributes:
        pixels: (N, 3, h, w), a few pixels of each image as the detector got it; h and w are below 2 * PIXELS.
        training: whether the detector was in ``train()``.
    """

    pixels: Tensor
    training: bool

    @classmethod
    def of(cls, images: Tensor, training: bool) -> "Origin":
        """Describe the record of images (N, 3, H, W)."""
        rows, columns = (max(1, side // PIXELS) for side in images.shape[-2:])
        return cls(images.detach()[..., ::rows, ::columns].clone(), training)


PIXELS = 8
"""Rows and columns of pixels that an origin has at least, of images that have as many."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The result of a detector for a batch, level by level, fine to coarse.

    Attributes:
        stages: backbone outputs, each (N, C, H, W).
        features: neck outputs, each (N, C, H, W).
        class_logits: dense class scores before sigmoid or softmax, each (N, H, W, A, K); empty without dense
            predictions, as are ``box_raw`` and ``anchors``.
        box_raw: dense box outputs, each (N, H, W, A, D), as the head emits them.
        anchors: each (H, W, A, 4), xyxy in pixels of the padded batch; the same for every image.
        extra: further outputs of one family, e.g. FCOS' ``centerness`` (N, R), as logits.
        size: height and width in pixels of the padded batch; None: not stated.
        image_sizes: height and width in pixels of each image without its padding; None: no image is padded.
        tower_maps: feature maps inside the head, by number of the convolution. Only those that
            :meth:`.Detector.keeping` was asked for; none in a reduced record.
        queries: the set of predictions; None for a detector without one.
        origin: how the record was computed; None: not stated.
        boxes: decoded dense boxes, each (N, H, W, A, 4) xyxy in pixels of the padded batch, if they do not follow from
            ``box_raw``; else empty.
    """

    stages: list[Tensor]
    features: list[Tensor]
    class_logits: list[Tensor] = field(default_factory=list)
    box_raw: list[Tensor] = field(default_factory=list)
    anchors: list[Tensor] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    image_sizes: tuple[tuple[int, int], ...] | None = None
    tower_maps: dict[int, TowerMaps] = field(default_factory=dict)
    queries: QueryOutputs | None = None
    origin: Origin | None = None
    boxes: list[Tensor] = field(default_factory=list)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width in cells of every level."""
        return [(feature.shape[-2], feature.shape[-1]) for feature in self.features]

    @property
    def images(self) -> int | None:
        """Number N of images; None for a record that holds nothing of them."""
        held = [*self.stages[:1], *self.features[:1], *([self.origin.pixels] if self.origin else [])]
        return len(held[0]) if held else None

    def of_images(self, images: Sequence[int]) -> "Outputs":
        """Return the record of some of the N images, by their position in the batch; views if they are the first."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[: len(images)] if list(images) == list(range(len(images))) else tensor[list(images)]

        def all_chosen(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [chosen(tensor) for tensor in tensors]

        queries, origin = self.queries, self.origin
        return Outputs(
            stages=all_chosen(self.stages),
            features=all_chosen(self.features),
            class_logits=all_chosen(self.class_logits),
            box_raw=all_chosen(self.box_raw),
            anchors=self.anchors,
            extra={name: chosen(value) for name, value in self.extra.items()},
            size=self.size,
            image_sizes=None if self.image_sizes is None else tuple(self.image_sizes[image] for image in images),
            queries=queries and QueryOutputs(all_chosen(queries.class_logits), all_chosen(queries.boxes)),
            origin=origin and Origin(chosen(origin.pixels), origin.training),
            boxes=all_chosen(self.boxes),
        )


@dataclass(frozen=True, slots=True)
class Needs:
    """The part of a teacher's record that is read; a detector computes no other (:meth:`.Detector.forward`).

    The shapes, sizes and origin of the batch are in every record.

    Attributes:
        parts: of :class:`Outputs`: ``stages``, ``features``, ``class_logits``, ``box_raw``, ``extra``, ``queries``.
            None: all. Class logits and boxes come with their anchors.
        levels: positions of the neck's levels whose class logits are read; None: all. The others may be zeros.
        convolutions: numbers of the convolutions whose maps inside the head are kept (:meth:`.Detector.keeping`).
    """

    parts: frozenset[str] | None = None
    levels: tuple[int, ...] | None = None
    convolutions: tuple[int, ...] = ()

    def beyond(self, *parts: str) -> bool:
        """Return whether any other part than these is read."""
        return self.parts is None or bool(self.parts.difference(parts))

    @classmethod
    def union(cls, needs: "Sequence[Needs]") -> "Needs":
        """Return what serves all of several readers."""
        parts, levels = [each.parts for each in needs], [each.levels for each in needs]
        return cls(
            None if None in parts else frozenset(part for each in parts for part in each or ()),
            None if None in levels else tuple(sorted({level for each in levels for level in each or ()})),
            tuple(sorted({number for each in needs for number in each.convolutions})),
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth of two records.

    Attributes:
        targets: one :data:`Target` per image.
        gt_index: (N, R) int64, the student's assignment of its anchors: number of the object, -1 background,
            -2 ignored. For a student without dense predictions (N, Q), of its queries. All are ignored in an
            unlabelled image.
        left_out: per image the boxes (X, 4) of the objects whose classes the teacher does not have. They are not among
            the targets, and their places are neither object nor background. Empty: there are none.
    """

    targets: Sequence[Target]
    gt_index: Tensor
    left_out: Sequence[Tensor] = ()

    @property
    def labelled(self) -> Tensor:
        """Which images have a ground truth, (N,) bool."""
        return (self.gt_index > -2).any(1)


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Join levels (N, H, W, A, X) to (N, R, X), in the order level, row, column, anchor.

    Examples:
        >>> flatten_levels([torch.zeros(1, 4, 6, 2, 3), torch.zeros(1, 2, 3, 2, 3)]).shape
        torch.Size([1, 60, 3])
    """
    return torch.cat([level.flatten(1, 3) for level in levels], dim=1)


def flat_anchors(outputs: Outputs) -> list[Tensor]:
    """Return the anchors of every level (H * W * A, 4), in the order row, column, anchor."""
    return [anchors.flatten(0, 2) for anchors in outputs.anchors]


def anchors_per_level(outputs: Outputs) -> list[int]:
    """Count the anchors of every level; R is their sum."""
    return [math.prod(level.shape[:3]) for level in outputs.anchors]


def unflatten_levels(flat: Tensor, level_sizes: Sequence[tuple[int, int]], num_anchors: int) -> list[Tensor]:
    """Split (N, R, X) into views (N, H, W, A, X), one per level; the inverse of :func:`flatten_levels`.

    Raises:
        ValueError: R is not the number of anchors of these levels.

    Examples:
        >>> [level.shape for level in unflatten_levels(torch.zeros(1, 10, 3), [(2, 4), (1, 2)], num_anchors=1)]
        [torch.Size([1, 2, 4, 1, 3]), torch.Size([1, 1, 2, 1, 3])]
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
