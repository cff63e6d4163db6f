"""DeFeat: objects and background decoupled (Guo et al., CVPR 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.functional import decoupled_cells, imitation_loss
from understudy.methods.base import Method, level_differences
from understudy.outputs import Outputs, Spec, Truth


class DeFeat(Method):
    """The student imitates the teacher's features inside the objects and outside them, by separate weights.

    An object fills the cells of its box on the one level of its size; all other cells are background. In each of the
    two the student's features, through a 3x3 convolution per level that is thrown away after training, are drawn to
    the teacher's: half the mean square over the cells of the batch and the channels, averaged over levels (the
    reduction of the authors' code, whose weights belong to it).

    Ours: unlabelled images, and the cells of objects of classes that the teacher does not know, are in neither. The
    levels of objects are counted from stride 4 for a Faster R-CNN, as the authors', from stride 8 for others, whichever
    levels the teacher shares: a side of less than 112 pixels is there, of less than 224 on the next.

    Only the neck's terms are here. The paper's third, the class scores of a Faster R-CNN's second stage on the
    teacher's proposals, is left out: it needs the second stages of both on the same proposals, and the record holds
    the first stage alone. Those of the backbone have weight 0 in the authors' configuration. The weights are of a
    Faster R-CNN on VOC; for other detectors they are taken over (our choice: the reduction depends on no detector).

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: the levels of the two detectors differ.
    """

    name = "defeat"
    terms = ("foreground", "background")
    weights = {  # noqa: RUF012
        family: {"foreground": 3.0, "background": 12.0} for family in ("faster_rcnn", "retinanet", "fcos", "gfl")
    }
    reads = ("features", "truth")
    source = "Guo et al., CVPR 2021; reductions and weights from the authors' code, for other detectors ours"

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__(student, teacher)
        levels = zip(student.channels, teacher.channels, strict=True)
        adapters = [nn.Conv2d(own, theirs, kernel_size=3, padding=1) for own, theirs in levels]
        for adapter in adapters:
            nn.init.trunc_normal_(adapter.weight, std=1e-4, a=-2e-4, b=2e-4)  # near zero, as in the authors' code
        self.adapters = nn.ModuleList(adapters)
        self.finest = min(student.strides[0], 4 if student.family == "faster_rcnn" else 8)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``defeat_foreground`` and ``defeat_background``, each the mean over levels."""
        cells = decoupled_cells(truth, self.student.strides, student.level_sizes, self.finest)
        masks = dict(zip(("foreground", "background"), cells, strict=True))
        adapted = [adapter(own) for adapter, own in zip(self.adapters, student.features, strict=True)]
        terms = {}
        for term in self.terms:
            levels = zip(adapted, teacher.features, masks[term], strict=True)
            losses = [imitation_loss(own, theirs, mask) / theirs.shape[1] for own, theirs, mask in levels]
            terms[f"defeat_{term}"] = torch.stack(losses).mean()
        return terms
