"""FGD: focal and global knowledge (Yang et al., CVPR 2022)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from understudy.functional import area_weights, attention_loss, context_loss, focal_loss, sizes_of_images
from understudy.methods.adapters import channel_adapters
from understudy.methods.base import Layers, Method
from understudy.methods.compatibility import levels_of_objects, missing_levels
from understudy.outputs import Outputs, Spec, Truth


class FGD(Method):
    r"""The student imitates the teacher's features (objects and background separately), its attention and its context.

    ``foreground`` and ``background`` compare features under the teacher's attention to cells and channels,
    ``attention`` compares the attention of both, and ``relation`` the features to which a block, :math:`R`, has added
    the context of the whole map. A 1x1 convolution adapts the student's features if channels differ. The convolution
    and the blocks, one for each side, are trained, and discarded after training.

    .. math::
        L_\text{foreground} = \sum_l \frac{1}{N'} \sum_{n, c, h, w} U_l A^T_l B^T_l \left(F^S_l - F^T_l\right)^2 \qquad
        L_\text{background} = \sum_l \frac{1}{N'} \sum_{n, c, h, w} V_l A^T_l B^T_l \left(F^S_l - F^T_l\right)^2

    .. math::
        L_\text{attention} = \sum_l \frac{1}{N} \left( \sum_{n, h, w} \left|A^S_l - A^T_l\right|
        + \sum_{n, c} \left|B^S_l - B^T_l\right| \right)

    .. math::
        L_\text{relation} = \sum_l \frac{1}{N} \sum_{n, c, h, w} \left(R^S_l(F^S_l) - R^T_l(F^T_l)\right)^2

    .. math::
        A_l = H_l W_l \operatorname{softmax}_{h, w}\left(\frac{\operatorname{mean}_c |F_l|}{\tau}\right) \qquad
        B_l = C \operatorname{softmax}_c\left(\frac{\operatorname{mean}_{h, w} |F_l|}{\tau}\right)

    :math:`F^S_l` are the adapted features, :math:`N'` is the number of labelled images and :math:`\tau` the
    temperature. :math:`U_l` is one over the area in cells of the smallest box over a cell, and 0 where there is none.
    :math:`V_l` is one over the number of cells without an object, and 0 inside objects. A box is stretched from the
    image without its padding to the whole map, and rounded outwards.

    Evidence:
        paper: Focal and Global Knowledge Distillation for Detectors.
        code: Masks, reductions, weights, blocks and temperatures. A Faster R-CNN's level of stride 64 is left out. The
            authors clip the gradient at 35 (``optimizer.clip_norm=35``).
        ours: ``foreground`` and ``background`` are averages over the labelled images alone, and leave out the cells of
            objects of classes that the teacher lacks. The other terms are averages over all images.
        weight: From the authors' configurations for RetinaNet, GFL, FCOS and two-stage detectors.
        caution: In the authors' results for pairs of one family, the student starts with the teacher's neck and head,
            an option of the run here (``inherit=true``). Their FCOS result also changes the training recipe. Compare
            only runs with the same initialisation and recipe.
    """

    name = "fgd"
    terms = ("foreground", "background", "attention", "relation")
    weights = {
        "retinanet": {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6},
        "gfl": {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6},
        "fcos": {"foreground": 1.6e-3, "background": 8e-4, "attention": 8e-4, "relation": 8e-6},
        "faster_rcnn": {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "relation": 5e-7},
    }
    source = "Yang et al., CVPR 2022; reductions, weights and temperatures from the authors' configurations"
    checked = "authors' code, yzd-v/FGD @c03a6cf, FeatureLoss, run: all four terms, values and gradients to 1e-12"
    reads = {
        "foreground": ("features", "objects"),
        "background": ("features", "objects"),
        "attention": ("features",),
        "relation": ("features",),
    }

    class Options(Method.Options):
        """The options of FGD."""

        temperature: PositiveFloat | None = None
        """Temperature of the attention. None: 0.8 for a student that predicts at points (FCOS), 0.5 for others (the
        authors')."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        temperature = self.options.temperature
        self.temperature = (0.8 if student.points else 0.5) if temperature is None else temperature
        self.levels = levels_of_objects(student, teacher)
        own, theirs = (spec.channels[: self.levels] for spec in (student, teacher))
        self.adapters = channel_adapters(own, theirs)
        if "relation" in self.terms:
            self.student_context = nn.ModuleList(GlobalContext(channels) for channels in theirs)
            self.teacher_context = nn.ModuleList(GlobalContext(channels) for channels in theirs)

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require a level to compare."""
        return dict.fromkeys(cls.terms, missing_levels(student, teacher))

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``fgd_foreground``, ``fgd_background``, ``fgd_attention`` and ``fgd_relation``."""
        sizes, labelled = sizes_of_images(student, self.student.strides[0]), truth.labelled.sum()
        losses: dict[str, list[Tensor]] = {term: [] for term in self.terms}
        for level in range(self.levels):
            own, theirs = self.adapters[level](student.features[level]), teacher.features[level]
            cells: dict[str, Tensor] = {}
            if {"foreground", "background"} & losses.keys():
                cells["foreground"], cells["background"] = area_weights(truth, student.level_sizes[level], sizes)
            for term, found in losses.items():
                if term == "relation":
                    contexts = self.student_context[level](own), self.teacher_context[level](theirs.detach())
                    found.append(context_loss(*contexts))
                elif term == "attention":
                    found.append(attention_loss(own, theirs, self.temperature))
                else:
                    found.append(focal_loss(own, theirs, cells[term], self.temperature, labelled))
        return {f"fgd_{term}": torch.stack(levels).sum() for term, levels in losses.items()}


class GlobalContext(nn.Module):
    """Add the context of the whole map to each of its cells (GcNet, Cao et al., ICCVW 2019), as in FGD's code."""

    def __init__(self, channels: int):
        super().__init__()
        narrow = max(channels // 2, 1)
        self.attention, widen = nn.Conv2d(channels, 1, 1), nn.Conv2d(narrow, channels, 1)
        for parameter in (*self.attention.parameters(), *widen.parameters()):
            nn.init.zeros_(parameter)  # at first the block adds nothing
        nn.init.kaiming_normal_(self.attention.weight, nonlinearity="relu")
        self.transform = nn.Sequential(nn.Conv2d(channels, narrow, 1), nn.LayerNorm([narrow, 1, 1]), nn.ReLU(), widen)

    def forward(self, features: Tensor) -> Tensor:
        """Compute (N, C, H, W) from (N, C, H, W)."""
        context = (features.flatten(2) * self.attention(features).flatten(2).softmax(-1)).sum(-1)
        return features + self.transform(context[..., None, None])
