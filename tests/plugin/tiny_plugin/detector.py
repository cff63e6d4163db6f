"""TinyYOLO, opened for understudy."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tiny_plugin.network import TinyYOLO, box_loss, decoded
from understudy.detectors import DenseDetector
from understudy.outputs import Outputs, Target, flatten_levels


class TinyYOLODetector(DenseDetector):
    """Open a :class:`TinyYOLO`. Its assigner looks at the predictions, and its scores are soft."""

    family = "tinyyolo"
    box_code = "distributions"

    def decode(self, outputs: Outputs) -> list[Tensor]:
        return [decoded(raw, anchors) for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)]

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Give each object the three predictions inside it that fit it best."""
        logits, boxes = flatten_levels(outputs.class_logits), flatten_levels(self.decode(outputs))
        anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        gt_index = torch.full(logits.shape[:2], -1)
        for row, own, predicted, target in zip(gt_index, logits, boxes, targets, strict=True):
            if not len(target["labels"]):
                continue
            inside = (centres[:, None] > target["boxes"][:, :2]) & (centres[:, None] < target["boxes"][:, 2:])
            fit = self.network.alignment(own, predicted, target) + inside.all(-1)
            for number, best in enumerate(fit.topk(3, dim=0).indices.T):
                row[best] = number
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy towards soft scores, and GIoU divided by the sum of the soft scores."""
        logits, boxes = flatten_levels(outputs.class_logits), flatten_levels(self.decode(outputs))
        goal, image, place = torch.zeros_like(logits), *torch.where(gt_index >= 0)
        wanted = []
        for i, p in zip(image.tolist(), place.tolist(), strict=True):
            target, number = targets[i], gt_index[i, p]
            fit = self.network.alignment(logits[i, p, None].detach(), boxes[i, p, None].detach(), target)
            goal[i, p, target["labels"][number]] = fit[0, number].clamp(min=0.1)
            wanted.append(target["boxes"][number])
        divisor = goal.sum().clamp(min=1)
        distance = box_loss(boxes[image, place], torch.stack(wanted)) if wanted else boxes[image, place].sum()
        return {"loss_class": F.binary_cross_entropy_with_logits(logits, goal), "loss_box": distance / divisor}


OPENERS = {TinyYOLO: TinyYOLODetector}
