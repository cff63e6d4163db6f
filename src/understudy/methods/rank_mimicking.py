"""RM: the student ranks the anchors of an object as the teacher does (Li et al., AAAI 2022)."""

from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from understudy.boxes import Positives, paired_iou, positives
from understudy.functional import rank_loss
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Method, prediction_differences
from understudy.outputs import Outputs, Spec, Truth


class RankMimicking(Method):
    """The student learns which of the anchors on an object the teacher trusts most, not how much it trusts them.

    For each object, the scores that an anchor gives to the object's class become a softmax over the anchors assigned
    to it; the class term is the Kullback-Leibler divergence of the teacher's from the student's, averaged over the
    objects of an image, then over the labelled images. The location term does the same with the IoU of each anchor's
    predicted box with the object. It is an option: off unless it is given a weight, for none is published.

    The paper's own equations were not at hand; this follows second-hand sources, which agree on both averages and
    disagree on the scores. Sigmoid scores between 0 and 1 make a flat softmax at temperature 1, hence a small loss;
    logits make one that is tens of times larger. The assignment is the student's, which with equal anchors is the
    teacher's. An RPN's objectness is ranked just so, which is ours: the paper speaks of one-stage detectors, and no
    weight is set for a Faster R-CNN.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        score: what is ranked, ``"sigmoid"`` scores or a ``"logit"`` (one draft implementation has those).
        temperature: divides scores, and IoUs, before the softmax; 1 in all sources.

    Raises:
        UserError: an option is wrong, or levels, anchors or classes of the two detectors differ.
    """

    name = "rank_mimicking"
    terms = ("class",)
    optional_terms = ("location",)
    weights = {"retinanet": {"class": 4.0}, "fcos": {"class": 4.0}, "gfl": {"class": 4.0}}  # noqa: RUF012
    reads = ("class_logits", "box_raw", "truth")
    source = (
        "Li et al., AAAI 2022 (RM), from second-hand sources; the class weight is that of two other implementations "
        "for RetinaNet, taken over for FCOS and GFL by us"
    )

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        score: Literal["sigmoid", "logit"] = "sigmoid",
        temperature: PositiveFloat = 1.0,
    ):
        super().__init__(student, teacher)
        self.score, self.temperature = score, temperature

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Anchors are ranked one against the other, so both must have the same."""
        reasons = prediction_differences(student, teacher)
        return dict.fromkeys((*cls.terms, *cls.optional_terms), "; ".join(reasons)) if reasons else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``rank_mimicking_class`` and ``rank_mimicking_location``, each averaged over objects and images."""
        found = positives(truth, student)
        ranked = {"class": self._scores, "location": self._overlaps}
        terms = {}
        for term in self.terms:
            own, theirs = ranked[term](student, self.student, found), ranked[term](teacher, self.teacher, found)
            loss = rank_loss(own, theirs, found.objects, found.counts, self.temperature, truth.labelled.sum())
            terms[f"rank_mimicking_{term}"] = loss
        return terms

    def _scores(self, outputs: Outputs, spec: Spec, found: Positives) -> Tensor:
        labels = torch.zeros_like(found.labels) if spec.objectness else found.labels
        logits = at_least_float32(found.of(outputs.class_logits)).gather(1, labels[:, None]).squeeze(1)
        return logits.sigmoid() if self.score == "sigmoid" else logits

    def _overlaps(self, outputs: Outputs, spec: Spec, found: Positives) -> Tensor:
        return paired_iou(found.boxes(outputs, spec), found.true_boxes)
