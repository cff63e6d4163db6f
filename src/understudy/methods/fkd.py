"""FKD: attention-guided and non-local feature distillation (Zhang & Ma, ICLR 2021)."""

from functools import partial
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from understudy.functional import batch_distance, mean_attention
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Layers, Method
from understudy.methods.nonlocal_ import NonLocalRelation
from understudy.outputs import Outputs, Spec, Truth

_ONE_STAGE = {"feature": 4.2e-4, "channel": 2.4e-2, "spatial": 2.4e-2, "relation": 4.2e-4}


class FKD(Method):
    r"""The student imitates the teacher's features, weighted by the attention of both, and their relations.

    ``feature`` compares the features under the mean attention of both detectors, ``channel`` their averages over cells,
    ``spatial`` their averages over channels, and ``relation`` the results of non-local blocks (see ``nonlocal``).
    Convolutions per level, :math:`\phi_l`, adapt the student's side: 3x3 for ``spatial``, 1x1 for the others. They are
    discarded after training.

    .. math::
        L_\text{feature} = \sum_l \left\| \sqrt{M_l} \left(\phi_l(F^S_l) - F^T_l\right) \right\| \qquad
        \left\| X \right\| = \sqrt{\frac{I}{N} \sum_{n, \ldots} X_{n \ldots}^2}

    .. math::
        M_l = \frac{A^S_l + A^T_l}{2} \cdot \frac{B^S_l + B^T_l}{2} \qquad
        A_l = H_l W_l \operatorname{softmax}_{h, w}\left(\frac{\operatorname{mean}_c |F_l|}{\tau}\right) \qquad
        B_l = C \operatorname{softmax}_c\left(\frac{\operatorname{mean}_{h, w} |F_l|}{\tau}\right)

    .. math::
        L_\text{channel} = \sum_l \left\| \phi_l\left(\operatorname{mean}_{h, w} F^S_l\right)
        - \operatorname{mean}_{h, w} F^T_l \right\| \qquad
        L_\text{spatial} = \sum_l \left\| \phi_l\left(\operatorname{mean}_c F^S_l\right)
        - \operatorname{mean}_c F^T_l \right\|

    .. math::
        L_\text{relation} = \sum_l \left\| \phi_l\left(G^S_l(F^S_l)\right) - G^T_l(F^T_l) \right\|

    The norms run over the whole batch of :math:`N` images, and :math:`I` is ``images_per_process``. :math:`M_l` is a
    constant, and :math:`\tau` the temperature. The factor with :math:`B_l` applies only with ``weigh_channels``.
    :math:`G_l` are the non-local blocks.

    Evidence:
        paper: Improve Object Detection with Feature-based Knowledge Distillation.
        code: The authors' repository has no code. Formulas, temperatures and weights are from copies of it. The
            teacher's non-local blocks are trained, too, as there.
        ours: If channels differ, the student's attention to channels is that of its adapted features.
            ``images_per_process``: in the code, the norms grow with the root of the images of a process; here they are
            those of 2 images, however many a process has.
        weight: From copies of the authors' code. They belong to two images per process (our assumption; the number in
            mmrazor's configuration).
        caution: We recommend gradient clipping in long runs (``optimizer.clip_norm=35``).
        related: ``nonlocal`` is the term ``relation`` alone.
    """

    name = "fkd"
    terms = ("feature", "channel", "spatial", "relation")
    weights = {
        "retinanet": _ONE_STAGE,
        "fcos": _ONE_STAGE,
        "gfl": _ONE_STAGE,
        "faster_rcnn": {"feature": 7e-5, "channel": 4e-3, "spatial": 4e-3, "relation": 7e-5},
    }
    source = "Zhang & Ma, ICLR 2021; weights and temperatures from copies of the authors' code"
    checked = (
        "authors' code, from copies: read; open-mmlab/mmrazor @90c7af1, FBKDLoss, run: feature, channel and spatial, "
        "values to 1e-12"
    )
    reads = dict.fromkeys(terms, ("features",))

    class Options(Method.Options):
        """The options of FKD."""

        temperature: PositiveFloat | None = None
        """Temperature of both attentions. None: 0.5 for a two-stage student, 0.1 for others (the authors')."""
        weigh_channels: bool | None = None
        """Whether to weight the feature term by the attention to channels, too. None: yes, except for a two-stage
        student (the authors'). If channels differ, the student's attention is that of its adapted features (ours)."""
        images_per_process: PositiveInt | None = 2
        """Number of images that the norms are scaled to: with N images they are divided by the root of N / 2. 2 belongs
        to the published weights. None: the norms over all images of a process, as in copies of the authors' code."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        two_stage, temperature, by_channel = student.two_stage, self.options.temperature, self.options.weigh_channels
        self.temperature = (0.5 if two_stage else 0.1) if temperature is None else temperature
        self.weigh_channels = not two_stage if by_channel is None else by_channel
        levels = list(zip(student.channels, teacher.channels, strict=True))
        layers = {
            term: [nn.Conv2d(1, 1, 3, padding=1) if term == "spatial" else nn.Conv2d(*level, 1) for level in levels]
            for term in self.terms
            if term != "relation"
        }
        self.adapters: Any = nn.ModuleDict({term: nn.ModuleList(layers[term]) for term in layers})
        if "relation" in self.terms:
            self.relation = NonLocalRelation(student.channels, teacher.channels, self.options.images_per_process)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``fkd_feature``, ``fkd_channel``, ``fkd_spatial`` and ``fkd_relation``, each summed over levels."""
        compute = {
            "feature": self._feature,
            "channel": partial(self._averages, (2, 3)),
            "spatial": partial(self._averages, (1,)),
        }
        losses = {}
        for term, adapters in self.adapters.items():
            levels = zip(adapters, student.features, teacher.features, strict=True)
            losses[f"fkd_{term}"] = torch.stack([compute[term](*level) for level in levels]).sum()
        if "relation" in self.terms:
            losses["fkd_relation"] = self.relation(student.features, teacher.features)
        return losses

    def _feature(self, adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        adapted = adapter(student)
        same = student if student.shape == teacher.shape else adapted
        weight = mean_attention(student, teacher, self.temperature, same if self.weigh_channels else None)
        return batch_distance(adapted, teacher, weight, self.options.images_per_process)

    def _averages(self, over: tuple[int, ...], adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        own, theirs = (at_least_float32(features).mean(over, keepdim=True) for features in (student, teacher))
        return batch_distance(adapter(own), theirs, images=self.options.images_per_process)
