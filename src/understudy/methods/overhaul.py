"""Overhaul: a comprehensive overhaul of feature distillation (Heo et al., ICCV 2019)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from understudy.errors import UserError
from understudy.functional import margin_target, negative_margin, partial_distance
from understudy.methods.base import Layers, Method, differences
from understudy.outputs import Outputs, Spec, Truth


class Overhaul(Method):
    """The student's backbone imitates the teacher's strong responses; of weak ones it only learns that they are weak.

    On the backbone's stages: squared differences to the teacher's responses, left out where the teacher's is negative
    and the student's lower still; summed over channels and cells, averaged over images, each stage weighing twice the
    one before, the last 1. Every stage that both have counts: between two Faster R-CNNs four, from stride 4 on, else
    three (the authors have three or four, by network). How far a negative response counts is read from the teacher's
    last batch normalisation of the stage, so the teacher itself must be at hand. The student goes through a 1x1
    convolution and a batch normalisation, which are thrown away after training.

    It departs from the authors in one thing. They read both networks before the last ReLU of a stage; what is compared
    here comes behind it, where a negative response is only a zero. So the teacher's zeros stand for the negative
    response one expects, which is the margin itself (theirs keep a value between the margin and zero), and the
    student's negative responses do not reach its connector. Stages that end without a ReLU (MobileNets') are compared
    as theirs.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.

    Raises:
        UserError: the backbones' stages differ, or, in the first step, a stage of the teacher ends without batch
            normalisation.
    """

    name = "overhaul"
    terms = ("feature",)
    weights = {family: {"feature": 1e-5} for family in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    reads = ("stages", "layers")
    source = "Heo et al., ICCV 2019, and the authors' code; the weight is theirs for segmentation, for detectors ours"
    uses_layers = True

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__(student, teacher)
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own, theirs, 1, bias=False), nn.BatchNorm2d(theirs))
            for own, theirs in zip(student.stage_channels, teacher.stage_channels, strict=True)
        )

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Both must have backbone stages, at the same strides."""
        faults = differences(student, teacher, lambda spec: f"backbone stages at strides {spec.stage_strides}")
        if not (faults or student.stage_strides):
            faults = [f"the student {student.name} and the teacher {teacher.name} have no backbone stages in common"]
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Compute ``overhaul_feature``, the weighted sum over stages."""
        last = len(self.connectors) - 1
        stages = zip(self.connectors, student.stages, teacher.stages, _margins(layers), strict=True)
        losses = [
            partial_distance(connector(own), margin_target(theirs, margin)) / 2 ** (last - stage)
            for stage, (connector, own, theirs, margin) in enumerate(stages)
        ]
        return {"overhaul_feature": torch.stack(losses).sum()}


@torch.no_grad()
def _margins(layers: Layers) -> list[Tensor]:
    """The margin (C,) of each stage that is compared, from the last batch normalisation of the teacher's."""
    # torchvision's IntermediateLayerGetter knows at which of its layers the stages end.
    body: Any = getattr(layers.teacher.network.backbone, "body", None)
    ends = [body[layer] for layer in getattr(body, "return_layers", ())]
    chosen = range(len(ends)) if layers.pairing is None else layers.pairing.teacher_part.stages
    norms = [_last_norm(ends[stage]) for stage in chosen if stage < len(ends)]
    if not norms or None in norms:
        raise UserError(
            f"overhaul reads how far below zero the teacher's responses lie from the last batch normalisation of each "
            f"backbone stage, and {layers.teacher.spec.name} has a stage without one. hint, mgd and cwd need none."
        )
    return [negative_margin(norm.bias, norm.weight.abs()) for norm in norms]


def _last_norm(stage: nn.Module) -> Any:
    norms = [module for module in stage.modules() if isinstance(module, _BatchNorm | FrozenBatchNorm2d)]
    return norms[-1] if norms and norms[-1].weight is not None else None
