# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that evaluates the student during a run and keeps its best checkpoint."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as L

from understudy.checkpoints import STUDENT, read_checkpoint, write_checkpoint
from understudy.config import TrainConfig
from understudy.data import Batch, DetectionData, evaluation_loader, shown_location
from understudy.data.digests import digest_of_split
from understudy.evaluation import Detections, detect_all, gather_detections, score
from understudy.files import append_row, write_atomically
from understudy.reading import number_in, read_rows
from understudy.training.averaging import AverageWeights
from understudy.training.checkpointing import KeepCheckpoints
from understudy.training.console import say
from understudy.training.folder import RunFolder
from understudy.training.teacher_check import CheckTeacher

if TYPE_CHECKING:
    from understudy.training.engine import Engine


SEVERAL = 3
"""Evaluations in a row from the start, each with an AP of 0, after which the run remarks on it."""


class Validate(L.Callback):
    """Evaluate the student on the validation split, write ``metrics.csv``, and keep the best weights in ``best.ckpt``.

    Args:
        folder: the run folder.
        data: the validation split.
        config: the run's config.
        checkpoints: has saved the epoch before it is evaluated, and stops the run if a signal asks for it.
        average: of the weights, which is what is evaluated and kept.
        check: the check of the teacher, which compares the best student with it.
    """

    def __init__(
        self,
        folder: RunFolder,
        data: DetectionData,
        config: TrainConfig,
        checkpoints: KeepCheckpoints,
        average: AverageWeights,
        check: CheckTeacher | None = None,
    ):
        self.folder, self.data, self.config = folder, data, config
        self.checkpoints, self.average, self.check = checkpoints, average, check
        self.stopped_early: dict[str, int] | None = None

    def on_fit_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Evaluate the last epoch of a resumed run, if it was stopped after this epoch was saved."""
        if self.check and self.checkpoints.saved_step and self.folder.best.exists():
            # An epoch is saved before its evaluation measures the student, whose best is in the best checkpoint.
            self.check.found |= read_checkpoint(self.folder.best)["understudy"].get("teacher_check", {})
        epoch, within = divmod(self.checkpoints.saved_step, engine.steps_per_epoch)
        evaluated = {int(row["epoch"]) for row in read_rows(self.folder.metrics)}
        if epoch and not within and epoch not in evaluated:
            self._evaluate(trainer, engine, epoch)
        elif epoch:
            self._stop_if_stale(trainer, engine, epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Evaluate after every ``evaluate_every`` epochs and after the last."""
        self._evaluate(trainer, engine, trainer.current_epoch + 1)

    def _evaluate(self, trainer: L.Trainer, engine: "Engine", epoch: int) -> None:
        """Evaluate an epoch that was saved just now, if it is due."""
        if epoch % self.config.evaluate_every and epoch != self.config.schedule.epochs:
            return
        loader = evaluation_loader(
            self.data,
            batch_size=self.config.batch_size,
            shorter_side=self.config.data.shorter_side[-1],
            longer_side=self.config.data.longer_side,
            workers=self.config.data.workers,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        with self.average.in_place(trainer, engine):
            with trainer.precision_plugin.forward_context():
                batches = self._until_stopped(trainer, loader)
                detections = detect_all(engine.learner.student, batches, engine.device, self.data.category_ids)
            detections = gather_detections(detections)
            if trainer.is_global_zero:
                self._record(trainer, engine, epoch, detections)
        trainer.strategy.barrier("validated")
        # Otherwise only the result is left to write.
        if not self._stop_if_stale(trainer, engine, epoch) and epoch != self.config.schedule.epochs:
            self.checkpoints.stop_if_asked(trainer)

    def _stop_if_stale(self, trainer: L.Trainer, engine: "Engine", epoch: int) -> bool:
        """End the training of all processes if AP has not risen for ``schedule.patience`` evaluations.

        A run whose student will be quantised does not end before. This depends on ``metrics.csv`` alone, so a resumed
        run stops where an uninterrupted one does.
        """
        patience, epochs = self.config.schedule.patience, self.config.schedule.epochs
        if patience is None or epoch == epochs or (engine.quantiser and not engine.quantiser.active):
            return False
        if trainer.is_global_zero:
            aps = self._candidates(engine)
            if aps and evaluations_without_gain(aps) >= patience:
                self.stopped_early = {"epoch": epoch, "of": epochs, "patience": patience}
                say(f"stopped early after epoch {epoch} of {epochs}: AP has not risen in {patience} evaluations")
        trainer.should_stop = bool(trainer.strategy.broadcast(self.stopped_early is not None))
        return trainer.should_stop

    def _candidates(self, engine: "Engine") -> list[float]:
        """Return the APs of the evaluations so far whose best is kept: of a quantised student, those as such."""
        first = engine.quantiser.start if engine.quantiser and engine.quantiser.active else 0
        rows, file = read_rows(self.folder.metrics), self.folder.metrics
        return [number_in(row, "AP", file) for row in rows if not first or number_in(row, "step", file) >= first]

    def _until_stopped(self, trainer: L.Trainer, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in loader:
            self.checkpoints.stop_evaluation(trainer)
            yield batch

    def _record(self, trainer: L.Trainer, engine: "Engine", epoch: int, detections: Detections) -> None:
        """Write the epoch's row, and the checkpoint if it is the best so far."""
        evaluation = score(self.data, detections)
        step = self.checkpoints.saved_step
        metrics = {name: evaluation.coco[name] for name in ("AP", "AP50", "AP75")}
        before = len(read_rows(self.folder.metrics))
        best = max(self._candidates(engine), default=-1.0)
        row = {"epoch": epoch, "step": step, **metrics, "seconds": round(engine.seconds, 1)}
        if metrics["AP"] > best:
            if self.check:
                self.check.measure_student(detections)
            weights = engine.learner.student.network.state_dict(prefix=STUDENT)
            found = {"teacher_check": self.check.found} if self.check and self.check.found else {}
            meta = engine.metadata(epoch=epoch, step=step, AP=metrics["AP"], evaluation=evaluation.to_dict(), **found)
            write_checkpoint(self.folder.best, {"understudy": meta, "state_dict": weights})
        append_row(self.folder.metrics, row)
        scores = "  ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
        say(f"epoch {epoch:>3}  {scores}" + ("  best so far" if metrics["AP"] > max(best, 0.0) else ""))
        evaluations, last = before + 1, epoch == self.config.schedule.epochs
        if metrics["AP"] == max(best, 0.0) == 0 and (evaluations == SEVERAL or (last and evaluations < SEVERAL)):
            say(_nothing_found(evaluations, self.config))

    def write_result(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Write the best checkpoint's evaluation to ``result.json``; called when the run is finished."""
        if not trainer.is_global_zero:
            return
        meta = read_checkpoint(self.folder.best)["understudy"]
        result = {
            **meta["evaluation"],
            "data_digest": digest_of_split(self.data),
            "epoch": meta["epoch"],
            "parameters": sum(parameter.numel() for parameter in engine.learner.student.parameters()),
            "train_seconds": round(engine.seconds, 1),
            "stopped_early": self.stopped_early,
            **({"quantised": True} if "quantisation" in meta else {}),
            **({"teacher_check": self.check.found} if self.check and self.check.found else {}),
        }
        if self.stopped_early:
            self.folder.write_environment(self.folder.read_environment() | {"stopped_early": self.stopped_early})
        write_atomically(self.folder.result, (json.dumps(result, indent=2) + "\n").encode())


def evaluations_without_gain(aps: Sequence[float]) -> int:
    """Return how many evaluations there were since the one with the highest AP, the first of equal ones.

    >>> evaluations_without_gain([0.1, 0.3, 0.2, 0.3])
    2
    """
    return len(aps) - 1 - max(range(len(aps)), key=lambda place: (_or_least(aps[place]), -place))


def _or_least(ap: float) -> float:
    return -1.0 if math.isnan(ap) else ap


def _nothing_found(evaluations: int, config: TrainConfig) -> str:
    """Remark that the student detects nothing right, with likely causes."""
    rate, sizes = config.optimizer.lr, config.data.shorter_side[-1]
    counted = "the only evaluation" if evaluations == 1 else f"all {evaluations} evaluations so far"
    return (
        f"AP was 0.0 in {counted}. Possible causes: too few steps yet, a learning rate that is too low or too high "
        f"(optimizer.lr={rate:g}), objects that are too small at data.shorter_side={sizes} or for the anchors "
        "(detector.anchor_scale), or wrong boxes or classes (run `understudy check "
        f"{shown_location(config.data.path)}`)."
    )
