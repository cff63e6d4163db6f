"""LD: localisation distillation, for boxes whose sides are distributions (Zheng et al., CVPR 2022)."""

from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from understudy.boxes import Places, chosen, positives
from understudy.functional import side_divergence, softened_divergence, valuable_region
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Method, differences, prediction_differences
from understudy.outputs import Outputs, Spec, Truth


class LD(Method):
    """The student learns how sure the teacher is of each side of a box, not only where it lies.

    Both detectors are GFLs: a side is a distribution over distances. The location term is the Kullback-Leibler
    divergence of the teacher's softened distributions from the student's (mean over bins, times the squared
    temperature) at the anchors that have an object, weighted by the student's own best class score there, and
    averaged over the four sides. The vlr term is the same in the valuable localisation region round the objects,
    weighted by IoU, divided by four once more. The class term is that divergence between classes at the anchors that
    have an object, averaged over classes and these anchors (of all levels and of the process's batch; our reading).

    As in the authors' code location and vlr are sums over anchors and images, so they grow with the objects and with
    the batch: their weights belong to few images per process. The paper's feature term, a mean squared error in the
    region of ``fine_grained``, is not here.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        temperature: of the sides.
        class_temperature: of the classes.
        normaliser: ``"sum"`` (the authors' code), or divide location and vlr by the ``"positives"``, the anchors that
            have an object, of the batch (ours), which needs weights some hundred times as large.

    Raises:
        UserError: an option is wrong, boxes are not distributions over the same bins, or levels, anchors or classes
            differ.
    """

    name = "ld"
    terms = ("location", "vlr", "class")
    weights = {"gfl": {"location": 0.25, "vlr": 0.25, "class": 10.0}}  # noqa: RUF012
    reads = ("class_logits", "box_raw", "truth")
    source = "Zheng et al., CVPR 2022; reductions, temperatures and weights from the authors' code"

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        temperature: PositiveFloat = 10.0,
        class_temperature: PositiveFloat = 2.0,
        normaliser: Literal["sum", "positives"] = "sum",
    ):
        super().__init__(student, teacher)
        self.temperature, self.class_temperature, self.normaliser = temperature, class_temperature, normaliser

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """The sides of both must be distributions over the same bins; anchors, and classes, of which more than one."""
        if any(spec.box_code != "distributions" for spec in (student, teacher)):
            boxes = f"the student {student.name} has {student.box_code}, the teacher {teacher.name} {teacher.box_code}"
            return dict.fromkeys(cls.terms, f"boxes are not distributions of both: {boxes}")
        unlike = prediction_differences(student, teacher)
        bins = differences(student, teacher, lambda spec: f"sides of {spec.box_size // 4} bins")
        single = [f"a softmax over the one class of {student.name} and {teacher.name} says nothing"]
        faults = {"location": unlike + bins, "vlr": unlike + bins}
        faults["class"] = unlike + (single if student.num_classes == 1 else [])
        return {term: "; ".join(reasons) for term, reasons in faults.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``ld_location`` and ``ld_vlr``, summed over anchors, and ``ld_class``, averaged over them."""
        found = positives(truth, student)
        own = at_least_float32(found.of(student.class_logits))
        count = max(len(own), 1)
        divisor = count if self.normaliser == "positives" else 1
        terms = {}
        if "location" in self.terms:
            trust = own.detach().amax(-1).sigmoid()
            terms["ld_location"] = (trust * self._sides(student, teacher, found)).sum() / divisor
        if "vlr" in self.terms:
            boxes = torch.cat([target["boxes"] for target in truth.targets])
            anchors = [level.flatten(0, 2) for level in student.anchors]
            weight = valuable_region(anchors, boxes, found.image, truth.gt_index > -2)
            region = chosen(weight > 0, student)
            sides = self._sides(student, teacher, region)
            terms["ld_vlr"] = (region.of_flat(weight, student) * sides).sum() / 4 / divisor
        if "class" in self.terms:
            theirs = found.of(teacher.class_logits)
            terms["ld_class"] = softened_divergence(own, theirs, self.class_temperature).sum() / own.shape[-1] / count
        return terms

    def _sides(self, student: Outputs, teacher: Outputs, places: Places) -> Tensor:
        return side_divergence(places.of(student.box_raw), places.of(teacher.box_raw), self.temperature)
