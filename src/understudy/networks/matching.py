"""Matching of anchors to objects, by overlap or by ATSS.

Letters of the shapes: R anchors of all levels together, R_l of one level, M objects of an image.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from .geometry import centres, distances_to_sides, in_own_padding


class SizedTransform(GeneralizedRCNNTransform):
    """torchvision's resizing and padding; each target also gets ``image_size``, which matching needs."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Normalise, resize and pad images; ``image_size`` is height and width before padding."""
        batch, targets = super().forward(images, targets)
        if targets is not None:
            sized = zip(targets, batch.image_sizes, strict=True)
            targets = [{**target, "image_size": torch.tensor(size)} for target, size in sized]
        return batch, targets


@torch.no_grad()
def match_in_own_padding(
    match: Callable[[list[Tensor], Tensor], Tensor],
    anchors: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    image_sizes: Sequence[tuple[int, int]] | None,
) -> list[Tensor]:
    """Match the anchors inside each image's own padding to its objects; all others are ignored.

    Args:
        match: matches anchors of each level, (R_l, 4), to boxes (M, 4): (R,) int64, number of the object, -1
            background, -2 ignored.
        anchors: (R_l, 4) of each level, xyxy in pixels of the padded batch.
        targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.
        image_sizes: height and width of each image without padding, for :func:`.in_own_padding`. None: no image is
            padded.

    Returns:
        Per image (R,) int64, as `match` returns it.
    """
    matched = []
    for number, target in enumerate(targets):
        size = None if image_sizes is None else image_sizes[number]
        inside = [in_own_padding(level, size) for level in anchors]
        own = [level[mask] for level, mask in zip(anchors, inside, strict=True)]
        everywhere = torch.cat(inside)
        index = torch.full_like(everywhere, -2, dtype=torch.int64)
        index[everywhere] = match(own, target["boxes"])
        matched.append(index)
    return matched


class ForcedMatcher(Matcher):
    """Match anchors to objects by their IoU, as mmdet does: each object takes all anchors that overlap it most.

    torchvision's matcher lets such an anchor keep the object that it overlaps most itself. This one gives it to the
    object whose best anchor it is. Of several objects the last wins.

    Args:
        high_threshold: IoU from which an anchor is matched.
        low_threshold: IoU below which it is background; between the two it is ignored.
        least_overlap: an object takes its best anchors only if their IoU is at least this.
    """

    def __init__(self, high_threshold: float, low_threshold: float, least_overlap: float = 0.0):
        super().__init__(high_threshold, low_threshold, allow_low_quality_matches=False)
        self.least_overlap = least_overlap

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """Match anchors by their IoU (M, R): (R,) int64, number of the object, -1 background, -2 ignored."""
        index = super().__call__(match_quality_matrix)
        for number, (overlaps, best) in enumerate(
            zip(match_quality_matrix, match_quality_matrix.amax(dim=1), strict=True)
        ):
            if best >= self.least_overlap:
                index[overlaps == best] = number
        return index

    def match(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Match anchors (R_l, 4) of each level to boxes (M, 4): (R,) int64, as above."""
        flat = torch.cat(list(anchors))
        if not len(boxes):
            return flat.new_full((len(flat),), -1, dtype=torch.int64)
        return self(box_iou(boxes, flat))


@torch.no_grad()
def atss(anchors: Sequence[Tensor], boxes: Tensor, candidates: int = 9) -> Tensor:
    """Match anchors to objects by adaptive training sample selection.

    Zhang et al., CVPR 2020, Algorithm 1. The candidates of an object are the anchors of each level whose centres are
    nearest to its own. It takes the candidates that are centred inside it and whose IoU is at least the mean plus the
    standard deviation of its candidates' IoU. An anchor that several objects take goes to the one of highest IoU.

    Args:
        anchors: (R_l, 4) xyxy of each level.
        boxes: (M, 4) xyxy of the objects.
        candidates: of each object, per level; the paper's k.

    Returns:
        (R,) int64, number of the object, or -1 for background.
    """
    flat = torch.cat(list(anchors))
    if not len(boxes):
        return flat.new_full((len(flat),), -1, dtype=torch.int64)
    points = centres(flat)[:, None]
    distances = (points - centres(boxes)).square().sum(-1).sqrt()  # (R, M)
    nearest, start = [], 0
    for level in distances.split([len(level) for level in anchors]):
        nearest.append(start + level.topk(min(candidates, len(level)), dim=0, largest=False).indices)
        start += len(level)
    chosen = torch.cat(nearest)  # (candidates of all levels, M)

    overlaps = box_iou(flat, boxes).gather(0, chosen)
    inside = distances_to_sides(points, boxes).amin(-1).gather(0, chosen) > 0.01
    taken = inside & (overlaps >= overlaps.mean(0) + overlaps.std(0))

    claims = overlaps.new_full(distances.shape, -1.0).scatter(0, chosen, overlaps.where(taken, -1.0))
    highest, index = claims.max(dim=1)
    return index.masked_fill(highest < 0, -1)
