"""Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid, opened over torchvision's class."""

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers

from understudy.detectors.anchored import apply_deltas, match_by_overlap
from understudy.detectors.base import PROBE_SIZE, Detector, evaluating
from understudy.detectors.dense import DenseDetector
from understudy.errors import UserError
from understudy.networks.faster_rcnn import MMDetFasterRCNN, rpn_targets
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Target, anchors_per_level, flat_anchors, flatten_levels


@dataclass(frozen=True, slots=True)
class RoIOutputs:
    """The result of a Faster R-CNN's second stage for the P proposals of all images, one image after another.

    Attributes:
        proposals: per image (P_i, 4), xyxy in pixels of the padded batch.
        features: (P, F), output of the box head for each proposal.
        class_logits: (P, K + 1), before softmax. The background comes first: class k of the data is column k + 1.
        box_raw: (P, K + 1, 4), deltas to the proposal for each class; those of the background are unused.
    """

    proposals: list[Tensor]
    features: Tensor
    class_logits: Tensor
    box_raw: Tensor


class FasterRCNNDetector(DenseDetector):
    """Open a torchvision ``FasterRCNN``. Its record is that of its first stage, the region proposals (RPN).

    ``class_logits`` score in every anchor whether there is an object (K = 1), ``box_raw`` are deltas to the anchor,
    :meth:`assign` is the RPN's. :meth:`roi` runs the second stage on any features and proposals, for example a
    teacher's on the student's proposals::

        proposals = student.proposals(student_outputs)
        student.roi(student_outputs.features, proposals), teacher.roi(teacher_outputs.features, proposals)

    Raises:
        UserError: the network also predicts masks or keypoints.
    """

    family = "faster_rcnn"
    box_code = "deltas"
    assigns_by_anchors = True
    least_side = 1e-2

    def __init__(self, network: nn.Module, name: str | None = None):
        heads: Any = network.roi_heads
        if heads.has_mask() or heads.has_keypoint():
            raise UserError(
                f"A {type(network).__name__} predicts masks or keypoints, which is not supported: use a FasterRCNN."
            )
        super().__init__(network, name)
        self._level_names = self._probe_names()

    def head_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Run the RPN's head; see :meth:`.DenseDetector.head_outputs`."""
        logits, deltas = concat_box_prediction_layers(*self.network.rpn.head(features))
        images = len(features[0])
        return {"cls_logits": logits.view(images, -1, 1), "bbox_regression": deltas.view(images, -1, 4)}

    @property
    def _anchor_generator(self) -> Any:
        return self.network.rpn.anchor_generator

    @property
    def background_below(self) -> float:
        """IoU below which an anchor is background; see :meth:`.Detector.background_below`."""
        return self.network.rpn.proposal_matcher.low_threshold

    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match the RPN's anchors by IoU, with the network's own thresholds; see :meth:`Detector.assign`."""
        return match_by_overlap(self.network.rpn.proposal_matcher, outputs, targets)

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Compute the losses of both stages, each divided by the number of anchors or proposals drawn at random.

        The number is averaged over processes.

        The second stage is trained on the proposals of the first, as in torchvision. Under the same seed it draws
        the same samples as ``network(images, targets)``.
        """
        rpn, heads = self.network.rpn, self.network.roi_heads
        anchors = torch.cat(flat_anchors(outputs))
        labels, matched = rpn_targets(targets, gt_index)
        loss_objectness, loss_rpn_box_reg = self._rpn_loss(
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
        drawn = class_logits.new_tensor(len(class_logits))
        return _over_processes(fastrcnn_loss(class_logits, deltas, labels, list(wanted)), drawn)

    def _rpn_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], wanted: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        sampler = self.network.rpn.fg_bg_sampler
        most = int(sampler.batch_size_per_image * sampler.positive_fraction)
        positives = torch.stack([(row >= 1).sum() for row in labels]).clamp(max=most)
        negatives = torch.stack([(row == 0).sum() for row in labels])
        drawn = positives + torch.minimum(negatives, sampler.batch_size_per_image - positives)
        return _over_processes(self.network.rpn.compute_loss(objectness, deltas, labels, wanted), drawn.sum())

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Apply the RPN's deltas to its anchors: proposals, not clipped; see :meth:`Detector.decode`."""
        return apply_deltas(self._box_coder, outputs)

    @property
    def _box_coder(self) -> Any:
        return self.network.rpn.box_coder

    @torch.no_grad()
    def proposals(
        self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]] | None = None, *, training: bool = False
    ) -> list[Tensor]:
        """Choose proposals by objectness: the best anchors of each level, NMS, the best overall.

        See :meth:`.Detector.proposals`; their number does not depend on the mode of the network.
        """
        rpn = self.network.rpn
        boxes = flatten_levels(self.decode(outputs))
        objectness = flatten_levels(outputs.class_logits).float()
        sizes = [tuple(size) for size in image_sizes or _image_sizes(outputs)]
        with _training(rpn, training):
            return rpn.filter_proposals(boxes, objectness, sizes, anchors_per_level(outputs))[0]

    def roi(self, features: Sequence[Tensor], proposals: Sequence[Tensor]) -> RoIOutputs:
        """Run the second stage on given proposals. Gradients reach the features, not the proposals.

        Args:
            features: one (N, C, H, W) per level; this detector's own, or others of the same shape.
            proposals: per image (P_i, 4), xyxy in pixels of the padded batch.
        """
        heads = self.network.roi_heads
        # torchvision infers the strides of the levels from the size of the images: give it the size that they cover.
        stride, (height, width) = self.spec.strides[0], features[0].shape[-2:]
        filled = [(height * stride, width * stride)] * len(proposals)
        named = OrderedDict(zip(self._level_names, features, strict=True))
        hidden = heads.box_head(heads.box_roi_pool(named, list(proposals), filled))
        class_logits, deltas = heads.box_predictor(hidden)
        return RoIOutputs(list(proposals), hidden, class_logits, deltas.unflatten(-1, (-1, 4)))

    def score_boxes(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Classify and correct boxes; see :meth:`.Detector.score_boxes`."""
        found = self.roi(features, boxes)
        coder, deltas = self.network.roi_heads.box_coder, found.box_raw.flatten(1).float()
        return found.class_logits, coder.decode_single(deltas, torch.cat(list(boxes)).float()).unflatten(1, (-1, 4))

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

    @property
    def num_labels(self) -> int | None:
        """Number of classes of the second stage; None if its predictor is not torchvision's."""
        layer = getattr(self.network.roi_heads.box_predictor, "cls_score", None)
        return layer.out_features - 1 if isinstance(layer, nn.Linear) else None

    def label_names(self, classes: Sequence[str]) -> list[str]:
        """Name the labels that the plain network itself returns: the background, then the classes."""
        return ["__background__", *classes]

    @torch.no_grad()
    def _probe_names(self) -> tuple[str, ...]:
        """Return the backbone's names of its levels; RoI pooling selects levels by name."""
        image = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=next(self.network.parameters()).device)
        with evaluating(self.network):
            levels = self.network.backbone(image)
        return ("0",) if isinstance(levels, Tensor) else tuple(levels)


