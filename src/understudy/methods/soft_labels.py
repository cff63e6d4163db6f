"""Soft labels: class scores and boxes of the teacher as labels (Hinton et al., 2015; Chen et al., NeurIPS 2017)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from understudy.boxes import Positives, chosen, positives
from understudy.functional import soft_label_loss
from understudy.functional.precision import at_least_float32
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.compatibility import prediction_differences, raw_box_differences
from understudy.networks.geometry import paired_giou
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Spec, Truth


class SoftLabels(Method):
    r"""The student learns from the teacher's class scores and boxes as from labels.

    Class scores are compared class by class, as a sum over classes and anchors. Boxes are compared at the anchors that
    are assigned to an object. Both sums are divided by the number of these anchors in the batch.

    .. math::
        L_\text{class} = \frac{\tau^2}{|R|} \sum_{r \in R} \sum_k
        \operatorname{BCE}\left(\sigma(z^S_{r k} / \tau), \sigma(z^T_{r k} / \tau)\right)

    .. math::
        L_\text{box} = \frac{1}{|R|} \sum_{r \in R} \left(1 - \operatorname{GIoU}(b^S_r, b^T_r)\right)

    .. math::
        \operatorname{BCE}(p, q) = -q \log p - (1 - q) \log(1 - p)

    :math:`R` are the anchors assigned to an object, :math:`z` class logits, :math:`b` decoded boxes, and :math:`\tau`
    is the temperature. The minimum of the class loss is the entropy of the teacher's scores, not zero.

    Evidence:
        paper: Hinton et al. (2015) compare softmaxes of classifiers at a temperature, by the Kullback-Leibler
            divergence times the squared temperature (``loss=kl``). Chen et al. (NeurIPS 2017) use it for two-stage
            detectors, with a weight of 1.5 for the background class. They use the teacher's box as a bound: the
            student's must not be worse.
        ours: No form for one-stage detectors is canonical. Ours are the cross-entropy of sigmoids, because one-stage
            detectors score each class separately and have no background class; the choice of anchors; the divisor; and
            boxes that imitate the teacher's without a bound. The options cover the forms in use. A pair of Faster
            R-CNNs, whose dense scores are those of objects of any class, is refused: ``second_stage`` compares their
            classes.
        weight: 1 and 1 are our choice.
    """

    name = "soft_labels"
    aliases = ("kd",)
    terms = ("class", "box")
    weights = {EVERY_FAMILY: {"class": 1.0, "box": 1.0}}
    source = "Hinton et al., 2015, and Chen et al., NeurIPS 2017, adapted to one-stage heads; weights are our choice"
    checked = (
        "the paper, for loss=kl (Hinton et al., 2015, section 2); run, values to 1e-6: kl open-mmlab/mmrazor @90c7af1, "
        "bce daixinghome/Distill_GID_detectron2 @9118c54, boxes TinyTigerPan/BCKD @121c9aa"
    )
    reads = {"class": ("class_logits", "assignment"), "box": ("boxes", "assignment")}

    class Options(Method.Options):
        """The options of soft labels."""

        loss: Literal["bce", "kl"] = "bce"
        """``"bce"``: cross-entropy of the sigmoids; ``"kl"``: divergence of softmaxes over the classes."""
        temperature: PositiveFloat = 1.0
        """Divides the logits; the loss is multiplied by its square."""
        anchors: Literal["positives", "all"] = "positives"
        """Compare class scores at the ``"positives"``, the anchors assigned to an object, or at ``"all"`` that are not
        ignored."""
        boxes: Literal["decoded", "raw"] = "decoded"
        """Compare ``"decoded"`` boxes by one minus their GIoU, or ``"raw"`` box outputs by smooth L1, summed."""

    options: Options

    @classmethod
    def reads_with(cls, options: Options) -> Mapping[str, tuple[str, ...]]:
        """Return the inputs of each term: raw box outputs with ``boxes="raw"``."""
        raw = {"box": ("boxes", "box_raw", "assignment")} if options.boxes == "raw" else {}
        return {**cls.reads, **raw}

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Refuse objectness and a softmax over a single class; if only raw boxes differ, name the option that helps."""
        first = f"the first stages of {student.name} and {teacher.name} score no classes; use the method second_stage"
        both_two_stage = [first] if student.objectness and teacher.objectness else []
        single = options.loss == "kl" and student.num_classes == 1
        raw = (
            options.boxes == "raw"
            and raw_box_differences(student, teacher)
            and not prediction_differences(student, teacher)
        )
        softmax = f"a softmax over the one class of {student.name} and {teacher.name} is constant; use"
        return {
            "class": both_two_stage or ([f"{softmax} methods.soft_labels.loss=bce"] if single else []),
            "box": both_two_stage or (["methods.soft_labels.boxes=decoded compares boxes of any code"] if raw else []),
        }

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``soft_labels_class`` and ``soft_labels_box``, each summed and divided by the positives."""
        found = positives(truth, student)
        compute = {"class": self._class, "box": self._box}
        divisor = averaged_over_processes((truth.gt_index >= 0).sum())
        return {f"soft_labels_{term}": compute[term](student, teacher, truth, found) / divisor for term in self.terms}

    def _class(self, student: Outputs, teacher: Outputs, truth: Truth, found: Positives) -> Tensor:
        places = found if self.options.anchors == "positives" else chosen(truth.gt_index > -2, student)
        own, theirs = places.of(student.class_logits), places.of(teacher.class_logits)
        return soft_label_loss(own, theirs, self.options.temperature, self.options.loss).sum()

    def _box(self, student: Outputs, teacher: Outputs, truth: Truth, found: Positives) -> Tensor:
        if self.options.boxes == "raw":
            own, theirs = at_least_float32(found.of(student.box_raw)), at_least_float32(found.of(teacher.box_raw))
            return F.smooth_l1_loss(own, theirs.detach(), reduction="sum")
        own, theirs = found.boxes(student, self.student), found.boxes(teacher, self.teacher)
        return (1 - paired_giou(own, theirs.detach())).sum()
