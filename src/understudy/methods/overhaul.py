"""Overhaul: a comprehensive overhaul of feature distillation (Heo et al., ICCV 2019)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from understudy.errors import UserError
from understudy.functional import margin_target, negative_margin, partial_distance
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class Overhaul(Method):
    r"""The student's backbone imitates the teacher's positive responses; negative ones only need to be low enough.

    The outputs of the backbone's stages are compared. A difference counts if the teacher's response is positive, or the
    student's is above a negative margin. A connector per stage, :math:`\phi_s`, a 1x1 convolution and a batch
    normalisation, adapts the student's side. It is discarded after training. The margin is the mean of the negative
    responses that the teacher's last batch normalisation of the stage implies.

    .. math::
        L_\text{feature} = \sum_{s = 1}^{J} \frac{1}{2^{J - s}} \cdot \frac{1}{N} \sum_{n, c, h, w}
        \left(\phi_s(F^S_s) - t_s\right)^2 \left[\phi_s(F^S_s) > t_s \text{ or } t_s > 0\right]

    .. math::
        t = \begin{cases} m & F^T = 0 \\ \max(F^T, m) & \text{else} \end{cases} \qquad
        m = \begin{cases} \beta - \gamma \dfrac{\varphi(\beta / \gamma)}{\Phi(-\beta / \gamma)} &
        \Phi(-\beta / \gamma) > 0.001 \\ -3 \gamma & \text{else} \end{cases}

    :math:`F_s` is the output of stage :math:`s` of :math:`J`, :math:`\beta` the bias and :math:`\gamma` the absolute
    weight of a channel of that batch normalisation, :math:`\varphi` the normal density and :math:`\Phi` its
    distribution function.

    Evidence:
        paper: A Comprehensive Overhaul of Feature Distillation.
        code: Written for classification and segmentation. We follow its reduction, connector with its initial weights,
            margin, and weights of the stages: each is twice that of the one before, and 1 for the last.
        ours: The authors read both networks before the last ReLU of a stage, but the stages of a detector end after it,
            where a negative response is only a zero. So a zero of the teacher stands for the expected negative
            response, which is the margin itself (theirs keep a value between the margin and zero), and the student's
            negative responses do not reach its connector. Stages that end without a ReLU (MobileNetV2) are compared as
            theirs. Every stage that both detectors have counts: four between two Faster R-CNNs, from stride 4 on, else
            three. The authors have three or four, depending on the network.
        weight: 1e-5 is the authors' for segmentation, and ours for detectors, for which none is known.
        caution: A teacher with a stage without batch normalisation is refused in the first step.
    """

    name = "overhaul"
    aliases = ("ofd",)
    terms = ("feature",)
    weights = {EVERY_FAMILY: {"feature": 1e-5}}
    source = "Heo et al., ICCV 2019, and the authors' code; their weight for segmentation, our choice for detectors"
    checked = (
        "authors' code, clovaai/overhaul-distillation @76344a8, run: values and gradients to 1e-12, margins to 1e-7; "
        "before the ReLU only"
    )
    reads = {"feature": ("stages", "layers")}

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        channels = zip(student.stage_channels, teacher.stage_channels, strict=True)
        self.connectors = nn.ModuleList(_connector(own, theirs) for own, theirs in channels)

    @property
    def needs(self) -> frozenset[str]:
        """Stages: of the teacher's layers it reads the weights alone."""
        return frozenset({"stages"})

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``overhaul_feature``, the weighted sum over stages."""
        margins, last = _margins(self.both_detectors(layers)), len(self.connectors) - 1
        stages = zip(self.connectors, student.stages, teacher.stages, margins, strict=True)
        losses = [
            partial_distance(connector(own), margin_target(theirs, margin)) / 2 ** (last - stage)
            for stage, (connector, own, theirs, margin) in enumerate(stages)
        ]
        return {"overhaul_feature": torch.stack(losses).sum()}


def _connector(student: int, teacher: int) -> nn.Sequential:
    convolution = nn.Conv2d(student, teacher, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")  # as in the authors' code
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher))


@torch.no_grad()
def _margins(layers: Layers) -> list[Tensor]:
    """Compute the margin (C,) of each compared stage from the last batch normalisation of the teacher's stage."""
    # torchvision's IntermediateLayerGetter lists the layers at which stages end.
    body: Any = getattr(layers.teacher.network.backbone, "body", None)
    ends = [body[layer] for layer in getattr(body, "return_layers", ())]
    chosen = range(len(ends)) if layers.pairing is None else layers.pairing.teacher_part.stages
    norms = [_last_norm(ends[stage]) for stage in chosen if stage < len(ends)]
    if not norms or None in norms:
        raise UserError(
            f"The teacher {layers.teacher.spec.name} has a backbone stage without batch normalisation, from which "
            "overhaul computes its margins. Use hint, mgd or cwd instead."
        )
    return [negative_margin(norm.bias, norm.weight.abs()) for norm in norms]


def _last_norm(stage: nn.Module) -> Any:
    norms = [module for module in stage.modules() if isinstance(module, _BatchNorm | FrozenBatchNorm2d)]
    return norms[-1] if norms and norms[-1].weight is not None else None
