"""Pair-wise similarity distillation (Liu et al., CVPR 2019)."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.functional import pairwise_loss
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Truth


class Pairwise(Method):
    r"""The student imitates the similarities between the teacher's features of every two cells of an image.

    The cosine similarities of all pairs of cells of a level are compared. The channels need not agree, and there is no
    adapter. Large levels are max-pooled first, since memory grows with the square of the number of cells.

    .. math::
        L_\text{relation} = \sum_l \frac{1}{N P_l^2} \sum_n \sum_{i, j} \left(A^S_{l i j} - A^T_{l i j}\right)^2 \qquad
        A_{l i j} = \frac{f_{l i}^\top f_{l j}}{\|f_{l i}\| \, \|f_{l j}\|}

    :math:`f_{l i}` is the feature of cell :math:`i` of level :math:`l`, :math:`P_l` the number of its cells after
    pooling. No gradient flows through the lengths.

    Evidence:
        paper: Structured Knowledge Distillation for Semantic Segmentation, its pair-wise term.
        code: The reduction, and the lengths as constants. The authors pool to patches, too.
        ours: The levels of a detector, and ``max_cells``.
        weight: 1 is ours: no weight for detectors is known.
        share: Under ``balance`` it takes at most 0.4 of a Faster R-CNN's gradient unless ``share`` says otherwise. On
            BCCD a student of 53.8 AP had 52.7 with 0.8, and 54.0 with 0.4, over three seeds. FCOS and GFL need 0.8.
        related: We assume that this method is the "pa" of Dist2's tables.
    """

    name = "pairwise"
    aliases = ("pa",)
    terms = ("relation",)
    weights = {EVERY_FAMILY: {"relation": 1.0}}
    largest_share = {"faster_rcnn": 0.4}
    source = "Liu et al., CVPR 2019, and the authors' code; the weight is our choice: none for detectors is known"
    checked = (
        "authors' code, irfanICMLL/structure_knowledge_distillation @ce208e1, sim_dis_compute, run: values and "
        "gradients to 1e-12"
    )
    reads = {"relation": ("features",)}

    class Options(Method.Options):
        """The options of Pairwise."""

        max_cells: PositiveInt = 1600
        """Maximum number of cells of a level; larger levels are max-pooled (ours). 1600 cells take 10 MB per image and
        detector."""

    options: Options

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``pairwise_relation``, summed over levels."""
        levels = zip(student.features, teacher.features, strict=True)
        losses = [pairwise_loss(*level, self.options.max_cells) for level in levels]
        return {"pairwise_relation": torch.stack(losses).sum()}
