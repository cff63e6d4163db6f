"""What a distillation method is: two records in, named scalars out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from torch import Tensor, nn

from understudy.errors import UserError
from understudy.outputs import Outputs, Spec, Truth

if TYPE_CHECKING:
    from understudy.detectors import Detector
    from understudy.pairing import Pairing


@dataclass(frozen=True, slots=True)
class Layers:
    """The two detectors themselves, for methods that run features through layers (Dist2, CrossKD).

    Attributes:
        student: the detector that is trained.
        teacher: the frozen one; its layers may be run with gradient to what goes in, never with ``no_grad``.
        pairing: what the two have in common; None: everything.
        student_outputs: the student's whole record, where the method's own is reduced to what both have.
        teacher_outputs: the teacher's.
    """

    student: "Detector"
    teacher: "Detector"
    pairing: "Pairing | None"
    student_outputs: Outputs
    teacher_outputs: Outputs

    def paired(self, own: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each level of the teacher the student's map and the teacher's, from those of all levels of both.

        Layers that take all of their levels or none are served where the student lacks one, too: the teacher's own map
        stands for the student's there.
        """
        of_stride = dict(zip(self.student.spec.strides, own, strict=True))
        levels = zip(self.teacher.spec.strides, theirs, strict=True)
        return [(of_stride.get(stride, level.detach()), level) for stride, level in levels]


class Method(nn.Module, ABC):
    """Compares the student's record with the teacher's; adapters are its parameters, built from two Specs.

    A subclass states its class attributes, builds its adapters in ``__init__`` and computes its terms in ``forward``.
    Options are the keyword-only arguments of ``__init__``, typed, with the paper's defaults: configuration files and
    the command line read them from there. Weights and ramps are not its business: it returns raw terms.

    Only terms with a weight above zero are asked for: :func:`build_methods` narrows ``terms`` to them before
    ``__init__`` runs. A method may compute others, which are dropped, but an adapter that only they use gets no
    gradient then; so one with an adapter for each of several terms looks at ``self.terms``.

    Args:
        student: what is known of the student; where the two differ in levels or classes, reduced to what they share
            (see :func:`understudy.pairing.pair`).
        teacher: what is known of the teacher, likewise.
        **options: what :meth:`obstacles` needs to know.

    Attributes:
        name: what it is called in a configuration.
        terms: its terms without the method's name; ``forward`` returns ``<name>_<term>`` for each.
        optional_terms: further ones, which are off unless they are given a weight.
        weights: published weight of each term, per family of detectors.
        ramp_steps: steps over which the weights grow linearly from zero.
        source: paper, and where the weights are from.
        reads: what it looks at: fields of the record (``"features"``, ``"class_logits"``, ...), ``"truth"`` and
            ``"layers"``. `understudy methods` lists it; a method of one's own may leave it out.
        uses_layers: ``forward`` takes a fourth argument, the :class:`Layers`. Such a method needs the teacher itself
            in every step; recorded outputs of it are not enough.
        keeps: of such a method, numbers of the convolutions whose maps inside the heads it reads
            (:meth:`.Detector.keeping`); an instance may have its own.

    Raises:
        UserError: a term that is asked for cannot be computed for this pair.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    optional_terms: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[Mapping[str, Mapping[str, float]]]
    ramp_steps: ClassVar[int] = 0
    source: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    uses_layers: ClassVar[bool] = False
    keeps: tuple[int, ...] = ()

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__()
        self.student, self.teacher = student, teacher
        obstacles = self.obstacles(student, teacher, **options)
        if faults := [f"{self.name}_{term}: {obstacles[term]}" for term in self.terms if term in obstacles]:
            raise UserError.listing(f"{self.name} cannot compare {student.name} with {teacher.name}:", faults)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Say of each term that cannot be computed for this pair why not, naming both sides; by default, none.

        Args:
            student: what is known of the student.
            teacher: what is known of the teacher.
            **options: of ``__init__``, as far as they are given.
        """
        return {}

    @classmethod
    def narrowed(cls, terms: Sequence[str]) -> type[Self]:
        """The same method with some of its terms, optional ones among them."""
        if tuple(terms) == cls.terms:
            return cls
        return cast(type[Self], type(cls.__name__, (cls,), {"terms": tuple(terms)}))

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute the raw terms, float32 scalars, named ``<name>_<term>``.

        Args:
            student: the student's record, with gradient.
            teacher: the teacher's record of the same batch, without.
            truth: ground truth and the student's assignment.
        """


def differences(student: Spec, teacher: Spec, fact: Callable[[Spec], str]) -> list[str]:
    """Say in what two detectors differ, naming both: one sentence, or none where the fact is the same of both."""
    own, theirs = fact(student), fact(teacher)
    return [] if own == theirs else [f"the student {student.name} has {own}, the teacher {teacher.name} has {theirs}"]


def level_differences(student: Spec, teacher: Spec) -> list[str]:
    """Say why features cannot be compared cell by cell: other levels."""
    return differences(student, teacher, lambda spec: f"levels at strides {spec.strides}")


def prediction_differences(student: Spec, teacher: Spec) -> list[str]:
    """Say why predictions cannot be compared anchor by anchor: other levels, other things scored, other anchors."""
    facts: list[Callable[[Spec], str]] = [
        lambda spec: f"levels at strides {spec.strides}",
        lambda spec: spec.scored,
        lambda spec: f"{spec.num_anchors} anchors per cell",
    ]
    return [sentence for fact in facts for sentence in differences(student, teacher, fact)]


def channel_adapters(student: Sequence[int], teacher: Sequence[int]) -> nn.ModuleList:
    """Layers from the student's channels to the teacher's, per level: a 1x1 convolution, nothing where they agree."""
    levels = zip(student, teacher, strict=True)
    return nn.ModuleList(nn.Identity() if own == theirs else nn.Conv2d(own, theirs, 1) for own, theirs in levels)
