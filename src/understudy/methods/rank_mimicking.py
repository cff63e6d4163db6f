"""RM: rank mimicking (Li et al., AAAI 2022)."""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from understudy.boxes import Positives, positives
from understudy.functional import rank_loss
from understudy.functional.precision import at_least_float32
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.networks.geometry import paired_iou
from understudy.outputs import Outputs, Spec, Truth


class RankMimicking(Method):
    r"""The student ranks the anchors of each object as the teacher does.

    The scores of the anchors assigned to an object become a softmax over these anchors. The student's softmax imitates
    the teacher's, so the student learns which anchors the teacher prefers, not how high their scores are.

    .. math::
        p_a = \frac{\exp(s_a / \tau)}{\sum_{b \in A_m} \exp(s_b / \tau)} \qquad
        L = \frac{1}{N'} \sum_n \frac{1}{M_n} \sum_{m = 1}^{M_n} \sum_{a \in A_m} p^T_a \log \frac{p^T_a}{p^S_a}

    :math:`A_m` are the anchors assigned to object :math:`m`, :math:`M_n` the objects of image :math:`n`, :math:`N'` the
    labelled images of the batch, and :math:`\tau` the temperature. In ``class`` :math:`s_a` is the anchor's score of
    the object's class. In ``location``, which is off unless it is given a weight, it is the IoU of the anchor's
    predicted box with the object.

    Evidence:
        paper: Knowledge Distillation for Object Detection via Rank Mimicking and Prediction-guided Feature Imitation
            (arXiv 2112.04840). Its full text and its equations were not available to us, and there is no authors' code.
            We follow second-hand sources: two other projects' implementations and summaries. They agree on the softmax
            over the positives of an object, on the divergence and on both averages.
        unverified: Whether the scores are sigmoids or logits (``score``). Logits make the loss about 30 times larger.
            According to the sources, the term ``location`` is in the paper.
        ours: The assignment is the student's; with equal anchors it is also the teacher's. One draft implementation
            sorts the scores of both sides before the softmax, which loses the identity of the anchors; this
            implementation does not. The objectness of an RPN is ranked in the same way, though the paper is about
            one-stage detectors.
        weight: 4 for ``class`` is that of two other implementations for RetinaNet; we use it for all one-stage
            detectors. There is none for ``location``, nor for a Faster R-CNN.
        share: Under ``balance`` it takes at most 0.1 of the gradient unless ``share`` says otherwise. On BCCD that is a
            weight of 2.5; with 0.8, a weight of 312, a student lost 6 AP.
        caution: Scores in 0..1 make a nearly flat softmax at temperature 1, so the loss is small by construction.
    """

    name = "rank_mimicking"
    aliases = ("rm",)
    terms = ("class",)
    optional_terms = ("location",)
    weights = {EVERY_FAMILY: {"class": 4.0}, "faster_rcnn": {}}
    largest_share = {EVERY_FAMILY: 0.1}
    source = (
        "Li et al., AAAI 2022 (RM), from second-hand sources; the class weight is that of two other implementations "
        "for RetinaNet, our choice for other one-stage detectors"
    )
    checked = (
        "other implementations, a draft in open-mmlab/mmrazor @4a47267d, run: class, values to 1e-4, gradients to "
        "1e-6; location by a slow loop only; the paper's text was not available"
    )
    reads = {"class": ("class_logits", "assignment"), "location": ("boxes", "assignment")}

    class Options(Method.Options):
        """The options of RM."""

        score: Literal["sigmoid", "logit"] = "sigmoid"
        """The score that is ranked: ``"sigmoid"``, or ``"logit"`` as in one draft implementation."""
        temperature: PositiveFloat = 1.0
        """Divides scores and IoUs before the softmax; 1 in all sources."""

    options: Options

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``rank_mimicking_class`` and ``rank_mimicking_location``, each averaged over objects and images."""
        found, labelled = positives(truth, student), truth.labelled.sum()
        ranked = {"class": self._scores, "location": self._overlaps}
        terms = {}
        for term in self.terms:
            own, theirs = ranked[term](student, self.student, found), ranked[term](teacher, self.teacher, found)
            loss = rank_loss(own, theirs, found.objects, found.counts, self.options.temperature, labelled)
            terms[f"rank_mimicking_{term}"] = loss
        return terms

    def _scores(self, outputs: Outputs, spec: Spec, found: Positives) -> Tensor:
        labels = torch.zeros_like(found.labels) if spec.objectness else found.labels
        logits = at_least_float32(found.of(outputs.class_logits)).gather(1, labels[:, None]).squeeze(1)
        return logits.sigmoid() if self.options.score == "sigmoid" else logits

    def _overlaps(self, outputs: Outputs, spec: Spec, found: Positives) -> Tensor:
        return paired_iou(found.boxes(outputs, spec), found.true_boxes)
