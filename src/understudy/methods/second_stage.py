"""The scores and boxes that the teacher's second stage gives to the student's boxes (Chen et al., NeurIPS 2017)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from understudy.errors import UserError
from understudy.functional import class_factors, soft_label_loss, softmax_label_loss
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.second_stage_boxes import Scored, at_objects, by_second_stage, of_proposals, relative_fits
from understudy.networks.geometry import paired_giou
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Spec, Truth

SMALLEST_SCORE = 1e-6


class SecondStage(Method):
    r"""The second stage of a two-stage teacher scores and corrects the student's boxes, and the student learns from it.

    The second stage classifies any box and corrects its sides. The teacher's runs on the teacher's features, on boxes
    :math:`R` of the student. Of a two-stage student these are its best proposals, and its own second stage is compared.
    Of a one-stage student they are the boxes that it predicts at the anchors assigned to an object, and its scores and
    boxes there are compared.

    .. math::
        L_\text{class} = -\frac{1}{|R|} \sum_{r \in R} \sum_{k=0}^K w_k \, q_{r k} \log p_{r k} \qquad
        L_\text{class} = \frac{\sum_{r \in R} f_r \sum_{k=1}^K \operatorname{BCE}(p_{r k}, q_{r k} u_{r k})}
        {\sum_{r \in R} f_r}

    .. math::
        L_\text{box} = \frac{\sum_{r \in R} f_r v_r \left(1 - \operatorname{GIoU}(b^S_r, b^T_r)\right)}
        {\sum_{r \in R} f_r v_r} \qquad v_r = \max_{k > 0} q_{r k}

    .. math::
        f_r = \frac{1 / K + 0.05}{n_{k_r} + 0.05} \qquad
        u_{r k} = \frac{\operatorname{IoU}(b^S_r, b^T_{r k})}
        {\max_{r' : k_{r'} = k_r} \operatorname{IoU}(b^S_{r'}, b^T_{r' k_r})}

    The first :math:`L_\text{class}` is that of two-stage students, the second that of others. :math:`q` is the softmax
    of the teacher's class logits, :math:`p` the softmax of the student's, or the sigmoid of a one-stage student's.
    Class 0 is the background: :math:`w_0` is ``background``, every other weight is 1. :math:`b` are the corrected boxes
    of the class to which the teacher gives its highest score, :math:`v_r`. The minimum of the class loss is the entropy
    of what :math:`p` is compared with, not zero.

    A second stage says what is in a box, not how well the box fits. A detection's score decides which of several boxes
    remains, and its rank, so a one-stage student is to score a box by both: :math:`u_{r k}`, a constant of at most 1,
    is the IoU of its box with the teacher's corrected box of class :math:`k`, in relation to that of its best box of an
    object of the same class (``quality``; else 1). Without this relation, objects that its boxes do not fit yet would
    hardly be scored.

    While the box of a one-stage student does not fit its object, the teacher rightly calls it background, which would
    keep the student from scoring and fitting the object at all. So :math:`q_r` and :math:`b^T_r` are those of the
    student's box or of the object's true box, whichever has the higher :math:`v_r`. :math:`f_r` balances the classes,
    so that both terms are not mostly those of the most frequent one (``class_balance``): :math:`n_k` is the part of
    :math:`R` whose objects are of class :math:`k`, :math:`k_r` the class of the object of :math:`r`. For proposals,
    which have no object, :math:`f_r` is 1.

    Evidence:
        paper: Chen et al. (NeurIPS 2017), the class scores of the second stage, with the background's weight. The
            authors published no code. They keep the student's boxes from being worse than the teacher's; ours imitate
            them.
        ours: One-stage students, with the true boxes of their objects, balanced classes and the quality of boxes. The
            boxes that are compared, their number and the divisors. The weight of a box by the teacher's score: where it
            sees background, its corrected box means nothing.
        weight: 1 and 1 are our choice.
        caution: Classes of the teacher that the student lacks count as background. Where some classes are rare, much of
            a one-stage student's gain is that of balanced classes, which need no teacher: on BCCD 3.0 of 4.7 AP.
    """

    name = "second_stage"
    aliases = ("rcn",)
    terms = ("class", "box")
    weights = {EVERY_FAMILY: {"class": 1.0, "box": 1.0}}
    source = (
        "Chen et al., NeurIPS 2017, class scores of the second stage; one-stage students, boxes and weights are ours"
    )
    checked = (
        "other implementations, HqWei/Distillation-of-Faster-rcnn @2bcdefa: run, class scores without a weight of the "
        "background, to 1e-6"
    )
    reads = {"class": ("second_stage", "assignment"), "box": ("second_stage", "assignment")}

    class Options(Method.Options):
        """The options of the second stage."""

        count: PositiveInt = 128
        """Most boxes of an image that are compared: a two-stage student's best proposals, or a one-stage student's
        anchors with an object, evenly spaced among all of them."""
        background: Annotated[float, Field(ge=0)] = 1.5
        """Weight of the background among the classes of a two-stage student (1.5 in the paper)."""
        quality: bool = True
        """A one-stage student's class scores are compared with the teacher's, in proportion to the IoU of both boxes
        (ours)."""
        class_balance: bool = True
        """A one-stage student's boxes of objects of frequent classes count less, those of rare ones more (ours)."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        if student.two_stage:  # whose proposals need no ground truth
            self.reads = dict.fromkeys(self.terms, ("second_stage",))

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Refuse an option that is for students of the other kind."""
        option, why = ("class_balance", "compares proposals, which have no object")
        if not student.two_stage:
            option, why = ("background", "scores no background")
        changed = getattr(options, option) != cls.Options.model_fields[option].default
        unused = f"the student {student.name} {why}: leave out methods.second_stage.{option}"
        return {"class": [unused] if changed else []}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``second_stage_class`` and ``second_stage_box``, over the boxes of all images."""
        layers, count = self.both_detectors(layers), self.options.count
        own = of_proposals(layers, count) if self.student.two_stage else at_objects(student, self.student, truth, count)
        scores, boxes = by_second_stage(layers, own, truth)
        if own.boxes.shape != boxes.shape:
            raise UserError(
                f"The student {self.student.name} has {own.boxes.shape[1]} classes, the second stage of the teacher "
                f"{self.teacher.name} {boxes.shape[1]}: match them by name, Learner(student, methods, pair(...))."
            )
        sure, label = scores[:, 1:].max(1)
        rows = torch.arange(len(label), device=label.device)
        counts = self._counts(own, sure)
        sure = sure * counts
        apart = sure * (1 - paired_giou(own.boxes[rows, label], boxes[rows, label]))
        scored = counts * self._class(own, scores, boxes)
        terms = {
            "second_stage_class": scored.sum() / averaged_over_processes(counts.sum(), SMALLEST_SCORE),
            "second_stage_box": apart.sum() / averaged_over_processes(sure.sum(), SMALLEST_SCORE),
        }
        return {name: terms[name] for name in (f"second_stage_{term}" for term in self.terms)}

    def _counts(self, own: Scored, sure: Tensor) -> Tensor:
        """Return how much each box counts, (P,)."""
        if own.labels is None or not self.options.class_balance:
            return torch.ones_like(sure)
        classes = torch.arange(own.boxes.shape[1], device=sure.device)
        return class_factors((own.labels[:, None] == classes).sum(0))[own.labels]

    def _class(self, own: Scored, scores: Tensor, boxes: Tensor) -> Tensor:
        if own.labels is None:
            return softmax_label_loss(own.logits, scores, self.options.background)
        fits = relative_fits(own.boxes.detach(), boxes, own.labels) if self.options.quality else 1.0
        return soft_label_loss(own.logits, (scores[:, 1:] * fits).logit(SMALLEST_SCORE))
