"""The trained module: the student and the adapters of the methods. The teacher is an argument."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from understudy.class_balance import check_class_balance, with_balanced_classes
from understudy.detectors import Detector
from understudy.errors import MethodError, RunError, UserError
from understudy.learner_checks import (
    CHECK_EVERY,
    check_modes,
    check_optimizer,
    check_other_than_student,
    check_values,
)
from understudy.methods.base import Layers, Method
from understudy.methods.compatibility import OF_DETECTORS, OF_TRUTH
from understudy.outputs import Needs, Outputs, Spec, Target, Truth
from understudy.pairing import Pairing
from understudy.text import listed


class Learner(nn.Module):
    """Compute the losses of a training step: the student's own and every method's terms, from one forward pass.

    The teacher is not a member: its outputs are an argument. So it is absent from parameters, state dict, DDP and
    averages, and cannot be switched to training mode::

        with torch.no_grad():
            teacher_outputs = teacher(images, needs=learner.needs)  # only the layers whose outputs are read
        losses = learner(images, targets, teacher_outputs)

    Args:
        student: the detector to train.
        methods: distillation methods built for this student and its teacher; none: plain training.
        pairing: the common levels and classes of student and teacher, if these differ. The methods are built from its
            two Specs (see :func:`understudy.pairing.pair`).
        class_balance: balance the classes in the student's own losses (:func:`.with_balanced_classes`).

    Attributes:
        keeps_shared_maps: whether the next step keeps its ``shared_maps``, for :class:`.Balance`.
        shared_maps: of the last step, the trained maps from which all losses are computed: the backbone's stages, or
            the levels of the pyramid if the backbone is frozen.

    Raises:
        UserError: a method was built for another student, two have the same name, or the classes of this student
            cannot be balanced.
    """

    def __init__(
        self,
        student: Detector,
        methods: Sequence[Method] = (),
        pairing: Pairing | None = None,
        *,
        class_balance: bool = False,
    ):
        super().__init__()
        methods = _checked(student, methods)
        if class_balance:
            check_class_balance(student.spec)
        self.student, self.pairing, self.calls, self.class_balance = student, pairing, 0, class_balance
        self.methods: Any = nn.ModuleList(methods)
        self.keeps_shared_maps = False
        self.shared_maps: tuple[Tensor, ...] = ()
        self._check_names()
        expected = pairing.student_part.spec(student.spec) if pairing else student.spec
        for method in methods:
            if others := _other_facts(method.student, expected):
                raise UserError(
                    f"The method {method.name} was built for the student {method.student.name}, not for "
                    f"{expected.name}: {others}. Build it from this student's Spec, or pass the pairing it was built "
                    "from."
                )

    @property
    def distillation_terms(self) -> tuple[str, ...]:
        """Names of the methods' terms."""
        return tuple(f"{method.name}_{term}" for method in self.methods for term in method.terms)

    @property
    def terms_with_truth(self) -> tuple[str, ...]:
        """Names of the terms that read the ground truth; they may be zero in a batch without suitable objects."""
        return tuple(
            f"{method.name}_{term}"
            for method in self.methods
            for term, reads in method.reads.items()
            if not set(reads).isdisjoint(OF_TRUTH)
        )

    @property
    def keeps(self) -> tuple[int, ...]:
        """Numbers of the convolutions whose feature maps inside the heads the methods read.

        The student keeps them, and so does a teacher that is given :attr:`needs`.
        """
        return tuple(sorted({number for method in self.methods for number in method.keeps}))

    @property
    def needs(self) -> Needs:
        """The part of the teacher's record that the methods read: ``teacher(images, needs=learner.needs)``.

        The losses are the same as with the whole record.
        """
        parts: set[str] = set()
        for method in self.methods:
            if method.needs is None:
                return Needs(convolutions=self.keeps)
            parts |= method.needs
        if self.pairing and not self.pairing.whole_teacher and self._readers_of("layers"):
            parts |= {"stages", "features"}  # the teacher's layers run on all of its levels
        levels = None
        if self.pairing:
            part = self.pairing.teacher_part
            levels = (*part.finer, *part.levels)
            if part.finer and parts - {"stages", "queries"}:
                parts |= {"class_logits"}  # which decide what each cell says
        return Needs(frozenset(parts), levels, self.keeps)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Check that an optimizer holds every trained parameter of the student and of the methods.

        Raises:
            UserError: naming the parameters that it lacks.
        """
        check_optimizer(self, optimizer)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target],
        teacher_outputs: Outputs | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labelled: Sequence[bool] | None = None,
        teacher: Detector | None = None,
    ) -> dict[str, Tensor]:
        """Compute every loss by name, unweighted: the detector's own, then ``<method>_<term>``.

        Args:
            images: (N, 3, H, W), 0..1.
            targets: ground truth per image; that of an unlabelled image is ignored.
            teacher_outputs: the teacher's record of the same images, whole or at least :attr:`needs`; required with
                methods.
            image_sizes: unpadded height and width of each image.
            labelled: which images have a ground truth; None: all. The others take part in the methods' terms only.
            teacher: the frozen teacher, for methods that read the layers of the detectors. It is not kept.

        Raises:
            MethodError: a method raised an error, which is the cause.
            UserError: a mode or a value is wrong (see :mod:`.learner_checks`); the teacher's record, or the teacher
                itself, is missing; the record is of other images or of levels of other sizes; the number of targets is
                wrong; or a method does not return a scalar for each of its terms.
        """
        _check_batch(images, targets, labelled)
        if self.methods and not isinstance(teacher_outputs, Outputs):
            raise UserError(
                "This learner has distillation methods and needs the teacher's outputs of the same images, "
                f"teacher(images); got {type(teacher_outputs).__name__}."
            )
        self._check_teacher(teacher)
        check_modes(self.student, self.training, teacher, teacher_outputs)
        first, checked = self.calls == 0, self.calls % CHECK_EVERY == 0
        if checked:
            check_values(self.student, images, targets, labelled, teacher_outputs)
        self.calls += 1
        with self.student.keeping(*self.keeps):
            outputs = self.student(images, image_sizes, targets)
        self.shared_maps = _shared_maps(outputs) if self.keeps_shared_maps else ()
        losses, truth = self._task(outputs, targets, labelled)
        if not self.methods or teacher_outputs is None:
            return losses
        if checked and not first:
            check_other_than_student(outputs, teacher_outputs)
        layers = None if teacher is None else Layers(self.student, teacher, self.pairing, outputs, teacher_outputs)
        if self.pairing:
            truth = self.pairing.truth(truth, outputs)
            outputs = self.pairing.student_record(outputs)
            teacher_outputs = self.pairing.teacher_record(teacher_outputs)
        self._check_levels(outputs, teacher_outputs)
        for method in self.methods:
            losses |= _terms_of(method, _called(method, outputs, teacher_outputs, truth, layers))
        return losses

    def _readers_of(self, *names: str) -> list[str]:
        """Return the methods with a term that reads one of these inputs."""
        return [each.name for each in self.methods if any(set(names) & set(reads) for reads in each.reads.values())]

    @property
    def _names(self) -> tuple[str, str]:
        """Names of the student and the teacher that the methods were built for."""
        return self.methods[0].student.name, self.methods[0].teacher.name

    def _check_names(self) -> None:
        names = [method.name for method in self.methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"Several methods have the name {', '.join(twice)}, and their terms the same names: leave one out, or "
                "give your subclass another `name`."
            )

    def _check_teacher(self, teacher: Detector | None) -> None:
        names = self._readers_of(*OF_DETECTORS)
        if teacher and names and (teacher.training or any(weight.requires_grad for weight in teacher.parameters())):
            raise UserError(
                f"{', '.join(names)} runs the teacher's layers, but the teacher is not frozen. Freeze it first: "
                "teacher.requires_grad_(False).eval()."
            )
        if teacher is None and names:
            raise UserError(
                f"{', '.join(names)} reads the layers of the student {self._names[0]} and the teacher "
                f"{self._names[1]}, so recorded outputs are not enough: pass the teacher, learner(..., "
                "teacher=teacher), or use a method without layers or second stage in the line `reads` of `understudy "
                "methods`."
            )

    def _task(
        self, outputs: Outputs, targets: Sequence[Target], labelled: Sequence[bool] | None
    ) -> tuple[dict[str, Tensor], Truth]:
        """Compute the student's own losses, and the ground truth of all images; unlabelled ones are ignored (-2)."""
        if labelled is None or all(labelled):
            gt_index = self.student.assign(outputs, targets)
            return self._own_losses(outputs, targets, gt_index), Truth(targets, gt_index)
        chosen = [image for image, known in enumerate(labelled) if known]
        nothing = {name: value[:0] for name, value in targets[0].items()}
        targets = [target if known else nothing for target, known in zip(targets, labelled, strict=True)]
        anchors = sum(level[..., 0].numel() for level in outputs.anchors) or self.student.spec.queries
        gt_index = torch.full((len(targets), anchors), -2, device=outputs.features[0].device)
        if not chosen:
            return {}, Truth(targets, gt_index)
        record, own = outputs.of_images(chosen), [targets[image] for image in chosen]
        gt_index[chosen] = found = self.student.assign(record, own)
        return self._own_losses(record, own, found), Truth(targets, gt_index)

    def _own_losses(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        if self.class_balance:
            outputs = with_balanced_classes(outputs, targets, gt_index, self.student.spec.num_classes)
        return self.student.loss(outputs, targets, gt_index)

    def _check_levels(self, student: Outputs, teacher: Outputs) -> None:
        if teacher.images not in (None, len(student.features[0])):
            raise UserError(
                f"The teacher's outputs are of {teacher.images} images, the batch has {len(student.features[0])}."
            )
        if teacher.features and student.level_sizes != teacher.level_sizes:
            raise UserError(
                f"Level sizes differ: student {self._names[0]} {student.level_sizes}, teacher {self._names[1]} "
                f"{teacher.level_sizes}. Both need the same images with the same padding."
            )


def _shared_maps(outputs: Outputs) -> tuple[Tensor, ...]:
    maps = [level for level in outputs.stages if level.requires_grad]
    return tuple(maps or [level for level in outputs.features if level.requires_grad])


def _checked(student: Any, methods: Any) -> list[Method]:
    if not isinstance(student, Detector):
        raise UserError(
            f"Learner expects an opened detector, got {type(student).__name__}. Open it with open_detector()."
        )
    found = list(methods) if isinstance(methods, Iterable) and not isinstance(methods, str) else [methods]
    if not isinstance(methods, Iterable) or not all(isinstance(method, Method) for method in found):
        raise UserError(
            f"Learner expects a list of methods built for its student and teacher, got {methods!r}. Build them with "
            "build_methods()."
        )
    return found


def _other_facts(built: Spec, expected: Spec) -> str:
    """Describe how the Spec of a method's student differs from the one in training, apart from its name."""
    compared = (each.name for each in fields(Spec) if each.compare)
    pairs = ((name, getattr(built, name), getattr(expected, name)) for name in compared)
    others = [(name, own, other) for name, own, other in pairs if name != "name" and own != other]
    return "; ".join(name if name == "first_anchors" else f"{name} {own}, not {other}" for name, own, other in others)


def _check_batch(images: Tensor, targets: Sequence[Target], labelled: Sequence[bool] | None) -> None:
    counts = {"targets": len(targets)} | ({} if labelled is None else {"labelled": len(labelled)})
    for name, count in counts.items():
        if count != len(images):
            raise UserError(f"{name} has {count} entries for {len(images)} images: pass one per image.")


def _called(method: Method, *arguments: Any) -> Any:
    """Call a method, and name it if it raises an error that is not addressed to the user."""
    try:
        return method(*arguments)
    except (UserError, RunError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        kind = type(method)
        place = f"{kind.__module__}:{kind.__qualname__}"
        given = "" if method.needs is None else f" (of the teacher, `reads` names {listed(sorted(method.needs))})"
        what = f"The method {method.name} ({place}) raised {type(error).__name__}: {error}{given}"
        raise MethodError(what) from error


def _terms_of(method: Method, found: Any) -> dict[str, Tensor]:
    """Select the terms that a method was built for from those that it returned."""
    names = [f"{method.name}_{term}" for term in method.terms]
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise UserError(f"The method {method.name} must return a dict of {', '.join(names)}, got {kind}.")
    wrong = [name for name in names if not isinstance(found.get(name), Tensor) or found[name].dim()]
    if wrong:
        returned = ", ".join(
            f"{name} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} = {value!r}"
            for name, value in found.items()
        )
        raise UserError(
            f"The method {method.name} must return a scalar tensor for each of its terms, {', '.join(names)}; got "
            f"{returned or 'none'}."
        )
    return {name: found[name] for name in names}
