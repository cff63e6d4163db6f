"""FGD: focal and global knowledge (Yang et al., CVPR 2022)."""

from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from understudy.functional import area_weights, attention_loss, context_loss, focal_loss, sizes_of_images
from understudy.methods.base import Method, channel_adapters, level_differences, levels_of_objects, missing_levels
from understudy.outputs import Outputs, Spec, Truth


class FGD(Method):
    """The student imitates what the teacher attends to, objects and background apart, and how it relates cells.

    Four terms, each summed over channels and cells, averaged over images, summed over levels: the features inside the
    objects ("foreground") and outside ("background") under the teacher's attention, the attention itself
    ("attention"), and the features to which a block has added the context of the whole map ("relation"). Ours: the
    first two leave out unlabelled images, which are not among those they average over, and the cells of objects of
    classes that the teacher does not know.

    Where channels differ a 1x1 convolution adapts the student's; it and the blocks, of which the teacher's side has its
    own, are trained, and thrown away after training. A Faster R-CNN's level of stride 64 is left out, as the authors
    do. That their students start as the teacher is an option of the run here (``inherit``).

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        temperature: of the attention; None: 0.8 for an FCOS, 0.5 for others (the authors').

    Raises:
        UserError: the levels of the two detectors differ, none is left, or the temperature is not above zero.
    """

    name = "fgd"
    terms = ("foreground", "background", "attention", "relation")
    weights = {  # noqa: RUF012
        "retinanet": {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6},
        "gfl": {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6},
        "fcos": {"foreground": 1.6e-3, "background": 8e-4, "attention": 8e-4, "relation": 8e-6},
        "faster_rcnn": {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "relation": 5e-7},
    }
    reads = ("features", "truth")
    source = "Yang et al., CVPR 2022; reductions, weights and temperatures from the authors' configurations"

    def __init__(self, student: Spec, teacher: Spec, *, temperature: PositiveFloat | None = None):
        super().__init__(student, teacher)
        self.temperature = (0.8 if student.family == "fcos" else 0.5) if temperature is None else temperature
        self.levels = levels_of_objects(student, teacher)
        own, theirs = (spec.channels[: self.levels] for spec in (student, teacher))
        self.adapters = channel_adapters(own, theirs)
        if "relation" in self.terms:
            self.student_context = nn.ModuleList(GlobalContext(channels) for channels in theirs)
            self.teacher_context = nn.ModuleList(GlobalContext(channels) for channels in theirs)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree, and one be left."""
        faults = level_differences(student, teacher) or missing_levels(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``fgd_foreground``, ``fgd_background``, ``fgd_attention`` and ``fgd_relation``."""
        sizes, labelled = sizes_of_images(student, self.student.strides[0]), truth.labelled.sum()
        losses: dict[str, list[Tensor]] = {term: [] for term in self.terms}
        for level in range(self.levels):
            own, theirs = self.adapters[level](student.features[level]), teacher.features[level]
            foreground, background = area_weights(truth, student.level_sizes[level], sizes)
            for term, found in losses.items():
                if term == "relation":
                    contexts = self.student_context[level](own), self.teacher_context[level](theirs.detach())
                    found.append(context_loss(*contexts))
                elif term == "attention":
                    found.append(attention_loss(own, theirs, self.temperature))
                else:
                    weight = foreground if term == "foreground" else background
                    found.append(focal_loss(own, theirs, weight, self.temperature, labelled))
        return {f"fgd_{term}": torch.stack(levels).sum() for term, levels in losses.items()}


class GlobalContext(nn.Module):
    """Adds to every cell what is seen on the whole map (GcNet, Cao et al., ICCVW 2019), as FGD's code builds it."""

    def __init__(self, channels: int):
        super().__init__()
        narrow = max(channels // 2, 1)
        self.attention, widen = nn.Conv2d(channels, 1, 1), nn.Conv2d(narrow, channels, 1)
        for parameter in (*self.attention.parameters(), *widen.parameters()):
            nn.init.zeros_(parameter)  # at first the block adds nothing
        nn.init.kaiming_normal_(self.attention.weight, nonlinearity="relu")
        self.transform = nn.Sequential(nn.Conv2d(channels, narrow, 1), nn.LayerNorm([narrow, 1, 1]), nn.ReLU(), widen)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        context = (features.flatten(2) * self.attention(features).flatten(2).softmax(-1)).sum(-1)
        return features + self.transform(context[..., None, None])
