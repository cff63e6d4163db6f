"""GID: general instance distillation (Dai et al., CVPR 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from understudy.boxes import Places, box_code, chosen, decode, in_strides, split_levels
from understudy.functional import instances, sizes_of_images
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.compatibility import parts_read
from understudy.outputs import Outputs, Spec, Truth


class GID(Method):
    r"""The student imitates the teacher in the boxes on which the two disagree most, whether labelled or not.

    In each image these "general instances" are the ten boxes with the largest difference between the class scores of
    the two detectors. Each is the box of the detector with the higher score, and boxes that overlap a better one are
    left out. Four terms compare them: ``feature`` their features, pooled from the pyramid by RoIAlign; ``relation`` the
    distances between the features of the boxes; ``class`` and ``box`` the class scores and raw box outputs of the
    anchors that the student's own rule assigns to the boxes, as if these were labelled. The student's features pass one
    3x3 convolution, :math:`\phi`.

    .. math::
        L_\text{feature} = \frac{1}{100 \, G} \sum_{g, c, h, w} \left(\phi(F^S)_g - F^T_g\right)^2 \qquad
        L_\text{relation} = \frac{1}{G (G - 1)} \sum_{g \ne g'} h_1\left(
        \frac{d^S_{g g'}}{\bar{d}^S}, \frac{d^T_{g g'}}{\bar{d}^T}\right)

    .. math::
        L_\text{class} = \frac{1}{|R|} \sum_{r \in R} \sum_k
        \operatorname{BCE}\left(\sigma(z^S_{r k}), \sigma(z^T_{r k})\right) \qquad
        L_\text{box} = \frac{1}{|R|} \sum_{r \in R} \sum_i h_{0.1}\left(y^S_{r i}, y^T_{r i}\right)

    .. math::
        \operatorname{BCE}(p, q) = -q \log p - (1 - q) \log(1 - p)

    The :math:`G` boxes of the batch are pooled to 10 x 10 cells. :math:`d` are Euclidean distances between their
    features, and :math:`\bar{d}` is their mean over pairs. :math:`R` are the anchors assigned to the boxes,
    :math:`z` class logits, :math:`y` raw box outputs, and :math:`h_\beta` is the smooth L1 loss.

    Evidence:
        paper: General Instance Distillation for Object Detection: the general instances, the four terms, ten boxes per
            image and the adapter.
        code: Reductions, sizes and weights are from the first author's later re-implementation, which describes itself
            as unfinished. It builds the adapter but never uses it; this implementation uses it, as in the paper.
        ours: If the detectors have different numbers of anchors per cell, the boxes are those of the best anchor of
            each cell, and ``class`` and ``box`` cannot be computed. ``box`` is off for a GFL, whose sides are
            distributions. Box outputs in pixels (mmdet's FCOS) are divided by the stride.
        weight: The weights are those of a RetinaNet; for other families they are our choice.
        caution: ``relation`` is small by construction. ``class`` and ``box`` need the detectors themselves in every
            step; recorded outputs of the teacher are not enough.
    """

    name = "gid"
    terms = ("feature", "relation", "class", "box")
    weights = {
        EVERY_FAMILY: {"feature": 5e-4, "relation": 40.0, "class": 0.1, "box": 1.0},
        "gfl": {"feature": 5e-4, "relation": 40.0, "class": 0.1, "box": 0.0},
    }
    source = "Dai et al., CVPR 2021; reductions and weights from the re-implementation, our choice for other detectors"
    checked = (
        "authors' code, the re-implementation daixinghome/Distill_GID_detectron2 @9118c54 without its adapter, run "
        "with detectron2 @02b5c4e: values and gradients to 1e-5"
    )
    reads = {
        "feature": ("features", "predictions"),
        "relation": ("features", "predictions"),
        "class": ("class_logits", "predictions", "layers"),
        "box": ("box_raw", "predictions", "layers"),
    }

    class Options(Method.Options):
        """The options of GID."""

        count: PositiveInt = 10
        """Maximum number of boxes per image; 10 in the paper."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        if {"feature", "relation"} & set(self.terms):
            self.adapter = nn.Conv2d(student.channels[0], teacher.channels[0], kernel_size=3, padding=1)

    @property
    def needs(self) -> frozenset[str] | None:
        """All inputs but the layers, of which it runs the student's assignment alone."""
        return parts_read(name for reads in self.reads.values() for name in reads if name != "layers")

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require the same channels on every level for the one adapter, and sides that are numbers for smooth L1."""
        both = (student, teacher)
        one_adapter = f"all levels share one adapter, and the student {student.name} has the channels "
        one_adapter += f"{student.channels}, the teacher {teacher.name} {teacher.channels}"
        uneven = [one_adapter] if any(len(set(spec.channels)) > 1 for spec in both) else []
        sides = f"the sides of {student.name} and {teacher.name} are distributions, and this term compares numbers"
        distributed = [sides] if all(spec.dense and box_code(spec).distributed for spec in both) else []
        return {"feature": uneven, "relation": uneven, "box": distributed}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``gid_feature``, ``gid_relation``, ``gid_class`` and ``gid_box``."""
        boxes, terms = self.find(student, teacher), {}
        if hasattr(self, "adapter"):
            adapted = [self.adapter(level) for level in student.features]
            terms = instances.losses_of_regions(adapted, teacher.features, boxes, self.student.strides)
        if {"class", "box"} & set(self.terms):
            places = _assigned(boxes, student, self.both_detectors(layers))
            if "class" in self.terms:
                own, theirs = (places.of(each.class_logits) for each in (student, teacher))
                terms["class"] = instances.response_class_loss(own, theirs)
            if "box" in self.terms:
                own, theirs = (places.of(in_strides(each, self.student)) for each in (student, teacher))
                terms["box"] = instances.response_box_loss(own, theirs)
        return {f"gid_{term}": terms[term] for term in self.terms}

    @torch.no_grad()
    def find(self, student: Outputs, teacher: Outputs) -> list[Tensor]:
        """Find the boxes of disagreement of each image, (G, 4) xyxy in pixels."""
        per_cell = self.student.num_anchors != self.teacher.num_anchors
        own = instances.scored_boxes(student.class_logits, decode(student, self.student), per_cell)
        theirs = instances.scored_boxes(teacher.class_logits, decode(teacher, self.teacher), per_cell)
        sizes = sizes_of_images(student, self.student.strides[0])
        return instances.disagreements(own, theirs, sizes, self.options.count)


def _assigned(boxes: Sequence[Tensor], student: Outputs, layers: Layers) -> Places:
    """Find the anchors of the common levels that the student assigns to boxes, (G, 4) per image, of any class."""
    objects = [{"boxes": each, "labels": each.new_zeros(len(each), dtype=torch.int64)} for each in boxes]
    levels = split_levels(layers.student.assign(layers.student_outputs, objects) >= 0, layers.student_outputs)
    common = layers.pairing.student_part.levels if layers.pairing else range(len(levels))
    return chosen(torch.cat([levels[place] for place in common], dim=1), student)
