"""The base class of distillation methods: two records in, named scalars out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.methods.compatibility import parts_read, unreadable
from understudy.methods.options import EVERY_FAMILY, read_options
from understudy.outputs import Outputs, Spec, Truth

if TYPE_CHECKING:
    from understudy.detectors import Detector
    from understudy.pairing import Pairing

CHECKS = {"authors' code": True, "the paper": True, "other implementations": False, "our reading": False}
"""How :attr:`Method.checked` begins, and whether this verifies the arithmetic against the paper or its authors."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The two detectors, for methods that run their layers or second stages, or ask for an assignment.

    Attributes:
        student: the detector in training.
        teacher: the frozen teacher. Run its layers with gradient to their inputs, never under ``no_grad``.
        pairing: the levels and classes that the two share; None: all of them.
        student_outputs: the student's whole record. The method's own is reduced to what both share.
        teacher_outputs: the teacher's whole record.
    """

    student: "Detector"
    teacher: "Detector"
    pairing: "Pairing | None"
    student_outputs: Outputs
    teacher_outputs: Outputs

    def paired(self, own: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pair the maps of all levels of both detectors: for each of the teacher's levels the student's and its own.

        The teacher's layers may need all of their levels. At a level that the student lacks, the teacher's own map is
        used.
        """
        of_stride = dict(zip(self.student.spec.strides, own, strict=True))
        levels = zip(self.teacher.spec.strides, theirs, strict=True)
        return [(of_stride.get(stride, level.detach()), level) for stride, level in levels]


