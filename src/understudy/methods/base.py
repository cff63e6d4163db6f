"""What a distillation method is: two records in, named scalars out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from understudy.outputs import Outputs, Spec, Truth


class Method(nn.Module, ABC):
    """Compares the student's record with the teacher's; adapters are its parameters, built from two Specs.

    A subclass states its class attributes, builds its adapters in ``__init__`` and computes its terms in ``forward``.
    Options are the keyword-only arguments of ``__init__``, typed, with the paper's defaults: configuration files and
    the command line read them from there. Weights and ramps are not its business: it returns raw terms.

    Attributes:
        name: what it is called in a configuration.
        terms: its terms without the method's name; ``forward`` returns ``<name>_<term>`` for each.
        weights: published weight of each term, per family of detectors.
        ramp_steps: steps over which the weights grow linearly from zero.
        source: paper, and where the weights are from.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    weights: ClassVar[Mapping[str, Mapping[str, float]]]
    ramp_steps: ClassVar[int] = 0
    source: ClassVar[str]

    def __init__(self, student: Spec, teacher: Spec):
        super().__init__()
        self.student, self.teacher = student, teacher

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute the raw terms, float32 scalars, named ``<name>_<term>``.

        Args:
            student: the student's record, with gradient.
            teacher: the teacher's record of the same batch, without.
            truth: ground truth and the student's assignment.
        """
