"""Boxes of a record: decoded from the raw outputs of the heads, and selected at anchors with an object."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.functional.precision import at_least_float32
from understudy.networks.geometry import boxes_around, centres, integral
from understudy.outputs import Outputs, Spec, Truth, anchors_per_level

LARGEST_GROWTH = math.log(1000 / 16)
"""A side grows at most by a factor of 62.5 from its anchor's: the limit of torchvision's and mmdet's coders."""


@dataclass(frozen=True, slots=True)
class BoxCode:
    """How a head's raw box outputs encode a box.

    Attributes:
        decode: computes boxes (..., 4), xyxy in pixels, from raw outputs (..., D), anchors (..., 4) and the stride of
            the level in pixels.
        anchored: the code is relative to the size of an anchor, so raw outputs of two detectors mean the same only at
            anchors of the same size.
        distributed: each side is a distribution, ``D = 4 * (n + 1)`` logits, instead of a number.
        in_pixels: raw outputs are pixels.
    """

    decode: Callable[[Tensor, Tensor, float], Tensor]
    anchored: bool = False
    distributed: bool = False
    in_pixels: bool = False


def _decode_deltas(raw: Tensor, anchors: Tensor, stride: float) -> Tensor:
    low, high = anchors.chunk(2, dim=-1)
    centre, size = (low + high) / 2, high - low
    shift, growth = raw.chunk(2, dim=-1)
    middle, half = centre + shift * size, size * growth.clamp(max=LARGEST_GROWTH).exp() / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def _decode_strides(raw: Tensor, anchors: Tensor, stride: float) -> Tensor:
    low, high = anchors.chunk(2, dim=-1)
    size = high - low  # such an anchor is one cell large
    return _around(anchors, raw * torch.cat([size, size], dim=-1))


def _decode_pixels(raw: Tensor, anchors: Tensor, stride: float) -> Tensor:
    return _around(anchors, raw)


def _decode_distributions(raw: Tensor, anchors: Tensor, stride: float) -> Tensor:
    return _around(anchors, integral(raw) * stride)


def _around(anchors: Tensor, distances: Tensor) -> Tensor:
    return boxes_around(centres(anchors), distances)


BOX_CODES: dict[str, BoxCode] = {
    "deltas": BoxCode(_decode_deltas, anchored=True),
    "distances in strides": BoxCode(_decode_strides),
    "distances in pixels": BoxCode(_decode_pixels, in_pixels=True),
    "distributions": BoxCode(_decode_distributions, distributed=True),
}
"""Every box code by its name in :attr:`.Spec.box_code`. A detector with another code adds it here."""


def box_code(spec: Spec) -> BoxCode:
    """Return the box code of a detector.

    Raises:
        UserError: it is not in :data:`BOX_CODES`.
    """
    if spec.box_code not in BOX_CODES:
        raise UserError(
            f"{spec.name} has the unknown box code {spec.box_code!r}; expected {', '.join(map(repr, BOX_CODES))}. "
            "Add an entry to understudy.boxes.BOX_CODES."
        )
    return BOX_CODES[spec.box_code]


def decode(outputs: Outputs, spec: Spec) -> list[Tensor]:
    """Decode the box of every anchor from the record alone.

    The result equals :meth:`.Detector.decode`, except that mmdet's coder also limits how far a side shrinks.

    Args:
        outputs: the record.
        spec: of the detector that computed it; of a reduced record, the reduced Spec.

    Returns:
        Per level (N, H, W, A, 4), xyxy in pixels of the padded batch.

    Raises:
        UserError: the detector's box code is unknown.
    """
    if outputs.boxes:
        return outputs.boxes
    levels = zip(outputs.box_raw, outputs.anchors, spec.strides, strict=True)
    return [decode_level(raw, anchors, stride, spec) for raw, anchors, stride in levels]


def decode_level(raw: Tensor, anchors: Tensor, stride: float, spec: Spec) -> Tensor:
    """Decode boxes of one level.

    Args:
        raw: (..., D), as the head emits them.
        anchors: (..., 4) xyxy in pixels, of a shape that broadcasts with it.
        stride: pixels per cell of the level.
        spec: of the detector; its ``box_code`` defines the D numbers.

    Returns:
        (..., 4), xyxy in pixels.

    Raises:
        UserError: the box code is unknown.
    """
    return box_code(spec).decode(at_least_float32(raw), anchors, stride)


