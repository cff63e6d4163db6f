# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that evaluates the teacher on a sample of the validation split, and warns of one that is bad."""

import math
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import numpy as np
import torch

from understudy.checkpoints import Checkpoint
from understudy.config import DistillConfig, scale_of_teacher
from understudy.data import Batch, DetectionData, evaluation_loader, shown_location
from understudy.detectors.larger_images import at_own_size, nearest_scale
from understudy.evaluation import Detections, detect_all, match_classes, score
from understudy.text import percent
from understudy.training.console import say

if TYPE_CHECKING:
    from understudy.training.engine import Engine

SECONDS = 60.0
"""Duration after which the evaluation of the teacher ends, with the images that it reached."""

NEAR_ZERO = 0.01
"""Largest AP, 0..1, of a teacher that has nothing to teach."""

CLEARLY, AT_LEAST = 0.8, 0.05
"""An AP is clearly below another if it is below this share of it, and by at least so much; a sample has an error."""


class CheckTeacher(L.Callback):
    """Evaluate the teacher when a run starts; compare it with its own record then, and with the student at the end.

    It is evaluated like the student, at the image size at which it teaches, on the classes that it knows.
    The step's random numbers are seeded by step, so a run with this check equals one without it.

    Args:
        teacher: the teacher's checkpoint.
        data: the validation split.
        config: the run's config; ``teacher_check`` is the number of images, 0 for none.

    Attributes:
        found: AP and number of images.
        same_as: the check of a run that shares the teacher, whose result is taken over; None: there is none.
    """

    def __init__(self, teacher: Checkpoint, data: DetectionData, config: DistillConfig):
        self.teacher, self.config, self.data = teacher, config, data
        self.ids = match_classes(teacher.classes, data, config.data.aliases)
        self.known = [name for name, i in zip(data.classes, data.category_ids, strict=True) if i in self.ids]
        self.sample = sample_of(data, config.teacher_check)
        self.found: dict[str, Any] = {}
        self.same_as: CheckTeacher | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, so that a resumed run does not evaluate the teacher again."""
        return {"found": self.found, "image_ids": self.sample.records.image_ids()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.found = state_dict["found"]
        self.sample = _of_images(self.data, state_dict["image_ids"])

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Evaluate the teacher in the first process, while the others wait; not in a resumed run."""
        if trainer.global_step:
            return
        if self.same_as:
            self.found, self.sample = dict(self.same_as.found), self.same_as.sample
            return
        if trainer.is_global_zero:
            started = time.monotonic()
            if self.config.teacher_check:
                self._evaluate(trainer, engine)
            for line in self._remarks():
                say(line)
            engine.started += time.monotonic() - started  # it is no part of the training
        trainer.strategy.barrier("teacher checked")

    def measure_student(self, detections: Detections) -> None:
        """Measure the student on the same images and classes, from its detections on the whole validation split."""
        if "AP" not in self.found:
            return
        images = self.sample.records.image_ids()
        self.found["student_AP"] = self._ap(detections.at(np.isin(detections.image_ids, images)))

    def on_train_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Warn if the student ends above its teacher."""
        student, teacher = (self.found.get(name, math.nan) for name in ("student_AP", "AP"))
        if student > teacher and trainer.is_global_zero:
            say(
                f"The teacher is worse than the student: AP {percent(teacher)} and {percent(student)} on "
                f"{self._images()}. A better teacher may help more."
            )

    def _evaluate(self, trainer: L.Trainer, engine: "Engine") -> None:
        teacher = engine.teacher
        assert teacher is not None  # of a distillation
        loader = evaluation_loader(
            self.sample,
            batch_size=self.config.batch_size,
            shorter_side=self.config.data.shorter_side[-1] * teacher.spec.scale,
            longer_side=self.config.data.longer_side * teacher.spec.scale,
        )
        seen: list[int] = []
        with trainer.precision_plugin.forward_context():
            found = detect_all(at_own_size(teacher), _for_a_while(loader, seen), engine.device, self.ids)
        self.sample = _of_images(self.sample, seen)
        self.found = {"images": len(seen), "AP": self._ap(found)}

    def _ap(self, detections: Detections) -> float:
        """Return COCO's AP on the sample, averaged over the classes that the teacher knows; nan without objects."""
        return ap_of(self.sample, detections, self.known)

    def _remarks(self) -> Iterator[str]:
        """Describe the result, and everything about it that is suspicious."""
        recorded = self.teacher.meta.get("AP")  # None in last.ckpt and in an imported checkpoint
        measured = self.found.get("AP")
        if measured is None:
            if recorded is not None and recorded <= NEAR_ZERO:
                yield f"The teacher's own checkpoint records AP {percent(recorded)}. {self._advice()}"
            return
        if math.isnan(measured):
            yield (
                f"The teacher's AP is unknown: {self._images()} contain no objects of its classes. Use more images: "
                "teacher_check=NUMBER"
            )
            return
        yield f"teacher    AP {percent(measured)}  on {self._images()}"
        its_own = "" if recorded is None else f"; its checkpoint records AP {percent(recorded)}"
        if measured <= NEAR_ZERO:
            yield f"The teacher detects almost nothing right{its_own}. {self._advice()}"
        elif recorded is not None and recorded - measured > AT_LEAST and measured < CLEARLY * recorded:
            yield f"The teacher is clearly worse here than in its own training{its_own}. {self._advice()}"

    def _advice(self) -> str:
        own, side = self.teacher.config["data"], self.config.data.shorter_side[-1]
        seen, scale = side * scale_of_teacher(self.config), nearest_scale(own["shorter_side"][-1], side)
        causes = ["weights that are not trained", "another order of its class names", "another normalisation"]
        if own["shorter_side"][-1] != seen:
            remedy = f"; teacher_scale={scale} lets it see larger ones" if scale > scale_of_teacher(self.config) else ""
            causes.append(f"another image size ({seen}, in its own training {own['shorter_side'][-1]}{remedy})")
        if own["path"] is None or str(own["path"]) != str(self.config.model_dump(mode="json")["data"]["path"]):
            causes.append("images of another kind")
        data = shown_location(self.config.data.path)
        return (
            f"A student learns its errors, too. Possible causes: {', '.join(causes)}. Look at its detections: "
            f"understudy predict {self.config.teacher} {data} -o FOLDER"
        )

    def _images(self) -> str:
        count = len(self.sample)
        whole = len(self.data)
        return f"the {count} validation images" if count == whole else f"{count} of {whole} validation images"


def ap_of(data: DetectionData, detections: Detections, classes: Collection[str]) -> float:
    """Return COCO's AP on some images, averaged over some classes; nan if these have no objects."""
    per_class = score(data, detections).per_class
    values = [value for name in classes if not math.isnan(value := per_class[name])]
    return sum(values) / len(values) if values else math.nan


def sample_of(data: DetectionData, count: int) -> DetectionData:
    """Return some images of a split, drawn by a seed of their own: any first part of them is a fair sample, too."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    return replace(data, records=data.records.take(order[:count]))


def _of_images(data: DetectionData, image_ids: Iterable[int]) -> DetectionData:
    chosen = set(image_ids)
    places = [place for place, number in enumerate(data.records.image_ids()) if number in chosen]
    return replace(data, records=data.records.take(places))


def _for_a_while(loader: Iterable[Batch], seen: list[int]) -> Iterator[Batch]:
    """Yield batches for at most ``SECONDS``, and note the images; at least one batch."""
    end = time.monotonic() + SECONDS
    for batch in loader:
        yield batch
        seen += batch.image_ids
        if time.monotonic() > end:
            return
