"""What is trained and saved: the student and the methods' adapters. The teacher is an argument."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.methods.base import Layers, Method
from understudy.outputs import Outputs, Spec, Target, Truth
from understudy.pairing import Pairing


class Learner(nn.Module):
    """One training step's losses: the student's own and every method's terms, from one pass of the student.

    The teacher never enters: its outputs are an argument. So it is absent from parameters, state dict, DDP and
    averages, and cannot be flipped to training mode::

        with torch.no_grad():
            teacher_outputs = teacher(images)
        losses = learner(images, targets, teacher_outputs)

    Args:
        student: the detector to train.
        methods: distillation methods built for this student and its teacher; none is plain training.
        pairing: what student and teacher have in common, where that is not everything; the methods are built from its
            two Specs (see :func:`understudy.pairing.pair`).

    Raises:
        UserError: a method was built for another student, or two have the same name.
    """

    def __init__(self, student: Detector, methods: Sequence[Method] = (), pairing: Pairing | None = None):
        super().__init__()
        methods = _checked(student, methods)
        self.student, self.pairing = student, pairing
        self.methods: Any = nn.ModuleList(methods)
        self._check_names()
        expected = pairing.student_part.spec(student.spec) if pairing else student.spec
        for method in methods:
            if others := _other_facts(method.student, expected):
                raise UserError(
                    f"The method {method.name} was built for {method.student.name}, and is to train {expected.name}: "
                    f"{others}. Build it from the student's spec, or give the Learner the pairing whose student and "
                    "teacher it was built from."
                )

    @property
    def distillation_terms(self) -> tuple[str, ...]:
        """Names of the terms that come from methods."""
        return tuple(f"{method.name}_{term}" for method in self.methods for term in method.terms)

    @property
    def terms_with_truth(self) -> tuple[str, ...]:
        """Those of methods that read the ground truth: a batch may leave them nothing to compare."""
        return tuple(f"{each.name}_{term}" for each in self.methods if "truth" in each.reads for term in each.terms)

    @property
    def keeps(self) -> tuple[int, ...]:
        """Numbers of the convolutions whose maps inside the heads the methods read.

        The student keeps them by itself. Where the teacher runs in ``teacher.keeping(*learner.keeps)``, it does not
        compute them twice; that is all the difference.
        """
        return tuple(sorted({number for method in self.methods for number in method.keeps}))

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target],
        teacher_outputs: Outputs | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labelled: Sequence[bool] | None = None,
        teacher: Detector | None = None,
    ) -> dict[str, Tensor]:
        """Compute every loss by name, unweighted: torchvision's names, then ``<method>_<term>``.

        Args:
            images: (N, 3, H, W), 0..1.
            targets: ground truth per image; that of an unlabelled image is not looked at.
            teacher_outputs: the teacher's record of the same images; needed when there are methods.
            image_sizes: unpadded height and width of each image.
            labelled: which images have a ground truth; None: all. The others take part in the methods' terms only,
                and where there are only such, so are the losses.
            teacher: the frozen teacher, for methods that look at the detectors themselves; it is not kept.

        Raises:
            UserError: methods without a teacher's record or, where they look at it itself, without the teacher; a
                record of other images, or whose levels have other sizes; a number of targets that is not that of the
                images; or a method that does not return a scalar for each of its terms.
        """
        _check_batch(images, targets, labelled)
        if self.methods and not isinstance(teacher_outputs, Outputs):
            raise UserError(
                "This learner has distillation methods: give it the teacher's outputs of the same images, "
                f"teacher(images), got {type(teacher_outputs).__name__}."
            )
        self._check_teacher(teacher)
        with self.student.keeping(*self.keeps):
            outputs = self.student(images, image_sizes)
        losses, truth = self._task(outputs, targets, labelled)
        if not self.methods or teacher_outputs is None:
            return losses
        layers = None if teacher is None else Layers(self.student, teacher, self.pairing, outputs, teacher_outputs)
        if self.pairing:
            truth = self.pairing.truth(truth, outputs)
            outputs = self.pairing.student_record(outputs)
            teacher_outputs = self.pairing.teacher_record(teacher_outputs)
        self._check_levels(outputs, teacher_outputs)
        for method in self.methods:
            more = (layers,) if method.uses_layers else ()
            losses |= _terms_of(method, method(outputs, teacher_outputs, truth, *more))
        return losses

    @property
    def _names(self) -> tuple[str, str]:
        """What messages call the student and the teacher that the methods were built for."""
        return self.methods[0].student.name, self.methods[0].teacher.name

    def _check_names(self) -> None:
        names = [method.name for method in self.methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"Several methods are called {', '.join(twice)}: the terms of one would take the place of the other's. "
                "Leave one out, or give a subclass of it another `name`."
            )

    def _check_teacher(self, teacher: Detector | None) -> None:
        names = [method.name for method in self.methods if method.uses_layers]
        if teacher and names and (teacher.training or any(weight.requires_grad for weight in teacher.parameters())):
            raise UserError(
                f"{', '.join(names)} is handed the teacher itself, and its layers would be trained: freeze the teacher "
                "before, teacher.requires_grad_(False).eval()."
            )
        if teacher is None and names:
            raise UserError(
                f"{', '.join(names)} looks at the detectors themselves, the student {self._names[0]} and the teacher "
                f"{self._names[1]}, for which recorded outputs are not enough: give the learner the teacher itself, "
                "learner(..., teacher=teacher). Those that `understudy methods` lists as reading no detectors "
                "need its outputs alone."
            )

    def _task(
        self, outputs: Outputs, targets: Sequence[Target], labelled: Sequence[bool] | None
    ) -> tuple[dict[str, Tensor], Truth]:
        """The student's own losses, and the ground truth of all images; anchors of unlabelled ones are ignored (-2)."""
        if labelled is None or all(labelled):
            gt_index = self.student.assign(outputs, targets)
            return self.student.loss(outputs, targets, gt_index), Truth(targets, gt_index)
        chosen = [image for image, known in enumerate(labelled) if known]
        nothing = {name: value[:0] for name, value in targets[0].items()}
        targets = [target if known else nothing for target, known in zip(targets, labelled, strict=True)]
        anchors = sum(level[..., 0].numel() for level in outputs.anchors)
        gt_index = torch.full((len(targets), anchors), -2, device=outputs.anchors[0].device)
        if not chosen:
            return {}, Truth(targets, gt_index)
        record, own = outputs.of_images(chosen), [targets[image] for image in chosen]
        gt_index[chosen] = found = self.student.assign(record, own)
        return self.student.loss(record, own, found), Truth(targets, gt_index)

    def _check_levels(self, student: Outputs, teacher: Outputs) -> None:
        own, theirs = len(student.features[0]), len(teacher.features[0])
        if own != theirs:
            raise UserError(f"The teacher's outputs are of {theirs} images, and the batch has {own}.")
        if student.level_sizes != teacher.level_sizes:
            raise UserError(
                f"Level sizes differ: student {self._names[0]} {student.level_sizes}, teacher {self._names[1]} "
                f"{teacher.level_sizes}. Both must see the same images, padded alike, and have levels of the same "
                "strides."
            )


