"""A detector on a sample of the validation split: its detections, its AP and its proposals, as a run would use it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from understudy.checkpoints import Checkpoint
from understudy.class_matching import NO_ALIASES, Aliases, match_names
from understudy.data import Batch, DetectionData, evaluation_loader
from understudy.detectors import Detector
from understudy.evaluation import Detections, choose_device, detect_all
from understudy.evaluation.inferring import inferring
from understudy.evaluation.proposals import ProposalRecall, Recall, has_proposals
from understudy.training.teacher_check import ap_of

PASSES = 6
"""About so many passes over the sample all trials take: other pixels, another size, and the plain student. Proposals of
two-stage detectors take two more."""

Change = Callable[[Tensor], Tensor]
"""Maps images (N, 3, H, W) in 0..1 to those that a detector then normalises."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A teacher on a sample of the validation split, at the image size at which it teaches.

    Attributes:
        teacher: its checkpoint.
        sample: the images.
        size: shorter side of the images, and the limit of their longer side, in pixels.
        batch_size: images per batch.
        device: that the teacher runs on.
        aliases: other names of classes.
        scale: how many times as large as the student's its images are.
        found: its detections at this size; their category ids are the teacher's own labels.
    """

    teacher: Checkpoint
    sample: DetectionData
    size: tuple[int, int]
    batch_size: int
    device: torch.device
    aliases: Aliases = field(default_factory=lambda: NO_ALIASES)
    scale: int = 1
    found: Detections = field(default_factory=lambda: Detections.of_rows([]))

    @classmethod
    def of(
        cls,
        teacher: Checkpoint,
        sample: DetectionData,
        size: tuple[int, int],
        batch_size: int,
        device: torch.device | None = None,
        aliases: Aliases = NO_ALIASES,
    ) -> "Trial":
        """Run a teacher on a sample; by default on a GPU if there is one."""
        trial = cls(teacher, sample, size, batch_size, choose_device(device), aliases)
        return replace(trial, found=trial.detections())

    def within(self, seconds: float) -> "Trial":
        """Run the teacher on so many images that all trials end within some seconds, and on 8 at least."""
        few = replace(self.sample, records=self.sample.records[:2])
        self.detections(few)  # the first pass is slower
        started = time.monotonic()
        self.detections(few)
        per_image = max((time.monotonic() - started) / len(few), 1e-6)
        affordable = self.sample.records[: max(8, int(seconds / per_image / PASSES))]
        whole = replace(self, sample=replace(self.sample, records=affordable))
        return replace(whole, found=whole.detections())

    @property
    def names(self) -> tuple[str, ...]:
        """Classes of the data set that the teacher knows by name."""
        return tuple(self.sample.classes[place] for place in self.as_named() if place is not None)

    def as_named(self) -> list[int | None]:
        """Return, for each label of the teacher, the position of the data set's class of the same name."""
        return match_names(self.teacher.classes, self.sample.classes, self.aliases)

    def detections(
        self, sample: DetectionData | None = None, size: tuple[int, int] | None = None, change: Change | None = None
    ) -> Detections:
        """Detect objects, in images of another size or of other pixels."""
        loader = self._loader(self.sample if sample is None else sample, size or self.size)
        batches = _changed(loader, change) if change else loader
        detector: Detector = self.teacher.detector.to(self.device)
        return detect_all(detector, batches, self.device, range(len(self.teacher.classes)))

    def proposals(self) -> Recall | None:
        """Measure the recall of the proposals in images of the run's size; None: the detector has none."""
        detector: Detector = self.teacher.detector.to(self.device)
        if not has_proposals(detector):
            return None
        found = ProposalRecall(detector)
        for batch in self._loader(self.sample, self.size):
            moved = batch.to(self.device)
            with inferring(detector, self.device):
                found.add(moved, detector(moved.images, moved.image_sizes))
        return found.result(self.sample.classes)

    def _loader(self, sample: DetectionData, size: tuple[int, int]) -> Iterable[Batch]:
        return evaluation_loader(sample, batch_size=self.batch_size, shorter_side=size[0], longer_side=size[1])

    def ap(
        self,
        found: Detections | None = None,
        places: Sequence[int | None] | None = None,
        sample: DetectionData | None = None,
    ) -> float:
        """Return the AP, averaged over the classes that the labels stand for.

        Args:
            found: the detections; None: at the run's size.
            places: for each label of the teacher the position of a class of the data set; None: by name.
            sample: the images that count; None: all.
        """
        sample = self.sample if sample is None else sample
        found = self.found if found is None else found
        places = self.as_named() if places is None else places
        ids = np.array([-1 if place is None else sample.category_ids[place] for place in places], np.int64)
        known = np.array([place is not None for place in places])
        images = np.isin(found.image_ids, sample.records.image_ids())
        kept = found.at(known[found.category_ids] & images)
        named = [sample.classes[place] for place in places if place is not None]
        return ap_of(sample, replace(kept, category_ids=ids[kept.category_ids]), named)


def _changed(loader: Iterable[Batch], change: Change) -> Iterator[Batch]:
    for batch in loader:
        yield replace(batch, drawn=change(batch.images))
