"""Boxes of a record: decoded from what the heads emit, compared in pairs, and picked where there is an object."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from understudy.errors import UserError
from understudy.functional.precision import at_least_float32
from understudy.outputs import Outputs, Spec, Truth

LARGEST_GROWTH = math.log(1000 / 16)
"""A side grows at most by a factor of 62.5 from its anchor's: the limit of torchvision's and mmdet's coders."""


def decode(outputs: Outputs, spec: Spec) -> list[Tensor]:
    """Compute the box of every anchor from the record alone, whatever the heads emit.

    The same as :meth:`.Detector.decode`, except that mmdet's coder also limits how far a side shrinks.

    Args:
        outputs: the record.
        spec: of the detector it is from; of a reduced record, the reduced one.

    Returns:
        Per level (N, H, W, A, 4), xyxy in pixels of the padded batch.

    Raises:
        UserError: the detector's box code is none of these.
    """
    levels = zip(outputs.box_raw, outputs.anchors, spec.strides, strict=True)
    return [decode_level(raw, anchors, stride, spec.box_code) for raw, anchors, stride in levels]


def decode_level(raw: Tensor, anchors: Tensor, stride: float, box_code: str) -> Tensor:
    """Decode boxes of one level.

    Args:
        raw: (..., D), as the head emits them.
        anchors: (..., 4) xyxy in pixels, of a shape that broadcasts with it.
        stride: pixels per cell of the level.
        box_code: what the D numbers are; see :class:`understudy.outputs.Spec`.

    Returns:
        (..., 4), xyxy in pixels.

    Raises:
        UserError: the box code is unknown.
    """
    raw = at_least_float32(raw)
    low, high = anchors.chunk(2, dim=-1)
    centre, size = (low + high) / 2, high - low
    if box_code == "deltas":
        shift, growth = raw.chunk(2, dim=-1)
        middle, half = centre + shift * size, size * growth.clamp(max=LARGEST_GROWTH).exp() / 2
        return torch.cat([middle - half, middle + half], dim=-1)
    if box_code == "distances in pixels":
        distances = raw
    elif box_code == "distances in strides":
        distances = raw * torch.cat([size, size], dim=-1)  # such an anchor is one cell large
    elif box_code == "distributions":
        distances = expected_distances(raw) * stride
    else:
        raise UserError(
            'a box_code is "deltas", "distances in strides", "distances in pixels" or "distributions", '
            f"got {box_code!r}."
        )
    before, after = distances.chunk(2, dim=-1)
    return torch.cat([centre - before, centre + after], dim=-1)


def expected_distances(raw: Tensor) -> Tensor:
    """Turn the distribution of each side over the distances 0, 1, ..., n into its expectation.

    GFL (Li et al., NeurIPS 2020), Eq. 5.

    Args:
        raw: (..., 4 * (n + 1)) logits: left, top, right, bottom.

    Returns:
        (..., 4), 0 to n.
    """
    shares = raw.unflatten(-1, (4, -1)).softmax(-1)
    return (shares * torch.arange(shares.shape[-1], device=raw.device)).sum(-1)  # no matmul: autocast rounds it


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the IoU of each box (..., 4) with the other at the same place: (...), 0 to 1."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-7)


def paired_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the generalised IoU (Rezatofighi et al., CVPR 2019) of each box with the other at its place: -1 to 1."""
    return 1 - generalized_box_iou_loss(boxes, others)


@dataclass(frozen=True, slots=True)
class Places:
    """Some of a batch's anchors, P of all levels and images: where to read a record.

    Attributes:
        levels: per level the images and the anchors' places within the level, (P_l,) each.
    """

    levels: tuple[tuple[Tensor, ...], ...]

    def of(self, levels: Sequence[Tensor]) -> Tensor:
        """Read what every anchor of every image has, levels (N, H, W, A, X), at these places: (P, X)."""
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
            decode_level(raw.flatten(1, 3)[image, place], anchors.flatten(0, 2)[place], stride, spec.box_code)
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
    return per_anchor.split([math.prod(logits.shape[1:4]) for logits in outputs.class_logits], dim=1)


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
