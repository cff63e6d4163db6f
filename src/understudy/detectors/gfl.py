"""GFL (Li et al., NeurIPS 2020), opened over the plain network of :mod:`understudy.networks.gfl`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy.detectors.base import Detector
from understudy.detectors.dense import DenseDetector
from understudy.networks.gfl import GFL
from understudy.outputs import Outputs, Target


class GFLDetector(DenseDetector):
    """Open a :class:`.GFL`.

    ``class_logits`` score class and quality of the box jointly; ``box_raw`` are the logits of ``reg_max + 1`` distances
    in strides for each side: left, top, right, bottom.
    """

    family = "gfl"
    box_code = "distributions"

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by ATSS; those outside an image's own padding are ignored. See :meth:`Detector.assign`."""
        levels = [anchors.flatten(0, 2) for anchors in outputs.anchors]
        return torch.stack(self.network.assign(levels, targets, outputs.image_sizes))

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Quality focal, GIoU and distribution focal loss of the batch; see :meth:`.GFLHead.compute_loss`."""
        return self._library_loss(outputs, targets, gt_index)

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Lay the expected distances around each anchor's centre; see :meth:`Detector.decode`."""
        coder = self.network.head.box_coder
        return [
            coder.decode(raw.float(), anchors) for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
        ]


OPENERS: dict[type[nn.Module], type[Detector]] = {GFL: GFLDetector}
"""The detector class for each class of plain network."""
