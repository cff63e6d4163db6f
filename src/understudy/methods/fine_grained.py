"""FGFI: fine-grained feature imitation near the objects (Wang et al., CVPR 2019)."""

from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from understudy.functional import imitated_cells, imitation_loss, widened_points
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class FineGrained(Method):
    r"""The student imitates the teacher's features in the cells whose anchors lie near an object.

    A cell counts if one of the student's anchors overlaps an object by more than a share of that object's best IoU.
    There the student's features, after a 3x3 convolution per level, :math:`\phi_l`, imitate the teacher's. The adapters
    are discarded after training.

    .. math::
        L_\text{feature} = \frac{1}{L} \sum_l \frac{1}{2 |M_l|} \sum_{(n, h, w) \in M_l} \sum_c
        \left(\phi_l(F^S_l) - F^T_l\right)^2

    .. math::
        M_l = \left\{ (n, h, w) : \exists\, \text{anchor } a, \text{object } o : \;
        \operatorname{IoU}(a, o) > \rho \max_{a'} \operatorname{IoU}(a', o) \right\}

    :math:`\rho` is ``iou_share``, :math:`a` an anchor of the cell, and :math:`a'` any anchor of any level.

    Evidence:
        paper: Distilling Object Detectors with Fine-grained Feature Imitation.
        code: Adapter with its initial weights, weight and reduction. The release imitates one map of a backbone, of
            one image per process, and clips the gradient at 10 (``optimizer.clip_norm=10``). Several levels, their
            mean, and an adapter without the release's ReLU are as in a port in DeFeat's repository: the values of a
            pyramid have both signs.
        ours: The best IoU of an object is the best over all levels; the port gives each object one level by its size.
            The anchors of an FCOS are points: squares with sides of 8 cells around them, as in ATSS, replace them. The
            weight increases over 400 steps; the release starts after 400.
        weight: 0.01 is the authors' for a Faster R-CNN, and ours for the others: the reduction does not depend on the
            detector.
    """

    name = "fine_grained"
    aliases = ("fgfi",)
    terms = ("feature",)
    weights = {EVERY_FAMILY: {"feature": 0.01}}
    ramp_steps = 400
    source = "Wang et al., CVPR 2019; weight and start from the authors' code, our choice for other detectors"
    checked = (
        "authors' code, twangnh/Distilling-Object-Detectors @c6583f3: run on one level, value to 1e-10; pyramid "
        "levels: ggjy/DeFeat.pytorch @c46a793, read"
    )
    reads = {"feature": ("features", "student_anchors", "objects")}

    class Options(Method.Options):
        """The options of FineGrained."""

        iou_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """A cell is imitated if an anchor's IoU with an object is above this share of the object's best IoU; 0.5 in the
        paper."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        levels = zip(student.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(_adapter(own, theirs) for own, theirs in levels)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``fine_grained_feature``, the mean over levels."""
        points = self.student.points
        anchors = widened_points(student.anchors, self.student.strides) if points else student.anchors
        masks = imitated_cells(anchors, truth.targets, self.options.iou_share)
        levels = zip(self.adapters, student.features, teacher.features, masks, strict=True)
        losses = [imitation_loss(adapter(own), theirs, mask) for adapter, own, theirs, mask in levels]
        return {"fine_grained_feature": torch.stack(losses).mean()}


def _adapter(student: int, teacher: int) -> nn.Module:
    """Build a convolution with initial weights near zero, as in the authors' code."""
    convolution = nn.Conv2d(student, teacher, kernel_size=3, padding=1)
    nn.init.normal_(convolution.weight, std=1e-4)
    nn.init.zeros_(cast(Tensor, convolution.bias))
    return convolution
