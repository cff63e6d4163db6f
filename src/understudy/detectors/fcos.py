"""FCOS (Tian et al., ICCV 2019), opened over torchvision's class."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS

from understudy.detectors.base import Detector
from understudy.detectors.dense import DenseDetector
from understudy.networks.fcos import MMDetFCOS
from understudy.outputs import Outputs, Target


class FCOSDetector(DenseDetector):
    """Open a torchvision ``FCOS``.

    ``box_raw`` are distances to the four sides in strides, ``extra["centerness"]`` (N, R) the centre-ness logits.
    """

    family = "fcos"
    box_code = "distances in strides"

    def _extra(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"centerness": raw["bbox_ctrness"].squeeze(-1)}

    def _library_extra(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"ctrness": outputs.extra["centerness"]}

    def _per_level(self, outputs: Outputs) -> dict[str, list[Tensor]]:
        counts = [math.prod(logits.shape[1:4]) for logits in outputs.class_logits]
        centerness = outputs.extra["centerness"].float().unsqueeze(-1)
        return {**super()._per_level(outputs), "bbox_ctrness": list(centerness.split(counts, dim=1))}

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match points to objects as torchvision does; see :meth:`Detector.assign`.

        A point belongs to an object if it lies inside its box, near its centre (centre sampling), and the farthest
        side is within the range of the point's level: 4 to 8 strides, open at the finest and the coarsest level. Of
        several objects the smallest wins.
        """
        anchors = torch.cat([anchors.flatten(0, 2) for anchors in outputs.anchors])
        points = (anchors[:, :2] + anchors[:, 2:]) / 2
        strides = anchors[:, 2] - anchors[:, 0]
        nearest, farthest = strides * 4, strides * 8
        nearest[: math.prod(outputs.anchors[0].shape[:3])] = 0
        farthest[-math.prod(outputs.anchors[-1].shape[:3]) :] = float("inf")

        gt_index = anchors.new_full((len(targets), len(anchors)), -1, dtype=torch.int64)
        for row, target in zip(gt_index, targets, strict=True):
            boxes = target["boxes"]
            if not len(boxes):
                continue
            low, high = boxes[None, :, :2], boxes[None, :, 2:]
            sides = torch.cat([points[:, None] - low, high - points[:, None]], dim=-1)  # (R, M, 4)
            off_centre = (points[:, None] - (low + high) / 2).abs().amax(-1)
            reach = sides.amax(-1)
            matches = (
                (sides.amin(-1) > 0)
                & (off_centre < self.network.center_sampling_radius * strides[:, None])
                & (reach > nearest[:, None])
                & (reach < farthest[:, None])
            )
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            # torchvision prefers small objects by 1e8 - area in float32; the same arithmetic gives the same ties.
            preference, index = (matches * (1e8 - areas)).max(dim=1)
            row.copy_(index.masked_fill(preference < 1e-5, -1))
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Focal, GIoU and centre-ness loss, each summed over the batch and divided by the positives of the batch."""
        return self._library_loss(outputs, targets, gt_index)

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Lay the distances around each point; see :meth:`Detector.decode`."""
        return [
            self.network.box_coder.decode(raw.float(), anchors)
            for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
        ]


class MMDetFCOSDetector(FCOSDetector):
    """Open a :class:`.MMDetFCOS`. ``box_raw`` are distances in pixels."""

    box_code = "distances in pixels"

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match points to objects by :meth:`.MMDetFCOS.assign`; see :meth:`Detector.assign`."""
        levels = [anchors.flatten(0, 2) for anchors in outputs.anchors]
        return torch.stack(self.network.assign(levels, targets))

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Focal, IoU and centre-ness loss of the batch; see :meth:`.MMDetFCOSHead.compute_loss`."""
        return self._library_loss(outputs, targets, gt_index)


OPENERS: dict[type[nn.Module], type[Detector]] = {
    MMDetFCOS: MMDetFCOSDetector,
    FCOS: FCOSDetector,
}
"""The detector class for each class of plain network, subclasses first."""
