"""FGD: focal and global knowledge (Yang et al., CVPR 2022)."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.functional import area_weights, attention_loss, context_loss, focal_loss, sizes_of_images
from understudy.methods.base import Method, channel_adapters, level_differences
from understudy.outputs import Outputs, Spec, Truth


class FGD(Method):
    """The student imitates what the teacher attends to, objects and background apart, and how it relates cells.

    Four terms, each summed over channels and cells, averaged over images, summed over levels: the features inside the
    objects ("foreground") and outside ("background", all of an unlabelled image) under the teacher's attention, the
    attention itself ("attention"), and the features to which a block has added the context of the whole map
    ("relation"). Where channels differ a 1x1 convolution adapts the student's; it and the blocks, of which the
    teacher's side has its own, are trained, and thrown away after training. The coarsest level of a Faster R-CNN
    (stride 64) is left out, as in the authors' configuration. They also let the student start as the teacher where
    shapes agree, which is an option of the run (``inherit``) and not of this method.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        temperature: of the attention; None: 0.8 for an FCOS, 0.5 for others (the authors').

    Raises:
        UserError: the levels of the two detectors differ, or the temperature is not above zero.
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

    def __init__(self, student: Spec, teacher: Spec, *, temperature: float | None = None):
        super().__init__(student, teacher)
        self.temperature = (0.8 if student.family == "fcos" else 0.5) if temperature is None else temperature
        if not self.temperature > 0:
            raise UserError(f"[methods.fgd] temperature is above 0, got {self.temperature}.")
        pooled_only = 64 if student.family == "faster_rcnn" else float("inf")
        self.levels = [level for level, stride in enumerate(student.strides) if stride < pooled_only]
        own, theirs = ([spec.channels[level] for level in self.levels] for spec in (student, teacher))
        self.adapters = channel_adapters(own, theirs)
        if "relation" in self.terms:
            self.student_context = nn.ModuleList(GlobalContext(channels) for channels in theirs)
            self.teacher_context = nn.ModuleList(GlobalContext(channels) for channels in theirs)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``fgd_foreground``, ``fgd_background``, ``fgd_attention`` and ``fgd_relation``."""
        sizes = sizes_of_images(student, self.student.strides[0])
        losses: dict[str, list[Tensor]] = {term: [] for term in self.terms}
        for place, level in enumerate(self.levels):
            own, theirs = self.adapters[place](student.features[level]), teacher.features[level]
            cells = area_weights(truth.targets, student.level_sizes[level], sizes)
            weights = dict(zip(("foreground", "background"), cells, strict=True))
            for term in self.terms:
                if term == "relation":
                    contexts = self.student_context[place](own), self.teacher_context[place](theirs.detach())
                    losses[term].append(context_loss(*contexts))
                elif term == "attention":
                    losses[term].append(attention_loss(own, theirs, self.temperature))
                else:
                    losses[term].append(focal_loss(own, theirs, weights[term], self.temperature))
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
        shares = self.attention(features).flatten(2).softmax(-1)
        context = (features.flatten(2) * shares).sum(-1)
        return features + self.transform(context[..., None, None])