class MMDetFasterRCNNDetector(FasterRCNNDetector):
    """Open a :class:`.MMDetFasterRCNN`."""

    least_side = None

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match anchors by IoU; those outside an image's own padding are ignored. See :meth:`Detector.assign`."""
        return torch.stack(self.network.rpn.assign(flat_anchors(outputs), targets, outputs.image_sizes))

    def _roi_loss(
        self, class_logits: Tensor, deltas: Tensor, labels: list[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.network.roi_heads.compute_loss(class_logits, deltas, labels, wanted)

    def _rpn_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], wanted: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.network.rpn.compute_loss(objectness, deltas, labels, wanted)


OPENERS: dict[type[nn.Module], type[Detector]] = {
    MMDetFasterRCNN: MMDetFasterRCNNDetector,
    FasterRCNN: FasterRCNNDetector,
}
"""The detector class for each class of plain network, subclasses first."""


def _over_processes(losses: tuple[Tensor, Tensor], count: Tensor) -> tuple[Tensor, Tensor]:
    """Divide losses, which torchvision has divided by a count of this process, by its mean over processes instead."""
    share = count / averaged_over_processes(count)
    return losses[0] * share, losses[1] * share


def _image_sizes(outputs: Outputs) -> tuple[tuple[int, int], ...]:
    if outputs.image_sizes is None:
        raise ValueError("This record has no image sizes, which a Faster R-CNN needs: pass image_sizes to forward().")
    return outputs.image_sizes


@contextmanager
def _training(module: nn.Module, training: bool) -> Generator[None]:
    """Set the mode of one module, not of its parts, within this context."""
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before
