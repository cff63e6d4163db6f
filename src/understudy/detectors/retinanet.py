"""RetinaNet (Lin et al., ICCV 2017), opened over torchvision's class."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from understudy.detectors.base import Detector
from understudy.outputs import Outputs, Target


class RetinaNetDetector(Detector):
    """A torchvision ``RetinaNet`` that returns the record; ``box_raw`` are deltas, assignment is by its IoU matcher."""

    family = "retinanet"
    box_code = "deltas"

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by IoU, with the network's own thresholds; see :meth:`Detector.assign`."""
        anchors = torch.cat([anchors.flatten(0, 2) for anchors in outputs.anchors])
        gt_index = anchors.new_full((len(targets), len(anchors)), -1, dtype=torch.int64)
        for row, target in zip(gt_index, targets, strict=True):
            if len(target["boxes"]):
                row.copy_(self.network.proposal_matcher(box_iou(target["boxes"], anchors)))
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Focal and L1 loss, each summed over an image, divided by its positives, averaged over images."""
        return self._library_loss(outputs, targets, gt_index)

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Apply the deltas to the anchors; see :meth:`Detector.decode`."""
        coder = self.network.head.regression_head.box_coder
        return [
            coder.decode_single(raw.reshape(-1, 4).float(), anchors.expand_as(raw).reshape(-1, 4)).view(raw.shape)
            for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
        ]


class MMDetRetinaNetDetector(RetinaNetDetector):
    """A :class:`.plain.mmdet.MMDetRetinaNet` that returns the record."""

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by IoU; those outside an image's own padding are ignored. See :meth:`Detector.assign`."""
        levels = [anchors.flatten(0, 2) for anchors in outputs.anchors]
        return torch.stack(self.network.assign(levels, targets, outputs.image_sizes))

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Focal and L1 loss of the batch; see :meth:`.plain.mmdet.MMDetRetinaNetHead.compute_loss`."""
        return self._library_loss(outputs, targets, gt_index)
