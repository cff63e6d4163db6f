"""GID: general instance distillation (Dai et al., CVPR 2021)."""

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from understudy.boxes import chosen, decode, split_levels
from understudy.functional import instances, sizes_of_images
from understudy.methods.base import (
    Layers,
    Method,
    anchor_differences,
    differences,
    level_differences,
    prediction_differences,
)
from understudy.outputs import Outputs, Spec, Truth


class GID(Method):
    """The student imitates the teacher in the boxes on which the two disagree most, labelled objects or not.

    In each image these are the ten boxes with the largest distance of both class scores, the surer detector's each,
    without those that overlap a better one. Four terms: their features, cut out of the pyramid ("feature"); how far the
    boxes of a batch lie apart in them ("relation"); at the anchors that the student assigns to them, as if they were
    labelled, the class scores ("class") and the raw boxes ("box"). The student's features go through one 3x3
    convolution that is thrown away after training: the paper's adapter, which the first author's re-implementation
    builds and does not use; sizes and reductions are from there. Where anchors per cell differ, boxes are those of the
    best anchor of a cell (ours), and the last two terms cannot be computed. The weights are of a RetinaNet, taken over
    for others (ours) but for the box term of a GFL, whose sides are distributions; an FCOS' distances in pixels are
    divided by the stride (ours).

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
    reads = ("features", "class_logits", "box_raw", "layers")
    source = "Dai et al., CVPR 2021; reductions and weights from the re-implementation, for other detectors ours"
    uses_layers = True

    def __init__(self, student: Spec, teacher: Spec, *, count: PositiveInt = 10):
        super().__init__(student, teacher)
        self.count = count
        if {"feature", "relation"} & set(self.terms):
            self.adapter = nn.Conv2d(student.channels[0], teacher.channels[0], kernel_size=3, padding=1)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree; for the last two terms anchors, and classes or box codes; a level's channels all must."""
        levels = level_differences(student, teacher)
        mixed = [spec for spec in (student, teacher) if len(set(spec.channels)) > 1]
        uneven = [f"{spec.name} has levels of different channels, {spec.channels}, for one adapter" for spec in mixed]
        anchors = anchor_differences(student, teacher, raw=True)
        boxes = differences(student, teacher, lambda spec: f"boxes as {spec.box_code}")
        if not boxes and student.box_code == "distributions":
            boxes = [f"the sides of {student.name} and {teacher.name} are distributions, not numbers"]
        faults = {"feature": levels + uneven, "relation": levels + uneven, "box": levels + anchors + boxes}
        faults["class"] = prediction_differences(student, teacher)
        return {term: "; ".join(reasons) for term, reasons in faults.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Compute ``gid_feature``, ``gid_relation``, ``gid_class`` and ``gid_box``."""
        boxes, terms = self.find(student, teacher), {}
        if hasattr(self, "adapter"):
            adapted = [self.adapter(level) for level in student.features]
            terms = instances.losses_of_regions(adapted, teacher.features, boxes, self.student.strides)
        if not {"class", "box"} & set(self.terms):
            return {f"gid_{term}": terms[term] for term in self.terms}
        objects = [{"boxes": each, "labels": each.new_zeros(len(each), dtype=torch.int64)} for each in boxes]
        levels = split_levels(layers.student.assign(layers.student_outputs, objects) >= 0, layers.student_outputs)
        common = layers.pairing.student_part.levels if layers.pairing else range(len(levels))
        places = chosen(torch.cat([levels[place] for place in common], dim=1), student)
        if "class" in self.terms:
            own, theirs = (places.of(each.class_logits) for each in (student, teacher))
            terms["class"] = instances.response_class_loss(own, theirs)
        if "box" in self.terms:
            own, theirs = (places.of(instances.in_strides(each.box_raw, self.student)) for each in (student, teacher))
            terms["box"] = instances.response_box_loss(own, theirs)
        return {f"gid_{term}": terms[term] for term in self.terms}

    @torch.no_grad()
    def find(self, student: Outputs, teacher: Outputs) -> list[Tensor]:
        """Find the boxes of disagreement of each image, (G, 4) xyxy in pixels."""
        per_cell = self.student.num_anchors != self.teacher.num_anchors
        own = instances.scored_boxes(student.class_logits, decode(student, self.student), per_cell)
        theirs = instances.scored_boxes(teacher.class_logits, decode(teacher, self.teacher), per_cell)
        return instances.disagreements(own, theirs, sizes_of_images(student, self.student.strides[0]), self.count)
