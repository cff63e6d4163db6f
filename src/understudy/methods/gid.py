"""GID: general instance distillation (Dai et al., CVPR 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.boxes import chosen, decode
from understudy.errors import UserError
from understudy.functional import instances, response_box_loss, response_class_loss, sizes_of_images
from understudy.methods.base import Method, differences, level_differences, prediction_differences
from understudy.outputs import Outputs, Spec, Truth

RESPONSES = {"class": ("class_logits", response_class_loss), "box": ("box_raw", response_box_loss)}


class GID(Method):
    """The student imitates the teacher in the boxes on which the two disagree most, labelled objects or not.

    In each image these are the ten boxes with the largest distance of both class scores, the surer detector's each,
    without those that overlap a better one. Four terms: the features of these boxes, cut out of the pyramid
    ("feature"); how far the boxes of a batch lie apart in them ("relation"); at the anchors that match them, the class
    scores ("class") and the raw boxes ("box"). The student's features go through one 3x3 convolution that is thrown
    away after training: the paper's adapter, which the first author's public re-implementation builds and does not
    use. What the paper leaves open (sizes, reductions) is from there. Repeating the batch changes the relation term.

    Where anchors per cell differ, boxes are those of the best anchor of a cell (ours), and the last two terms cannot
    be computed. The weights are of a RetinaNet, taken over for others (our choice) but for the box term of a GFL,
    whose sides are distributions.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        count: the most boxes of an image; 10 is the paper's.

    Raises:
        UserError: a term cannot be computed for this pair.
    """

    name = "gid"
    terms = ("feature", "relation", "class", "box")
    weights = {  # noqa: RUF012
        family: {"feature": 5e-4, "relation": 40.0, "class": 0.1, "box": 0.0 if family == "gfl" else 1.0}
        for family in ("retinanet", "fcos", "gfl", "faster_rcnn")
    }
    reads = ("features", "class_logits", "box_raw")
    source = "Dai et al., CVPR 2021; reductions and weights from the re-implementation, for other detectors ours"

    def __init__(self, student: Spec, teacher: Spec, *, count: int = 10):
        super().__init__(student, teacher)
        if count < 1:
            raise UserError(f"[methods.gid] count is at least 1, got {count}.")
        self.count = count
        if {"feature", "relation"} & set(self.terms):
            self.adapter = nn.Conv2d(student.channels[0], teacher.channels[0], kernel_size=3, padding=1)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree; for the last two terms anchors, and classes or box codes; a level's channels all must."""
        levels = level_differences(student, teacher)
        uneven = [
            f"{spec.name} has levels of different channels, {spec.channels}, and one adapter is to serve all"
            for spec in (student, teacher)
            if len(set(spec.channels)) > 1
        ]
        anchors = differences(student, teacher, lambda spec: f"{spec.num_anchors} anchors per cell")
        boxes = differences(student, teacher, lambda spec: f"boxes as {spec.box_code}")
        if not boxes and student.box_code == "distributions":
            boxes = [f"the sides of {student.name} and {teacher.name} are distributions, not numbers"]
        faults = {"feature": levels + uneven, "relation": levels + uneven, "box": levels + anchors + boxes}
        faults["class"] = prediction_differences(student, teacher)
        return {term: "; ".join(reasons) for term, reasons in faults.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``gid_feature``, ``gid_relation``, ``gid_class`` and ``gid_box``."""
        boxes = self.find(student, teacher)
        terms = self._of_regions(student, teacher, boxes) if hasattr(self, "adapter") else {}
        if responses := RESPONSES.keys() & set(self.terms):
            anchors = torch.cat([level.flatten(0, 2) for level in student.anchors])
            places = chosen(torch.stack([instances.matched_anchors(each, anchors) for each in boxes]), student)
            for term, (field, loss) in ((term, RESPONSES[term]) for term in responses):
                terms[term] = loss(places.of(getattr(student, field)), places.of(getattr(teacher, field)))
        return {f"gid_{term}": terms[term] for term in self.terms}

    def _of_regions(self, student: Outputs, teacher: Outputs, boxes: list[Tensor]) -> dict[str, Tensor]:
        adapted, strides = [self.adapter(level) for level in student.features], self.student.strides
        own = instances.pooled_regions(adapted, boxes, strides)
        theirs = instances.pooled_regions(teacher.features, boxes, strides)
        relation = instances.distance_relation_loss(own.flatten(1), theirs.flatten(1))
        return {"feature": instances.region_loss(own, theirs), "relation": relation}

    @torch.no_grad()
    def find(self, student: Outputs, teacher: Outputs) -> list[Tensor]:
        """Find the boxes of disagreement of each image, (G, 4) xyxy in pixels."""
        per_cell = self.student.num_anchors != self.teacher.num_anchors
        own = instances.scored_boxes(student.class_logits, decode(student, self.student), per_cell)
        theirs = instances.scored_boxes(teacher.class_logits, decode(teacher, self.teacher), per_cell)
        sizes = sizes_of_images(student, self.student.strides[0])
        images = zip(own[0], theirs[0], own[1], theirs[1], sizes, strict=True)
        return [instances.general_instances(*image, self.count) for image in images]
