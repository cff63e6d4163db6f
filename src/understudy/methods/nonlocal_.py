"""The non-local term of FKD alone (Zhang & Ma, ICLR 2021). The file has an underscore: ``nonlocal`` is a keyword."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from understudy.functional import joint_distance, non_local
from understudy.methods.base import Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class NonLocal(Method):
    r"""The student imitates the teacher's features after a non-local block, which relates all cells of an image.

    Each level of both feature pyramids passes through a non-local block, which adds to every cell a sum over all cells.
    A 1x1 convolution, :math:`\phi_l`, maps the student's result to the teacher's channels. The convolutions and the
    blocks, including the teacher's, are trained, and discarded after training.

    .. math::
        L_\text{relation} = \sum_l \sqrt{\frac{I}{N}} \left\| \phi_l\left(G^S_l(F^S_l)\right) - G^T_l(F^T_l) \right\|_2

    .. math::
        G_l(F)_i = F_i + \operatorname{BN}\left(W_o \frac{1}{Q} \sum_{j = 1}^Q
        \left(W_q F\right)_i^\top \left(W_k F\right)_j \left(W_v F\right)_j\right)

    The norm runs over cells, channels and the whole batch of :math:`N` images, and :math:`I` is ``images_per_process``.
    The :math:`W` are 1x1 convolutions, and :math:`j` runs over
    the :math:`Q` cells of max-pooled maps. :math:`\operatorname{BN}` is a batch normalisation, whose weight starts at
    zero.

    Evidence:
        paper: Improve Object Detection with Feature-based Knowledge Distillation.
        code: The authors' repository has no code. Formula, block and weights are from copies of it, in which the
            teacher's block is trained, too. Inner channels and pooling are theirs at 256 channels.
        ours: A map smaller than the pooling becomes one cell. A batch of a single cell is normalised by the running
            statistics. ``images_per_process``: in the code, the norm grows with the root of the images of a process;
            here it is that of 2 images, however many a process has.
        weight: From copies of the authors' code. They belong to two images per process (our assumption; the number in
            mmrazor's configuration).
        related: This is the term ``relation`` of ``fkd`` alone. We assume that it is Dist2's "NonLocal".
    """

    name = "nonlocal"
    terms = ("relation",)
    weights = {
        "retinanet": {"relation": 4.2e-4},
        "fcos": {"relation": 4.2e-4},
        "gfl": {"relation": 4.2e-4},
        "faster_rcnn": {"relation": 7e-5},
    }
    source = "Zhang & Ma, ICLR 2021, one term; weights from copies of the authors' code"
    checked = "authors' code, from copies: read; open-mmlab/mmrazor @90c7af1: run with pooling by 2, value to 1e-10"
    reads = {"relation": ("features",)}

    class Options(Method.Options):
        """The options of the non-local term."""

        images_per_process: PositiveInt | None = 2
        """Number of images that the norm is scaled to: with N images it is divided by the root of N / 2. 2 belongs to
        the published weights. None: the norm over all images of a process, as in copies of the authors' code."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        self.relation = NonLocalRelation(student.channels, teacher.channels, self.options.images_per_process)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``nonlocal_relation``, summed over levels."""
        return {"nonlocal_relation": self.relation(student.features, teacher.features)}


class NonLocalRelation(nn.Module):
    """Compare two feature pyramids after a non-local block per level of each.

    Args:
        student: the student's channels per level.
        teacher: the teacher's channels per level.
        images: the number of images that the norms are scaled to, see :func:`.joint_distance`.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], images: int | None = None):
        super().__init__()
        self.images = images
        levels = list(enumerate(zip(student, teacher, strict=True)))
        self.student = nn.ModuleList(NonLocalBlock(own, level) for level, (own, _) in levels)
        self.teacher = nn.ModuleList(NonLocalBlock(theirs, level) for level, (_, theirs) in levels)
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, 1) for _, (own, theirs) in levels)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compute the sum over levels of the distances, from features (N, C, H, W); the teacher's are constants."""
        blocks = zip(self.student, self.adapters, self.teacher, strict=True)
        distances = [
            joint_distance(adapter(block(own)), other(theirs.detach()), self.images)
            for (block, adapter, other), own, theirs in zip(blocks, student, teacher, strict=True)
        ]
        return torch.stack(distances).sum()


class NonLocalBlock(nn.Module):
    """Add to each cell of a map a sum over all its cells, after a batch normalisation.

    The normalisation's weight and bias start at zero, as in copies of the authors' code, so the new block changes
    nothing.

    Inner channels (a quarter on the two finest levels, then a half) and pooling (8, 4, then 2) are, at 256 channels,
    those of copies of the authors' code. A map smaller than the pooling becomes one cell (ours).

    Args:
        channels: C.
        level: position in the pyramid, 0 the finest.
    """

    def __init__(self, channels: int, level: int):
        super().__init__()
        inner = max(1, channels // (4 if level < 2 else 2))
        self.pooling = (8, 4)[level] if level < 2 else 2
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out, self.norm = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Compute (N, C, H, W) from (N, C, H, W)."""
        side = [min(self.pooling, length) for length in features.shape[-2:]]
        key, value = (F.max_pool2d(layer(features), side) for layer in (self.key, self.value))
        return features + self._normalised(self.out(non_local(self.query(features), key, value)))

    def _normalised(self, added: Tensor) -> Tensor:
        if added[:, 0].numel() > 1:
            return self.norm(added)
        norm = self.norm  # a single value per channel has no deviation of its own
        return F.batch_norm(added, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
