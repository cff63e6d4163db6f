"""Where the teacher's record of a batch comes from: a pass of the teacher, kept outputs, or another run's pass."""

from collections.abc import Sequence

import torch

from understudy.data import Batch
from understudy.detectors import Detector
from understudy.outputs import Needs, Outputs


def record_of_teacher(teacher: Detector, batch: Batch, needs: Needs, chosen: Sequence[int] | None = None) -> Outputs:
    """Run a teacher on the images of a batch as it sees them, all or some; see :func:`.with_larger_images`."""
    return teacher(batch.images_of_teacher(chosen), batch.sizes_of_teacher(chosen), needs=needs)


class TeacherPass:
    """Run the teacher on every batch.

    Args:
        teacher: frozen, in ``eval()``.
        needs: the parts of its record that are read.
        note: a line for the user, or None.
    """

    def __init__(self, teacher: Detector, needs: Needs, note: str | None = None):
        self.teacher, self.needs, self.note = teacher, needs, note

    def prepare(self, batch: Batch) -> None:
        """Look at a batch as its loader returns it, before it is moved to the device and resized."""

    @torch.no_grad()
    def outputs(self, batch: Batch, step: int) -> Outputs:
        """Return the teacher's record of a batch.

        Args:
            batch: on the teacher's device.
            step: of the run, counted from 0.
        """
        return record_of_teacher(self.teacher, batch, self.needs)


class SharedPass(TeacherPass):
    """The record of several runs that take the same batches: the first run of a step computes it for all.

    The batches are prepared where they are loaded, once for all runs.

    Args:
        source: computes it.
    """

    def __init__(self, source: TeacherPass):
        super().__init__(source.teacher, source.needs, source.note)
        self.source = source
        self.step, self.last = -1, Outputs([], [])

    def outputs(self, batch: Batch, step: int) -> Outputs:
        """Return the teacher's record of a batch; see :meth:`TeacherPass.outputs`."""
        if step != self.step:
            self.last, self.step = self.source.outputs(batch, step), step
        return self.last