class Method(nn.Module, ABC):
    """Compare the student's record with the teacher's. Its parameters are adapters, built from two Specs.

    A subclass states the class attributes below, its options and its adapters, and computes its terms in ``forward``.
    ``hint.py`` is the example to copy. A method returns raw terms; weights and ramps are applied elsewhere.

    Options are the fields of a nested class, typed, with the paper's defaults and a docstring each::

        class Options(Method.Options):
            temperature: PositiveFloat = 1.0
            \"\"\"Divides the logits.\"\"\"

        options: Options

    Config files, the command line and ``understudy methods`` read them from there. They are always checked, also in
    Python: ``Hint(student, teacher, adapter="always")``.

    Args:
        student: the student's Spec. For detectors with other levels or classes: the reduced one of their pairing
            (:func:`understudy.pairing.pair`).
        teacher: the teacher's Spec, likewise.
        terms: the terms to compute, optional ones included; None: ``terms`` of the class. Adapters that only other
            terms use must not be built, since they would get no gradient.
        **options: fields of ``Options``.

    Attributes:
        name: its name in a config.
        aliases: names that papers use for it.
        terms: its terms without the method's name; ``forward`` returns ``<name>_<term>`` for each.
        optional_terms: further terms, which are off unless a weight is given.
        weights: default weight of each term by the student's family, or by :data:`EVERY_FAMILY`.
        ramp_steps: steps over which the weights grow linearly from zero.
        largest_share: of the student's gradient that the method takes under ``balance`` unless its options say so, by
            the student's family, or by :data:`EVERY_FAMILY`.
        source: the paper, and the origin of the weights.
        checked: what its arithmetic was compared with, and how far; begins with a key of :data:`CHECKS`. Empty: not
            stated.
        reads: the inputs of each term, by the names in :data:`.READS`. They determine the pairs of detectors that the
            method can compare. In an instance: those of its own terms, with its options.
        keeps: numbers of the convolutions whose feature maps inside the heads it reads (:meth:`.Detector.keeping`).

    Raises:
        UserError: an option is wrong, or a term cannot be computed for this pair.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    terms: tuple[str, ...]
    optional_terms: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[Mapping[str, Mapping[str, float]]]
    ramp_steps: ClassVar[int] = 0
    largest_share: ClassVar[Mapping[str, float]] = {}
    source: ClassVar[str]
    checked: ClassVar[str] = ""
    reads: Mapping[str, tuple[str, ...]]
    keeps: tuple[int, ...] = ()

    class Options(BaseModel):
        """The options of a method."""

        model_config = ConfigDict(
            extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
        )

        @field_validator("*", mode="before")
        @classmethod
        def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
            """Refuse true and false where none is expected: pydantic takes them for 1 and 0."""
            annotation = cls.model_fields[info.field_name or ""].annotation
            if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
                raise PydanticCustomError("boolean", "a boolean is no number")
            return value

    def __init__(self, student: Spec, teacher: Spec, *, terms: Sequence[str] | None = None, **options: Any):
        super().__init__()
        for role, spec in (("student", student), ("teacher", teacher)):
            if not isinstance(spec, Spec):
                kind = type(spec).__name__
                raise UserError(f"A method is built from two Specs, got a {kind} as the {role}: pass {role}.spec.")
        self.student, self.teacher = student, teacher
        self.options = self.read(options)
        self.terms = self._chosen(terms)
        obstacles = self.obstacles(student, teacher, **dict(self.options))
        if faults := [f"{self.name}_{term}: {obstacles[term]}" for term in self.terms if term in obstacles]:
            raise UserError.listing(f"{self.name} cannot compare {student.name} with {teacher.name}:", faults)
        reads = self.reads_with(self.options)
        self.reads = {term: reads[term] for term in self.terms}

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Any:
        """Check options and fill in the defaults; returns an instance of ``Options``.

        Raises:
            UserError: listing every wrong option.
        """
        checked, faults = read_options(cls.Options, options, f"methods.{cls.name}")
        if faults or checked is None:
            raise UserError.listing(f"Invalid options for {cls.name}:", faults)
        return checked

    @classmethod
    def all_terms(cls) -> tuple[str, ...]:
        """Return its terms, and those that are off unless a weight is given."""
        return (*cls.terms, *cls.optional_terms)

    @classmethod
    def default_weights(cls, student: Spec, options: Any = None) -> Mapping[str, float]:
        """Return the default weight of each term for a student; terms without one are absent.

        Overridden by methods whose options change the size of a term (PFI).

        Args:
            student: the student's Spec.
            options: an instance of ``Options``, or of a model with its fields; None: the default options.
        """
        own = cls.weights.get(student.family, cls.weights.get(EVERY_FAMILY, {}))
        return student.default_weights.get(cls.name, own)

    @classmethod
    def largest_share_of(cls, student: Spec) -> float:
        """Return the largest share of a student's gradient that the method takes unless its options say so."""
        return cls.largest_share.get(student.family, cls.largest_share.get(EVERY_FAMILY, 1.0))

    @classmethod
    def reads_with(cls, options: Any) -> Mapping[str, tuple[str, ...]]:
        """Return the inputs of each term for some options; overridden by methods whose options change them."""
        return cls.reads

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Any) -> Mapping[str, Sequence[str]]:
        """Return further reasons why terms cannot be computed for a pair, beyond those that follow from ``reads``.

        Args:
            student: the student's Spec.
            teacher: the teacher's Spec.
            options: an instance of ``Options``.

        Returns:
            For each such term its reasons, each naming both sides.
        """
        return {}

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Return why terms cannot be computed for a pair, for each such term; both sides are named.

        Args:
            student: the student's Spec.
            teacher: the teacher's Spec.
            **options: fields of ``Options``; the others have their defaults.

        Raises:
            UserError: an option is wrong.
        """
        checked, faults = read_options(cls.Options, options, f"methods.{cls.name}")
        if checked is None:  # an option without a default is not given: the answer holds for the others
            checked = cls.Options.model_construct(**options)
        elif faults:
            raise UserError.listing(f"Invalid options for {cls.name}:", faults)
        found = {term: unreadable(reads, student, teacher) for term, reads in cls.reads_with(checked).items()}
        for term, reasons in cls.misfits(student, teacher, checked).items():
            found[term] = [*found[term], *reasons]
        return {term: "; ".join(dict.fromkeys(reasons)) for term, reasons in found.items() if reasons}

    @property
    def needs(self) -> frozenset[str] | None:
        """Parts of the teacher's record that its terms read, by :class:`.Needs`; None: all.

        They follow from ``reads``. Methods that read ``"layers"`` are given all, unless they override this.
        """
        return parts_read(name for reads in self.reads.values() for name in reads)

    @abstractmethod
    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute the raw terms, float32 scalars, named ``<name>_<term>``.

        Args:
            student: the student's record, with gradient.
            teacher: the teacher's record of the same batch, without gradient.
            truth: ground truth and the student's assignment.
            layers: both detectors, for methods that read ``"layers"`` or ``"second_stage"``; others ignore it.
        """

    def both_detectors(self, layers: Layers | None) -> Layers:
        """Return the detectors that ``forward`` was given.

        Raises:
            UserError: it was not given any.
        """
        if layers is None:
            raise UserError(f"{self.name} reads the layers of both detectors: call forward(..., layers=Layers(...)).")
        return layers

    def _chosen(self, terms: Sequence[str] | None) -> tuple[str, ...]:
        if terms is None:
            return type(self).terms
        if unknown := [term for term in terms if term not in self.all_terms()]:
            raise UserError(
                f"{self.name} has no term {', '.join(unknown)}; its terms are {', '.join(self.all_terms())}."
            )
        return tuple(terms)
