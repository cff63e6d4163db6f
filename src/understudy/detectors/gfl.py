"""GFL (Li et al., NeurIPS 2020), opened over the plain network of :mod:`understudy.networks.gfl`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from understudy.detectors.base import Detector
from understudy.detectors.dense import DenseDetector
from understudy.networks.gfl import GFL
from understudy.networks.gfl_head import GFLHead
from understudy.outputs import Outputs, Target, flat_anchors


class GFLDetector(DenseDetector):
    """Open a :class:`.GFL`.

    ``class_logits`` score class and quality of the box jointly; ``box_raw`` are the logits of ``reg_max + 1`` distances
    in strides for each side: left, top, right, bottom. The losses are those of :meth:`.GFLHead.compute_loss`.
    """

    family = "gfl"
    box_code = "distributions"
    assigns_by_anchors = True
    least_side = 0.0

    @property
    def _class_tower(self) -> Callable[[list[Tensor]], Tensor] | None:
        head = self.network.head
        return head.classification_head if type(head).forward is GFLHead.forward else None

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by ATSS; those outside an image's own padding are ignored. See :meth:`Detector.assign`."""
        return torch.stack(self.network.assign(flat_anchors(outputs), targets, outputs.image_sizes))

    def boxes_at(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Lay expected distances around the anchors' centres; see :meth:`.DenseDetector.boxes_at`."""
        return self.network.head.box_coder.decode(raw, anchors)

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Lay the expected distances around each anchor's centre; see :meth:`Detector.decode`."""
        coder = self.network.head.box_coder
        return [
            coder.decode(raw.float(), anchors) for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
        ]


OPENERS: dict[type[nn.Module], type[Detector]] = {GFL: GFLDetector}
"""The detector class for each class of plain network."""
