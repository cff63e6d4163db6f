"""FGFI: fine-grained feature imitation near the objects (Wang et al., CVPR 2019)."""

from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from understudy.functional import imitated_cells, imitation_loss, widened_points
from understudy.methods.base import Method, level_differences
from understudy.outputs import Outputs, Spec, Truth


class FineGrained(Method):
    """The student imitates the teacher's features in the cells whose anchors lie near an object.

    A cell counts if one of the student's anchors overlaps an object by more than a share of that object's best IoU.
    There the student's features, through a 3x3 convolution and a ReLU per level that are thrown away
    after training, are drawn to the teacher's, averaged over the cells of the batch, summed over channels.

    The release imitates a single level. Several levels, of which each is divided by its own cells and the mean is
    taken, are as in the port in DeFeat's repository; that a best IoU is the best over all levels is our reading, where
    the port gives each object one level by its size. The anchors of an FCOS are points: squares of 8 cells a side round
    them, as large as what is looked for on their level, stand for them (ours; ATSS has these). The release begins after
    400 steps, where we grow for 400. Its weight, for a Faster R-CNN, is taken over to the others (our choice: the
    reduction depends on no detector).

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        share: of an object's best IoU, 0..1 (1 excluded); 0.5 is the paper's.

    Raises:
        UserError: the levels of the two detectors differ, or the share is out of range.
    """

    name = "fine_grained"
    terms = ("feature",)
    weights = {family: {"feature": 0.01} for family in ("faster_rcnn", "retinanet", "fcos", "gfl")}  # noqa: RUF012
    ramp_steps = 400
    reads = ("features", "truth")
    source = "Wang et al., CVPR 2019; weight and start from the authors' code, for other detectors ours"

    def __init__(self, student: Spec, teacher: Spec, *, share: Annotated[float, Field(ge=0, lt=1)] = 0.5):
        super().__init__(student, teacher)
        self.share = share
        levels = zip(student.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(_adapter(own, theirs) for own, theirs in levels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return {"feature": faults[0]} if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``fine_grained_feature``, the mean over levels."""
        points = self.student.box_code.startswith("distances")
        anchors = widened_points(student.anchors, self.student.strides) if points else student.anchors
        masks = imitated_cells(anchors, truth.targets, self.share)
        levels = zip(self.adapters, student.features, teacher.features, masks, strict=True)
        losses = [imitation_loss(adapter(own), theirs, mask) for adapter, own, theirs, mask in levels]
        return {"fine_grained_feature": torch.stack(losses).mean()}


def _adapter(student: int, teacher: int) -> nn.Module:
    """A convolution that begins near zero, as in the authors' code."""
    convolution = nn.Conv2d(student, teacher, kernel_size=3, padding=1)
    nn.init.normal_(convolution.weight, std=1e-4)
    nn.init.zeros_(cast(Tensor, convolution.bias))
    return nn.Sequential(convolution, nn.ReLU())