def in_strides(outputs: Outputs, spec: Spec) -> list[Tensor]:
    """Scale the raw boxes of every box code to about the same size, as needed by one smooth L1 loss for all (ours).

    Args:
        outputs: the record.
        spec: of the detector.

    Returns:
        Per level (N, H, W, A, D), as the head emits them; pixels divided by the level's stride.
    """
    if not box_code(spec).in_pixels:
        return list(outputs.box_raw)
    return [level / stride for level, stride in zip(outputs.box_raw, spec.strides, strict=True)]


@dataclass(frozen=True, slots=True)
class Places:
    """The places of P anchors of a batch, of any level and image, at which a record is read.

    Attributes:
        levels: per level the images and the anchors' places within the level, (P_l,) each.
    """

    levels: tuple[tuple[Tensor, ...], ...]

    @property
    def per_level(self) -> list[int]:
        """The number of places on each level."""
        return [len(image) for image, _ in self.levels]

    def of(self, levels: Sequence[Tensor]) -> Tensor:
        """Read values of all anchors, levels (N, H, W, A, X), at these places: (P, X)."""
        pairs = zip(levels, self.levels, strict=True)
        return torch.cat([level.flatten(1, 3)[image, place] for level, (image, place) in pairs])

    def of_flat(self, per_anchor: Tensor, outputs: Outputs) -> Tensor:
        """Read (N, R), in the order level, row, column, anchor, at these places: (P,)."""
        parts = zip(split_levels(per_anchor, outputs), self.levels, strict=True)
        return torch.cat([part[image, place] for part, (image, place) in parts])

    def boxes(self, outputs: Outputs, spec: Spec) -> Tensor:
        """Decode the boxes at these places, and no others: (P, 4), as :func:`decode`."""
        levels = zip(outputs.box_raw, outputs.anchors, spec.strides, self.levels, strict=True)
        decoded = [
            decode_level(raw.flatten(1, 3)[image, place], anchors.flatten(0, 2)[place], stride, spec)
            for raw, anchors, stride, (image, place) in levels
        ]
        return torch.cat(decoded)


@dataclass(frozen=True, slots=True)
class Positives(Places):
    """The anchors that are assigned to an object.

    Attributes:
        objects: (P,) the number of each one's object among the M objects of the whole batch.
        true_boxes: (P, 4) that object's box, xyxy in pixels.
        labels: (P,) that object's class.
        image: (M,) the image of each object of the batch.
        counts: objects of each image.
    """

    objects: Tensor
    true_boxes: Tensor
    labels: Tensor
    image: Tensor
    counts: tuple[int, ...]


def split_levels(per_anchor: Tensor, outputs: Outputs) -> tuple[Tensor, ...]:
    """Split (N, R), in the order level, row, column, anchor, into the levels of a record."""
    return per_anchor.split(anchors_per_level(outputs), dim=1)


def chosen(mask: Tensor, outputs: Outputs) -> Places:
    """Find the anchors that a mask (N, R) chooses."""
    return Places(tuple(torch.where(part) for part in split_levels(mask, outputs)))


def positives(truth: Truth, outputs: Outputs) -> Positives:
    """Find the anchors that are assigned to an object, and their objects.

    Args:
        truth: ground truth and assignment.
        outputs: a record with the same levels and anchors per cell.
    """
    counts = tuple(len(target["boxes"]) for target in truth.targets)
    per_image = torch.tensor(counts, device=truth.gt_index.device)
    first = per_image.cumsum(0) - per_image
    places = chosen(truth.gt_index >= 0, outputs)
    objects = places.of_flat(truth.gt_index + first[:, None], outputs)
    return Positives(
        levels=places.levels,
        objects=objects,
        true_boxes=torch.cat([target["boxes"] for target in truth.targets])[objects],
        labels=torch.cat([target["labels"] for target in truth.targets])[objects],
        image=torch.arange(len(counts), device=per_image.device).repeat_interleave(per_image, output_size=sum(counts)),
        counts=counts,
    )
