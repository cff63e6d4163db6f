"""What is trained and saved: the student and the methods' adapters. The teacher is an argument."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.methods.base import Method
from understudy.outputs import Outputs, Target, Truth


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
    """

    def __init__(self, student: Detector, methods: Sequence[Method] = ()):
        super().__init__()
        self.student = student
        self.methods: Any = nn.ModuleList(methods)
        self._levels_checked = False

    @property
    def distillation_terms(self) -> tuple[str, ...]:
        """Names of the terms that come from methods."""
        return tuple(f"{method.name}_{term}" for method in self.methods for term in method.terms)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target],
        teacher_outputs: Outputs | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, Tensor]:
        """Compute every loss by name, unweighted: torchvision's names, then ``<method>_<term>``.

        Args:
            images: (N, 3, H, W), 0..1.
            targets: ground truth per image.
            teacher_outputs: the teacher's record of the same images; needed when there are methods.
            image_sizes: unpadded height and width of each image.

        Raises:
            UserError: methods without a teacher's record, or a record whose levels have other sizes.
        """
        outputs = self.student(images, image_sizes)
        gt_index = self.student.assign(outputs, targets)
        losses = self.student.loss(outputs, targets, gt_index)
        if not self.methods:
            return losses
        if teacher_outputs is None:
            raise UserError("This learner has distillation methods: give it the teacher's outputs of the same images.")
        self._check_levels(outputs, teacher_outputs)
        truth = Truth(targets, gt_index)
        for method in self.methods:
            losses |= method(outputs, teacher_outputs, truth)
        return losses

    def _check_levels(self, student: Outputs, teacher: Outputs) -> None:
        if self._levels_checked:
            return
        if student.level_sizes != teacher.level_sizes:
            raise UserError(
                f"Level sizes differ: student {student.level_sizes}, teacher {teacher.level_sizes}. Both must see the "
                "same images, padded alike, and have levels of the same strides."
            )
        self._levels_checked = True
