"""RetinaNet (Lin et al., ICCV 2017), opened over torchvision's class."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from understudy.detectors.anchored import apply_deltas, match_by_overlap
from understudy.detectors.base import Detector
from understudy.detectors.dense import DenseDetector
from understudy.networks.retinanet import MMDetRetinaNet
from understudy.outputs import Outputs, Target, flat_anchors


class RetinaNetDetector(DenseDetector):
    """Open a torchvision ``RetinaNet``. ``box_raw`` are deltas to anchors; its IoU matcher assigns.

    Its focal and L1 loss are each summed over an image, divided by its positives, and averaged over images.
    """

    family = "retinanet"
    box_code = "deltas"
    assigns_by_anchors = True

    @property
    def _class_tower(self) -> Callable[[list[Tensor]], Tensor] | None:
        head = self.network.head
        return head.classification_head if type(head).forward is RetinaNetHead.forward else None

    @property
    def background_below(self) -> float:
        """IoU below which an anchor is background; see :meth:`.Detector.background_below`."""
        return self.network.proposal_matcher.low_threshold

    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by IoU, with the network's own thresholds; see :meth:`Detector.assign`."""
        return match_by_overlap(self.network.proposal_matcher, outputs, targets)

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Apply the deltas to the anchors; see :meth:`Detector.decode`."""
        return apply_deltas(self._box_coder, outputs)

    @property
    def _box_coder(self) -> Any:
        return self.network.head.regression_head.box_coder


class MMDetRetinaNetDetector(RetinaNetDetector):
    """Open a :class:`.MMDetRetinaNet`, whose losses are those of :meth:`.MMDetRetinaNetHead.compute_loss`."""

    least_side = 0.0

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by IoU; those outside an image's own padding are ignored. See :meth:`Detector.assign`."""
        return torch.stack(self.network.assign(flat_anchors(outputs), targets, outputs.image_sizes))


OPENERS: dict[type[nn.Module], type[Detector]] = {
    MMDetRetinaNet: MMDetRetinaNetDetector,
    RetinaNet: RetinaNetDetector,
}
"""The detector class for each class of plain network, subclasses first."""
