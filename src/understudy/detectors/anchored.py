"""Parts shared by detectors with anchors: torchvision's matching by overlap, and boxes from deltas."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from understudy.outputs import Outputs, Target, flat_anchors


@torch.no_grad()
def match_by_overlap(matcher: Callable[[Tensor], Tensor], outputs: Outputs, targets: Sequence[Target]) -> Tensor:
    """Match anchors to objects by IoU: (N, R) int64, number of the object, -1 background, -2 ignored.

    Args:
        matcher: torchvision's, with the network's thresholds.
        outputs: the record.
        targets: ground truth per image.
    """
    anchors = torch.cat(flat_anchors(outputs))
    gt_index = anchors.new_full((len(targets), len(anchors)), -1, dtype=torch.int64)
    for row, target in zip(gt_index, targets, strict=True):
        if len(target["boxes"]):
            row.copy_(matcher(box_iou(target["boxes"], anchors)))
    return gt_index


def apply_deltas(coder: Any, outputs: Outputs) -> list[Tensor]:
    """Apply raw deltas to the anchors by torchvision's box coder: per level (N, H, W, A, 4), xyxy in pixels."""
    return [
        coder.decode_single(raw.reshape(-1, 4).float(), anchors.expand_as(raw).reshape(-1, 4)).view(raw.shape)
        for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
    ]
