"""DeFeat: objects and background decoupled (Guo et al., CVPR 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.functional import decoupled_cells, imitation_loss
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class DeFeat(Method):
    r"""The student imitates the teacher's features inside the objects and outside them, with separate weights.

    An object fills the cells of its box on the one level of its size. All other cells are background. A 3x3 convolution
    per level, :math:`\phi_l`, adapts the student's features. It is discarded after training.

    .. math::
        L_\text{foreground} = \frac{1}{L} \sum_l \frac{1}{2 C |M_l|} \sum_{(n, h, w) \in M_l} \sum_c
        \left(\phi_l(F^S_l) - F^T_l\right)^2

    .. math::
        L_\text{background} = \frac{1}{L} \sum_l \frac{1}{2 C |\bar M_l|} \sum_{(n, h, w) \in \bar M_l} \sum_c
        \left(\phi_l(F^S_l) - F^T_l\right)^2

    :math:`M_l` are the cells inside objects of the level, :math:`\bar M_l` its background. An object is on level
    :math:`\lfloor \log_2(s / 56) \rfloor`, counted from the finest, 0, where :math:`s` is the root of its area in
    pixels, with width and height one pixel longer.

    Evidence:
        paper: Distilling Object Detectors via Decoupled Features, the terms of the neck.
        code: Masks, adapter with its initial weights, and reduction: half of a mean per element, to which the weights
            belong. The authors clip the gradient at 35 (``optimizer.clip_norm=35``).
        ours: Levels are counted from stride 4 for a two-stage student, as the authors', and from stride 8 for others,
            whichever levels the teacher shares. So objects of less than 111 pixels are on stride 4 or 8, those of less
            than 223 on the next level. An object thinner than a cell fills a row or column; the authors' code chooses
            one cell of it. Unlabelled images, and the cells of objects of classes that the teacher lacks, are neither
            foreground nor background.
        weight: 3 and 12 are the authors' for a Faster R-CNN on VOC, and ours for other families: the reduction does not
            depend on the detector. The terms of the backbone, which have weight 0 there, are not implemented.
        related: The paper's third term, on the class scores of a Faster R-CNN's second stage, is not implemented: it
            needs both second stages on the teacher's proposals, and the record holds the first stage alone. Others
            report no gain from it.
    """

    name = "defeat"
    terms = ("foreground", "background")
    weights = {EVERY_FAMILY: {"foreground": 3.0, "background": 12.0}}
    source = "Guo et al., CVPR 2021; reductions and weights from the authors' code, our choice for other detectors"
    checked = (
        "authors' code, ggjy/DeFeat.pytorch @c46a793, run: values and gradients to 1e-12, except for objects "
        "thinner than a cell"
    )
    reads = dict.fromkeys(terms, ("features", "objects"))

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        levels = zip(student.channels, teacher.channels, strict=True)
        adapters = [nn.Conv2d(own, theirs, kernel_size=3, padding=1) for own, theirs in levels]
        for adapter in adapters:
            nn.init.trunc_normal_(adapter.weight, std=1e-4, a=-2e-4, b=2e-4)  # near zero, as in the authors' code
        self.adapters = nn.ModuleList(adapters)
        self.finest = min(student.strides[0], 4 if student.two_stage else 8)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
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
