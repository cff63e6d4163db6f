"""Dist2: distribution-guided distillation for object detection (a poster of Alibaba DAMO)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from understudy.functional import mean_squared_loss
from understudy.functional.crossing import align_scale
from understudy.methods.base import EVERY_FAMILY, Layers, Method
from understudy.methods.compatibility import score_differences
from understudy.methods.dist2_layers import Strategy, Transform, by_stride, chosen, misplaced, places_read
from understudy.methods.dist2_supervision import Supervision
from understudy.outputs import Outputs, Spec, Truth

Strategies = Literal["All2All"] | Strategy | Annotated[tuple[Strategy, ...], Field(min_length=1)]


class Dist2(Method):
    r"""The student's feature maps run through the teacher's frozen layers, which must detect the objects in them.

    A strategy ``X2Y`` names where the student's maps are taken and where they enter the teacher: at the output of the
    neck (N) or of the backbone (B). A transform per strategy, :math:`f_s`, turns them into maps of the teacher's shape.
    ``di`` is the teacher's own detection loss on the transformed maps; its gradient flows back through the frozen
    layers. ``fi`` is the squared difference of the transformed maps from the teacher's own.

    .. math::
        L_\text{di} = \sum_{s = 1}^I L_\text{det}\left(\text{teacher}_s(f_s(F^S)), \text{truth}\right)

    .. math::
        L_\text{fi} = \sum_{s = 1}^I \frac{1}{L_s} \sum_{l = 1}^{L_s}
        \frac{1}{N C_l H_l W_l} \sum_{n, c, h, w} \left(f_s(F^S)_l - F^T_l\right)^2

    There are :math:`I` strategies, and strategy :math:`s` has :math:`L_s` maps. They enter the teacher before the
    layers that the formula calls :math:`\text{teacher}_s`.

    Evidence:
        paper: Dist2: Distribution-Guided Distillation for Object Detection. No paper, code or citation was found, only
            a poster. It gives the sum of these losses and the names of the strategies.
        unverified: The transform, ``di`` and the strategies are our reading of the poster.
        ours: The weights and the ramp, the mean over levels in ``fi``, and the options. ``di`` leaves out unlabelled
            images. At levels that the student lacks, the teacher uses its own maps.
        caution: ``fi`` is as large as the teacher's maps: check its raw value in ``losses.csv``. We recommend gradient
            clipping in long runs (``optimizer.clip_norm=35``). It runs the teacher's layers, so recorded outputs of the
            teacher are not enough.
        related: docs/dist2.md has the statements of the poster, our reading, the swap test and our measurements.
    """

    name = "dist2"
    terms = ("di", "fi")
    weights = {EVERY_FAMILY: {"di": 1.0, "fi": 1.0}}
    ramp_steps = 500
    source = "Dist2, a poster of Alibaba DAMO (no paper found); weights and ramp are our choice"
    checked = "our reading of a poster: no paper and no authors' code were found"
    reads = {
        "di": ("features", "stages", "teacher_scores", "objects", "layers"),
        "fi": ("features", "stages", "layers"),
    }

    class Options(Method.Options):
        """The options of Dist2."""

        strategies: Strategies = "All2All"
        """One strategy, several, or ``"All2All"`` for all four: N2N, B2B, B2N, N2B."""
        draw: Literal["all", "one"] = "all"
        """``"all"`` strategies in every step, or ``"one"`` drawn at random, in a sum weighted by their number: equal on
        average, with less memory."""
        combine: Literal["sum", "mean"] = "sum"
        """The ``"sum"`` over the strategies, as on the poster, or their ``"mean"`` (in no source), which divides the
        share of each by their number."""
        supervision: Literal["truth", "teacher", "both"] = "truth"
        """The target of ``di``: the ``"truth"``; the detections of the ``"teacher"`` (a Faster R-CNN's proposals), in
        unlabelled images, too (in no source); or the sum of ``"both"``."""
        align: bool = False
        """Give each channel of a transformed map the mean and the deviation of the teacher's map before it enters. In
        no source."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        self.strategies = chosen(self.options.strategies)
        self.transforms = nn.ModuleDict({name: Transform(name, student, teacher) for name in self.strategies})

    @classmethod
    def reads_with(cls, options: Options) -> Mapping[str, tuple[str, ...]]:
        """Return the inputs of each term: stages of both only for B2B, ground truth unless the teacher supervises."""
        unread = set() if "B2B" in chosen(options.strategies) else {"stages"}
        unread |= {"objects"} if options.supervision == "teacher" else set()
        return {term: tuple(name for name in reads if name not in unread) for term, reads in cls.reads.items()}

    @property
    def needs(self) -> frozenset[str] | None:
        """The maps that ``fi``, ``align`` or a stride without a transformed map read; ``di`` alone may need none."""
        read = places_read(self.strategies, self.student, self.teacher, "fi" in self.terms or self.options.align)
        alone = "di" not in self.terms or (self.options.supervision == "truth" and self.teacher.assigns_by_anchors)
        return read if alone else None

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require a common stride for every strategy and, for ``di``, the teacher's classes."""
        faults = misplaced(chosen(options.strategies), student, teacher)
        objectness = student.objectness or teacher.objectness  # the scores do not depend on the classes
        return {"di": faults + ([] if objectness else score_differences(student, teacher)), "fi": faults}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``dist2_di`` and ``dist2_fi``, each summed over the strategies, or averaged."""
        layers, names = self.both_detectors(layers), self.strategies
        if self.options.draw == "one":
            names = (names[torch.randint(len(names), ())],)
        supervision = Supervision.of(self.options.supervision, truth, layers) if "di" in self.terms else None
        found: dict[str, list[Tensor]] = {term: [] for term in self.terms}
        for name in names:
            maps, theirs = self.transforms[name](student), by_stride(name[-1], self.teacher, teacher)
            if supervision:
                found["di"].append(supervision.loss(name[-1], self.aligned(maps, theirs)))
            if "fi" in found:
                levels = [mean_squared_loss(own, theirs[stride]) for stride, own in maps.items()]
                found["fi"].append(torch.stack(levels).mean())
        # Transforms that were not drawn add no element, and stay connected, as training in several processes needs.
        idle = [transform for name, transform in self.transforms.items() if name not in names]
        nothing = [weight.flatten()[:0] for transform in idle for weight in transform.parameters()]
        means = {f"dist2_{term}": torch.cat([torch.stack(values), *nothing]).mean() for term, values in found.items()}
        # The mean over the strategies drawn, times the number of all: the expectation of a drawn one is the sum.
        number = len(self.strategies) if self.options.combine == "sum" else 1
        return {term: number * mean for term, mean in means.items()}

    def aligned(self, maps: dict[int, Tensor], theirs: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the transformed maps as they enter the teacher, by stride."""
        if not self.options.align:
            return maps
        return {stride: align_scale(own, theirs[stride]) for stride, own in maps.items()}
