"""Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid, opened over torchvision's class."""

import math
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou

from understudy.detectors.base import PROBE_SIZE, Detector, evaluating
from understudy.detectors.plain.mmdet_rcnn import object_boxes
from understudy.errors import UserError
from understudy.outputs import Outputs, Target, flatten_levels


@dataclass(frozen=True, slots=True)
class RoIOutputs:
    """What a Faster R-CNN's second stage computes for proposals, the P of all images one after another.

    Attributes:
        proposals: per image (P_i, 4), xyxy in pixels of the padded batch.
        features: (P, F), what the box head makes of the features under each proposal.
        class_logits: (P, K + 1), before softmax. The background comes first: class k of the data is column k + 1.
        box_raw: (P, K + 1, 4), deltas to the proposal for each class; those of the background mean nothing.
    """

    proposals: list[Tensor]
    features: Tensor
    class_logits: Tensor
    box_raw: Tensor


class FasterRCNNDetector(Detector):
    """A torchvision ``FasterRCNN``, whose record is that of its first stage, the region proposals (RPN).

    ``class_logits`` say in every anchor whether there is an object (K = 1), ``box_raw`` are deltas to the anchor,
    :meth:`assign` is the RPN's. The second stage is run by :meth:`roi`, on any features and any proposals; so can a
    teacher's be on what the student proposes::

        proposals = student.proposals(student_outputs)
        student.roi(student_outputs.features, proposals), teacher.roi(teacher_outputs.features, proposals)

    Raises:
        UserError: the network finds masks or keypoints beside boxes.
    """

    family = "faster_rcnn"
    box_code = "deltas"
    objectness = True

    def __init__(self, network: nn.Module, name: str | None = None):
        heads: Any = network.roi_heads
        if heads.has_mask() or heads.has_keypoint():
            raise UserError(
                f"A {type(network).__name__} finds more than boxes, which cannot be distilled: expected a FasterRCNN."
            )
        super().__init__(network, name)
        self._level_names = self._probe_names()

    def _raw(self, features: list[Tensor]) -> dict[str, Tensor]:
        logits, deltas = concat_box_prediction_layers(*self.network.rpn.head(features))
        images = len(features[0])
        return {"cls_logits": logits.view(images, -1, 1), "bbox_regression": deltas.view(images, -1, 4)}

    @property
    def _anchor_generator(self) -> Any:
        return self.network.rpn.anchor_generator

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match the RPN's anchors by IoU, with the network's own thresholds; see :meth:`Detector.assign`."""
        anchors = torch.cat([anchors.flatten(0, 2) for anchors in outputs.anchors])
        gt_index = anchors.new_full((len(targets), len(anchors)), -1, dtype=torch.int64)
        for row, target in zip(gt_index, targets, strict=True):
            if len(target["boxes"]):
                row.copy_(self.network.rpn.proposal_matcher(box_iou(target["boxes"], anchors)))
        return gt_index

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Losses of both stages, each averaged over the anchors or proposals that are drawn at random.

        The second stage is trained on the proposals of the first, as torchvision does it; under the same seed the
        same are drawn as in ``network(images, targets)``.
        """
        rpn, heads = self.network.rpn, self.network.roi_heads
        anchors = torch.cat([anchors.flatten(0, 2) for anchors in outputs.anchors])
        labels = [(row >= 0).float().masked_fill(row == -2, -1) for row in gt_index]
        matched = [object_boxes(target["boxes"], row) for target, row in zip(targets, gt_index, strict=True)]
        loss_objectness, loss_rpn_box_reg = rpn.compute_loss(
            flatten_levels(outputs.class_logits).flatten(0, 1).float(),
            flatten_levels(outputs.box_raw).flatten(0, 1).float(),
            labels,
            rpn.box_coder.encode(matched, [anchors] * len(matched)),
        )
        with_background = [{**target, "labels": target["labels"] + 1} for target in targets]
        drawn, _, labels, wanted = heads.select_training_samples(
            self.proposals(outputs, training=True), with_background
        )
        found = self.roi(outputs.features, drawn)
        loss_classifier, loss_box_reg = self._roi_loss(
            found.class_logits.float(), found.box_raw.flatten(1).float(), labels, wanted
        )
        return {
            "loss_classifier": loss_classifier,
            "loss_box_reg": loss_box_reg,
            "loss_objectness": loss_objectness,
            "loss_rpn_box_reg": loss_rpn_box_reg,
        }

    def _roi_loss(
        self, class_logits: Tensor, deltas: Tensor, labels: list[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return fastrcnn_loss(class_logits, deltas, labels, list(wanted))

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Apply the RPN's deltas to its anchors: proposals, not clipped; see :meth:`Detector.decode`."""
        coder = self.network.rpn.box_coder
        return [
            coder.decode_single(raw.reshape(-1, 4).float(), anchors.expand_as(raw).reshape(-1, 4)).view(raw.shape)
            for raw, anchors in zip(outputs.box_raw, outputs.anchors, strict=True)
        ]

    @torch.no_grad()
    def proposals(
        self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]] | None = None, *, training: bool = False
    ) -> list[Tensor]:
        """Choose what the second stage looks at: the best anchors of each level, their boxes after NMS, the best.

        Args:
            outputs: the record of the batch.
            image_sizes: unpadded height and width of each image, to which boxes are clipped; None: the record's.
            training: choose as many as in training rather than as in detection, whatever mode the network is in.

        Returns:
            Per image (P, 4), xyxy in pixels of the padded batch, from the highest objectness to the lowest.
        """
        rpn = self.network.rpn
        boxes = flatten_levels(self.decode(outputs))
        objectness = flatten_levels(outputs.class_logits).float()
        counts = [math.prod(logits.shape[1:4]) for logits in outputs.class_logits]
        sizes = [tuple(size) for size in image_sizes or _image_sizes(outputs)]
        with _training(rpn, training):
            return rpn.filter_proposals(boxes, objectness, sizes, counts)[0]

    def roi(self, features: Sequence[Tensor], proposals: Sequence[Tensor]) -> RoIOutputs:
        """Run the second stage on given proposals; gradients reach the features, and not the proposals.

        Args:
            features: of the neck, one (N, C, H, W) per level; this detector's own or others of the same shape.
            proposals: per image (P_i, 4), xyxy in pixels of the padded batch.
        """
        heads = self.network.roi_heads
        # torchvision infers the strides of the levels from the size of the images; give it the size they fill.
        stride, (height, width) = self.spec.strides[0], features[0].shape[-2:]
        filled = [(height * stride, width * stride)] * len(proposals)
        named = OrderedDict(zip(self._level_names, features, strict=True))
        hidden = heads.box_head(heads.box_roi_pool(named, list(proposals), filled))
        class_logits, deltas = heads.box_predictor(hidden)
        return RoIOutputs(list(proposals), hidden, class_logits, deltas.unflatten(-1, (-1, 4)))

    @torch.no_grad()
    def detect(self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Choose the detections of each image from its proposals; see :meth:`Detector.detect`."""
        sizes = [tuple(size) for size in image_sizes]
        proposals = self.proposals(outputs, sizes)
        found = self.roi(outputs.features, proposals)
        chosen = self.network.roi_heads.postprocess_detections(
            found.class_logits.float(), found.box_raw.flatten(1).float(), proposals, sizes
        )
        return [
            {"boxes": boxes, "scores": scores, "labels": labels - 1}
            for boxes, scores, labels in zip(*chosen, strict=True)
        ]

    def label_names(self, classes: Sequence[str]) -> list[str]:
        """Name the labels that the plain network itself returns: the background, then the classes."""
        return ["__background__", *classes]

    @torch.no_grad()
    def _probe_names(self) -> tuple[str, ...]:
        """What the backbone calls its levels; RoI pooling chooses some by name."""
        image = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=next(self.network.parameters()).device)
        with evaluating(self.network):
            levels = self.network.backbone(image)
        return ("0",) if isinstance(levels, Tensor) else tuple(levels)


class MMDetFasterRCNNDetector(FasterRCNNDetector):
    """A :class:`.plain.mmdet_rcnn.MMDetFasterRCNN` that returns the record."""

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by IoU; those outside an image's own padding are ignored. See :meth:`Detector.assign`."""
        levels = [anchors.flatten(0, 2) for anchors in outputs.anchors]
        return torch.stack(self.network.rpn.assign(levels, targets, outputs.image_sizes))

    def _roi_loss(
        self, class_logits: Tensor, deltas: Tensor, labels: list[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.network.roi_heads.compute_loss(class_logits, deltas, labels, wanted)


def _image_sizes(outputs: Outputs) -> tuple[tuple[int, int], ...]:
    if outputs.image_sizes is None:
        raise ValueError("a Faster R-CNN needs the image sizes: this record was made without image_sizes")
    return outputs.image_sizes


@contextmanager
def _training(module: nn.Module, training: bool) -> Generator[None]:
    """Tell one module, and none of its parts, which mode it is in."""
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before
