# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that evaluates the student during a run and keeps its best checkpoint."""

import json
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L

from understudy.checkpoints import STUDENT, read_checkpoint, write_checkpoint
from understudy.config import TrainConfig
from understudy.data import DetectionData, evaluation_loader
from understudy.evaluation import detect_all, gather_detections, score
from understudy.files import append_row, write_atomically
from understudy.reading import number_in, read_rows
from understudy.training.console import say
from understudy.training.folder import RunFolder

if TYPE_CHECKING:
    from understudy.training.engine import Engine


class Validate(L.Callback):
    """Evaluate the student on the validation split, write ``metrics.csv``, and keep the best weights in ``best.ckpt``.

    Args:
        folder: the run folder.
        data: the validation split.
        config: the run's config.
    """

    def __init__(self, folder: RunFolder, data: DetectionData, config: TrainConfig):
        self.folder, self.data, self.config = folder, data, config

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Evaluate after every ``evaluate_every`` epochs and after the last."""
        epoch = trainer.current_epoch + 1
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
        with trainer.precision_plugin.forward_context():
            detections = detect_all(engine.learner.student, loader, engine.device, self.data.category_ids)
        detections = gather_detections(detections)
        if trainer.is_global_zero:
            self._record(trainer, engine, epoch, detections)
        trainer.strategy.barrier("validated")

    def _record(self, trainer: L.Trainer, engine: "Engine", epoch: int, detections: list[dict[str, Any]]) -> None:
        """Write the epoch's row, and the checkpoint if it is the best so far."""
        evaluation = score(self.data, detections)
        metrics = {name: evaluation.coco[name] for name in ("AP", "AP50", "AP75")}
        best = max((number_in(row, "AP", self.folder.metrics) for row in read_rows(self.folder.metrics)), default=-1.0)
        row = {"epoch": epoch, "step": trainer.global_step, **metrics, "seconds": round(engine.seconds, 1)}
        if metrics["AP"] > best:
            weights = engine.learner.student.network.state_dict(prefix=STUDENT)
            meta = engine.metadata(epoch=epoch, AP=metrics["AP"], evaluation=evaluation.to_dict())
            write_checkpoint(self.folder.best, {"understudy": meta, "state_dict": weights})
        append_row(self.folder.metrics, row)
        scores = "  ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
        say(f"epoch {epoch:>3}  {scores}" + ("  best so far" if metrics["AP"] > best else ""))

    def write_result(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Write the best checkpoint's evaluation to ``result.json``; called when the run is finished."""
        if not trainer.is_global_zero:
            return
        meta = read_checkpoint(self.folder.best)["understudy"]
        result = {
            **meta["evaluation"],
            "epoch": meta["epoch"],
            "parameters": sum(parameter.numel() for parameter in engine.learner.student.parameters()),
            "train_seconds": round(engine.seconds, 1),
        }
        write_atomically(self.folder.result, (json.dumps(result, indent=2) + "\n").encode())
