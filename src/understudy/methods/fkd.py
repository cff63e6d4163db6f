"""FKD: attention-guided and non-local feature distillation (Zhang & Ma, ICLR 2021)."""

from functools import partial
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from understudy.functional import batch_distance, mean_attention
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Method, level_differences
from understudy.methods.nonlocal_ import ONE_STAGE, NonLocalRelation
from understudy.outputs import Outputs, Spec, Truth


class FKD(Method):
    """The student looks where the teacher looks, imitates it there, and gathers the same from the rest of the image.

    Four terms, each the 2-norm of a difference over the whole batch, summed over levels: the features under the mean
    attention of both detectors ("feature"), their averages over cells ("channel") and over channels ("spatial"), and
    the results of non-local blocks ("relation"). None is an average: repeating the batch changes the value, so the
    weights belong to a size of batch; we take it to be two images per process. Before each comparison the student
    goes through a convolution that is thrown away after training: 3x3 for "spatial", else 1x1 (of averages over cells
    it is a linear layer). Everything follows copies of the authors' code.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        temperature: of both attentions; None: 0.5 for a Faster R-CNN, 0.1 for others (the authors').
        weigh_channels: the feature term is weighted by the attention to channels too; None: not for a Faster R-CNN
            (the authors'). Where channels differ the student's is that of its adapted features (ours).

    Raises:
        UserError: an option is wrong, or the levels of the two detectors differ.
    """

    name = "fkd"
    terms = ("feature", "channel", "spatial", "relation")
    weights = {  # noqa: RUF012
        **{one: {"feature": 4.2e-4, "channel": 2.4e-2, "spatial": 2.4e-2, "relation": 4.2e-4} for one in ONE_STAGE},
        "faster_rcnn": {"feature": 7e-5, "channel": 4e-3, "spatial": 4e-3, "relation": 7e-5},
    }
    reads = ("features",)
    source = "Zhang & Ma, ICLR 2021; weights and temperatures from copies of the authors' code"

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        temperature: PositiveFloat | None = None,
        weigh_channels: bool | None = None,
    ):
        super().__init__(student, teacher)
        two_stage = student.family == "faster_rcnn"
        self.temperature = (0.5 if two_stage else 0.1) if temperature is None else temperature
        self.weigh_channels = not two_stage if weigh_channels is None else weigh_channels
        levels = list(zip(student.channels, teacher.channels, strict=True))
        layers = {
            term: [nn.Conv2d(1, 1, 3, padding=1) if term == "spatial" else nn.Conv2d(*level, 1) for level in levels]
            for term in self.terms
            if term != "relation"
        }
        self.adapters: Any = nn.ModuleDict({term: nn.ModuleList(layers[term]) for term in layers})
        if "relation" in self.terms:
            self.relation = NonLocalRelation(student.channels, teacher.channels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree."""
        faults = level_differences(student, teacher)
        return dict.fromkeys(cls.terms, faults[0]) if faults else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
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
        return batch_distance(adapted, teacher, weight)

    def _averages(self, over: tuple[int, ...], adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        own, theirs = (at_least_float32(features).mean(over, keepdim=True) for features in (student, teacher))
        return batch_distance(adapter(own), theirs)
