"""What a distillation method is: two records in, named scalars out."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from torch import Tensor, nn

from understudy.errors import UserError
from understudy.methods.options import Checked
from understudy.outputs import Outputs, Spec, Truth

if TYPE_CHECKING:
    from understudy.detectors import Detector
    from understudy.pairing import Pairing


SAME_ANCHOR = 0.05
"""By what part of its longer side, or by one pixel, an edge of an anchor may be off: torchvision rounds, mmdet not."""


FIRST_STAGE_STRIDE = 64
"""From here on a Faster R-CNN's levels are read by its first stage alone; FGD's, MGD's and PKD's authors have none."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The two detectors themselves, for methods that run their layers or ask for an assignment (Dist2, CrossKD, GID).

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


class Method(nn.Module, metaclass=Checked):
    """Compares the student's record with the teacher's; adapters are its parameters, built from two Specs.

    A subclass states its class attributes, builds its adapters in ``__init__`` and computes its terms in ``forward``.
    Options are the keyword-only arguments of ``__init__``, typed, with the paper's defaults: configuration files and
    the command line read them from there, and they are checked against these types, also in Python, before ``__init__``
    runs (limits: ``Annotated[float, Field(ge=0)]``). Weights and ramps are not its business: it returns raw terms.

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
        weights: default weight of each term, per family of students: published, or ours where ``source`` says so.
        ramp_steps: steps over which the weights grow linearly from zero.
        source: paper, and where the weights are from.
        reads: what it looks at: fields of the record (``"features"``, ``"class_logits"``, ...), ``"truth"`` and
            ``"layers"``. `understudy methods` lists it, and of one with ``"truth"`` a run knows that a batch may leave
            it nothing to compare; a method of one's own may leave it out, and an instance may have its own.
        uses_layers: ``forward`` takes a fourth argument, the :class:`Layers`. Such a method needs the teacher itself
            in every step; recorded outputs of it are not enough.
        keeps: of such a method, numbers of the convolutions whose maps inside the heads it reads
            (:meth:`.Detector.keeping`); an instance may have its own.

    Raises:
        UserError: an option is wrong, or a term that is asked for cannot be computed for this pair.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    optional_terms: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[Mapping[str, Mapping[str, float]]]
    ramp_steps: ClassVar[int] = 0
    source: ClassVar[str]
    reads: tuple[str, ...] = ()
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


def levels_of_objects(student: Spec, teacher: Spec) -> int:
    """Count the common levels from the finest; where one is a Faster R-CNN, those that its second stage reads, too."""
    two_stage = "faster_rcnn" in (student.family, teacher.family)
    return sum(stride < FIRST_STAGE_STRIDE or not two_stage for stride in student.strides)


def missing_levels(student: Spec, teacher: Spec) -> list[str]:
    """Say where there is no such level, naming both."""
    if levels_of_objects(student, teacher):
        return []
    return [
        f"the student {student.name} and the teacher {teacher.name} have only levels at strides {student.strides} in "
        f"common, and a Faster R-CNN's of {FIRST_STAGE_STRIDE} and more are read by its first stage alone"
    ]


def anchors_per_cell(spec: Spec) -> str:
    """How many anchors a cell has, in words."""
    return f"{spec.num_anchors} anchor{'' if spec.num_anchors == 1 else 's'} per cell"


def anchor_differences(student: Spec, teacher: Spec, *, raw: bool = False) -> list[str]:
    """Say why what stands at an anchor cannot be compared: another number of anchors per cell, or other anchors.

    Those of detectors that predict deltas to anchors must be the same boxes, but for what rounding does to them. Of
    points, from which others predict distances, scores and decoded boxes are compared wherever in a cell they lie.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        raw: raw box outputs are compared, so that points must lie at the same places, too.
    """
    numbers = differences(student, teacher, anchors_per_cell)
    boxes = student.box_code == teacher.box_code == "deltas"
    if numbers or not (raw or boxes) or student.strides != teacher.strides:
        return numbers
    for stride, *anchors in zip(student.strides, student.first_anchors, teacher.first_anchors, strict=False):
        for own, theirs in zip(*anchors, strict=True):
            if not boxes:
                own, theirs = (_point(anchor, stride) for anchor in (own, theirs))
            size = max(own[2] - own[0], own[3] - own[1])
            if max(abs(edge - other) for edge, other in zip(own, theirs, strict=True)) > max(SAME_ANCHOR * size, 1.0):
                described = _described if boxes else _middle
                return [
                    f"in the first cell of stride {stride} the student {student.name} has {described(own)}, the "
                    f"teacher {teacher.name} {described(theirs)}"
                ]
    return []


def prediction_differences(student: Spec, teacher: Spec) -> list[str]:
    """Say why predictions cannot be compared anchor by anchor: other levels, other things scored, other anchors."""
    levels, scored = level_differences(student, teacher), differences(student, teacher, lambda spec: spec.scored)
    return levels + scored + anchor_differences(student, teacher)


def _point(anchor: Sequence[float], stride: int) -> tuple[float, ...]:
    """A cell of its own round the middle of an anchor, of which nothing else counts."""
    middles = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return tuple(middle + half for half in (-stride / 2, stride / 2) for middle in middles)


def _described(anchor: Sequence[float]) -> str:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return f"an anchor of {width:g} x {height:g} pixels round {_middle(anchor)}"


def _middle(anchor: Sequence[float]) -> str:
    return f"the point ({(anchor[0] + anchor[2]) / 2:g}, {(anchor[1] + anchor[3]) / 2:g})"


def channel_adapters(student: Sequence[int], teacher: Sequence[int]) -> nn.ModuleList:
    """Layers from the student's channels to the teacher's, per level: a 1x1 convolution, nothing where they agree."""
    levels = zip(student, teacher, strict=True)
    return nn.ModuleList(nn.Identity() if own == theirs else nn.Conv2d(own, theirs, 1) for own, theirs in levels)
