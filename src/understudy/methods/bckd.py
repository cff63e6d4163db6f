"""BCKD: bridging the cross-task protocol inconsistency (Yang et al., ICCV 2023)."""

import torch
from torch import Tensor

from understudy.boxes import chosen, split_levels
from understudy.functional import gap_weighted_loss, score_gap
from understudy.methods.base import Layers, Method
from understudy.networks.geometry import paired_giou
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Truth


class BCKD(Method):
    r"""The student imitates the teacher's class scores and boxes at all anchors, weighted by the gap between scores.

    Each element of the class loss is weighted by the difference of the two scores. The box of an anchor is weighted by
    the largest difference over the classes. Decoded boxes are compared, so the two detectors may have different box
    codes.

    .. math::
        L_\text{class} = \frac{1}{P} \sum_{r \in R} \sum_k \left|\sigma(z^S_{r k}) - \sigma(z^T_{r k})\right|
        \operatorname{BCE}\left(\sigma(z^S_{r k}), \sigma(z^T_{r k})\right)

    .. math::
        L_\text{location} = \frac{1}{P} \sum_{r \in R} \max_k \left|\sigma(z^S_{r k}) - \sigma(z^T_{r k})\right|
        \left(1 - \operatorname{GIoU}(b^S_r, b^T_r)\right)

    .. math::
        \operatorname{BCE}(p, q) = -q \log p - (1 - q) \log(1 - p)

    :math:`R` are the anchors of the levels to which an object of the batch is assigned, without those that are ignored.
    :math:`P` is the number of anchors of the batch that are assigned to an object, where a labelled image without any
    counts as one. :math:`z` are class logits and :math:`b` decoded boxes.

    Evidence:
        paper: Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection.
        code: Formulas and reductions are the authors'. As there, gradient flows through the weight of a class score,
            and none through that of a box.
        ours: An unlabelled image adds nothing to :math:`P`.
        weight: 1 and 4 are the authors', for GFL. No weight is known for other families, so it must be given.
    """

    name = "bckd"
    terms = ("class", "location")
    weights = {"gfl": {"class": 1.0, "location": 4.0}}
    source = "Yang et al., ICCV 2023; reductions and weights from the authors' code"
    checked = (
        "authors' code, TinyTigerPan/BCKD @121c9aa, run: values and gradients to 1e-6; the divisor of images without "
        "positives by a transcription"
    )
    reads = {"class": ("class_logits", "assignment"), "location": ("class_logits", "boxes", "assignment")}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``bckd_class`` and ``bckd_location``, each summed and divided by the positives."""
        # Selected before anything is computed: values of ignored anchors must not reach the gradient, either.
        counted = chosen(_counted(student, truth), student)
        own, theirs = counted.of(student.class_logits), counted.of(teacher.class_logits)
        divisor = averaged_over_processes(torch.maximum((truth.gt_index >= 0).sum(1), truth.labelled).sum())
        terms = {}
        if "class" in self.terms:
            terms["bckd_class"] = gap_weighted_loss(own, theirs).sum() / divisor
        if "location" in self.terms:
            boxes, others = counted.boxes(student, self.student), counted.boxes(teacher, self.teacher).detach()
            terms["bckd_location"] = (
                (1 - paired_giou(boxes, others)) * score_gap(own, theirs).detach()
            ).sum() / divisor
        return terms


def _counted(outputs: Outputs, truth: Truth) -> Tensor:
    """Choose the anchors of levels that have an object in some process, except the ignored ones: (N, R) bool."""
    parts = split_levels(truth.gt_index, outputs)
    used = averaged_over_processes(torch.stack([(part >= 0).sum() for part in parts]), least=0) > 0
    return torch.cat([(part > -2) & any_object for part, any_object in zip(parts, used, strict=True)], dim=1)
