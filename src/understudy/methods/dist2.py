"""Dist2: distribution-guided distillation for object detection (a poster of Alibaba DAMO)."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from understudy.functional import mean_squared_loss
from understudy.functional.crossing import align_scale
from understudy.methods.base import Layers, Method, differences, level_differences
from understudy.methods.dist2_layers import Lesson, Strategy, Transform, by_stride, chosen, misplaced
from understudy.outputs import Outputs, Spec, Truth

Strategies = Literal["All2All"] | Strategy | Annotated[tuple[Strategy, ...], Field(min_length=1)]


class Dist2(Method):
    """The student's maps, put into the teacher, have to give right detections.

    A strategy says where a student's map is taken and where it enters the teacher, each the neck's output (N) or the
    backbone's (B). A transform, thrown away after training, turns the map into what the teacher has there. ``di``: the
    teacher's frozen layers run on it, and the teacher's own losses against the ground truth reach back through them
    (unlabelled images are left out). ``fi``: squared difference to the teacher's own map, averaged over images,
    channels and cells, then over levels. Both are averaged over the strategies.

    Of Dist2 only a poster is known. It gives the sum of these losses and the names; what the transform, ``di`` and the
    strategies are is our reading, the average over strategies, the weights and the ramp are our choice. Where the
    teacher has levels that the student lacks, it is given its own maps there.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        strategies: one, several, or ``"All2All"``, which is all four: N2N, B2B, B2N, N2B.
        draw: ``"all"`` strategies in every step, or ``"one"`` drawn at random: the same on average, for less memory.
        supervision: what the teacher's layers are to find: the ``"truth"``, what the ``"teacher"`` finds itself (of a
            Faster R-CNN its proposals; unlabelled images too; in no source), or ``"both"``, added.
        align: give the transformed map the teacher's mean and deviation, per channel, before it enters (in no source).

    Raises:
        UserError: an option is wrong, a strategy has no place in this pair, or classes are not the teacher's.
    """

    name = "dist2"
    terms = ("di", "fi")
    weights = {family: {"di": 1.0, "fi": 1.0} for family in ("retinanet", "fcos", "gfl", "faster_rcnn")}  # noqa: RUF012
    ramp_steps = 500
    source = "Dist2, a poster of Alibaba DAMO (no paper found); weights and ramp are our choice"
    reads = ("stages", "features", "truth", "layers")
    uses_layers = True

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        strategies: Strategies = "All2All",
        draw: Literal["all", "one"] = "all",
        supervision: Literal["truth", "teacher", "both"] = "truth",
        align: bool = False,
    ):
        super().__init__(student, teacher, strategies=strategies)
        self.strategies, self.draw, self.supervision, self.align = chosen(strategies), draw, supervision, align
        self.transforms = nn.ModuleDict({name: Transform(name, student, teacher) for name in self.strategies})

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, *, strategies: Any = "All2All", **options: Any) -> dict[str, str]:
        """Every strategy needs a map to take and a place for it; for ``di`` the classes must be the teacher's."""
        faults = level_differences(student, teacher) + misplaced(chosen(strategies), student, teacher)
        any_objects = student.objectness or teacher.objectness  # what is scored says nothing of the classes then
        classes = [] if any_objects else differences(student, teacher, lambda spec: spec.scored)
        found = {"di": faults + classes, "fi": faults}
        return {term: "; ".join(reasons) for term, reasons in found.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Compute ``dist2_di`` and ``dist2_fi``, each averaged over the strategies of this step."""
        names = self.strategies if self.draw == "all" else (self.strategies[torch.randint(len(self.strategies), ())],)
        lesson = Lesson.of(self.supervision, truth, layers) if "di" in self.terms else None
        found: dict[str, list[Tensor]] = {term: [] for term in self.terms}
        for name in names:
            maps, theirs = self.transforms[name](student), by_stride(name[-1], self.teacher, teacher)
            if lesson:
                found["di"].append(lesson.loss(name[-1], self.aligned(maps, theirs)))
            if "fi" in found:
                levels = [mean_squared_loss(own, theirs[stride]) for stride, own in maps.items()]
                found["fi"].append(torch.stack(levels).mean())
        # No element of the transforms that were not drawn counts, yet all stay connected: several processes need it.
        idle = [transform for name, transform in self.transforms.items() if name not in names]
        nothing = [weight.flatten()[:0] for transform in idle for weight in transform.parameters()]
        return {f"dist2_{term}": torch.cat([torch.stack(values), *nothing]).mean() for term, values in found.items()}

    def aligned(self, maps: dict[int, Tensor], theirs: dict[int, Tensor]) -> dict[int, Tensor]:
        """The transformed maps as they enter the teacher, by stride."""
        return {stride: align_scale(own, theirs[stride]) for stride, own in maps.items()} if self.align else maps
