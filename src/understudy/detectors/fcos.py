"""FCOS (Tian et al., ICCV 2019), opened over torchvision's class."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import box_area

from understudy.detectors.base import Detector
from understudy.detectors.dense import DenseDetector
from understudy.networks.fcos import MMDetFCOS
from understudy.networks.geometry import centres, distances_to_sides
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Target, anchors_per_level, flat_anchors


class FCOSDetector(DenseDetector):
    """Open a torchvision ``FCOS``.

    ``box_raw`` are distances to the four sides in strides, ``extra["centerness"]`` (N, R) the centre-ness logits.
    Its focal, GIoU and centre-ness loss are each summed over the batch and divided by the positives of the batch,
    averaged over processes.
    """

    family = "fcos"
    box_code = "distances in strides"
    assigns_by_anchors = True

    @property
    def _class_tower(self) -> Callable[[list[Tensor]], Tensor] | None:
        head = self.network.head
        return head.classification_head if type(head).forward is FCOSHead.forward else None

    def boxes_at(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Lay distances around points; see :meth:`.DenseDetector.boxes_at`."""
        return self.network.box_coder.decode(raw, anchors)

    def scored(self, raw: Mapping[str, Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor] | None]:
        """Compute the geometric mean of score and centre-ness; see :meth:`.DenseDetector.scored`."""
        pairs = zip(raw["cls_logits"], raw["bbox_ctrness"], strict=True)
        return [(logits.sigmoid() * quality.sigmoid()).sqrt() for logits, quality in pairs], None

    def _extra(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"centerness": raw["bbox_ctrness"].squeeze(-1)}

    def _per_level(self, outputs: Outputs) -> dict[str, list[Tensor]]:
        centerness = outputs.extra["centerness"].float().unsqueeze(-1)
        return {
            **super()._per_level(outputs),
            "bbox_ctrness": list(centerness.split(anchors_per_level(outputs), dim=1)),
        }

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match points to objects as torchvision does; see :meth:`Detector.assign`.

        A point belongs to an object if it lies inside its box, near its centre (centre sampling), and the farthest
        side is within the range of the point's level: 4 to 8 strides, open at the finest and the coarsest level. Of
        several objects the smallest wins.
        """
        anchors, counts = torch.cat(flat_anchors(outputs)), anchors_per_level(outputs)
        points = centres(anchors)[:, None]
        strides = anchors[:, 2] - anchors[:, 0]
        nearest, farthest = strides * 4, strides * 8
        nearest[: counts[0]] = 0
        farthest[-counts[-1] :] = float("inf")

        gt_index = anchors.new_full((len(targets), len(anchors)), -1, dtype=torch.int64)
        for row, target in zip(gt_index, targets, strict=True):
            boxes = target["boxes"]
            if not len(boxes):
                continue
            sides = distances_to_sides(points, boxes)  # (R, M, 4)
            off_centre = (points - centres(boxes)).abs().amax(-1)
            reach = sides.amax(-1)
            matches = (
                (sides.amin(-1) > 0)
                & (off_centre < self.network.center_sampling_radius * strides[:, None])
                & (reach > nearest[:, None])
                & (reach < farthest[:, None])
            )
            # torchvision prefers small objects by 1e8 - area in float32; the same arithmetic gives the same ties.
            preference, index = (matches * (1e8 - box_area(boxes))).max(dim=1)
            row.copy_(index.masked_fill(preference < 1e-5, -1))
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Compute the losses of the network's own head by name; see :meth:`Detector.loss`."""
        own = (gt_index >= 0).sum()  # torchvision divides by it
        share = own.clamp(min=1) / averaged_over_processes(own)
        return {name: loss * share for name, loss in super().loss(outputs, targets, gt_index).items()}

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Lay the distances around each point; see :meth:`Detector.decode`."""
        return [
            self.network.box_coder.decode(raw.float(), anchors)
            for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
        ]


class MMDetFCOSDetector(FCOSDetector):
    """Open a :class:`.MMDetFCOS`. ``box_raw`` are distances in pixels.

    The losses are those of :meth:`.MMDetFCOSHead.compute_loss`.
    """

    box_code = "distances in pixels"
    least_side = 0.0
    loss = DenseDetector.loss  # its own head divides by the positives of all processes

    @property
    def _class_tower(self) -> Callable[[list[Tensor]], Tensor]:
        branch = self.network.head.classification_head
        return lambda features: torch.cat([branch(feature)["cls_logits"] for feature in features], dim=1)

    def scored(self, raw: Mapping[str, Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor] | None]:
        """Compute the scores, and the centre-ness that they are multiplied by; see :meth:`.DenseDetector.scored`."""
        return DenseDetector.scored(self, raw)[0], [quality.sigmoid().squeeze(-1) for quality in raw["bbox_ctrness"]]

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match points to objects by :meth:`.MMDetFCOS.assign`; see :meth:`Detector.assign`."""
        return torch.stack(self.network.assign(flat_anchors(outputs), targets))


OPENERS: dict[type[nn.Module], type[Detector]] = {
    MMDetFCOS: MMDetFCOSDetector,
    FCOS: FCOSDetector,
}
"""The detector class for each class of plain network, subclasses first."""