def _checked(student: Any, methods: Any) -> list[Method]:
    if not isinstance(student, Detector):
        raise UserError(
            f"A Learner trains an opened detector, got {type(student).__name__}: open_detector opens a plain network."
        )
    found = list(methods) if isinstance(methods, Iterable) and not isinstance(methods, str) else [methods]
    if not isinstance(methods, Iterable) or not all(isinstance(method, Method) for method in found):
        raise UserError(
            f"A Learner takes a list of methods that are built for its student and teacher, got {methods!r}: "
            "build_methods makes them from names and options."
        )
    return found


def _other_facts(built: Spec, expected: Spec) -> str:
    """Say in what a method's student is another than the one it is to train, apart from its name."""
    pairs = ((each.name, getattr(built, each.name), getattr(expected, each.name)) for each in fields(Spec))
    others = [(name, own, other) for name, own, other in pairs if name != "name" and own != other]
    return "; ".join(name if name == "first_anchors" else f"{name} {own}, not {other}" for name, own, other in others)


def _check_batch(images: Tensor, targets: Sequence[Target], labelled: Sequence[bool] | None) -> None:
    counts = {"targets": len(targets)} | ({} if labelled is None else {"labelled": len(labelled)})
    for name, count in counts.items():
        if count != len(images):
            raise UserError(f"{name} has {count} entries for {len(images)} images: give one for each image.")


def _terms_of(method: Method, found: Any) -> dict[str, Tensor]:
    """The terms that a method was asked for, of those that it returned."""
    names = [f"{method.name}_{term}" for term in method.terms]
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise UserError(f"The method {method.name} has to return a dict of {', '.join(names)}, got {kind}.")
    wrong = [name for name in names if not isinstance(found.get(name), Tensor) or found[name].dim()]
    if wrong:
        returned = ", ".join(
            f"{name} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} = {value!r}"
            for name, value in found.items()
        )
        raise UserError(
            f"The method {method.name} has to return a scalar tensor for each of its terms, {', '.join(names)}; it "
            f"returned {returned or 'none'}."
        )
    return {name: found[name] for name in names}
