"""What happens around the steps of a run: rows, evaluation, checkpoints, Ctrl-C, the progress bar."""

import json
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from understudy.checkpoint import read_checkpoint, write_checkpoint
from understudy.config import TrainConfig
from understudy.data import DetectionData, evaluation_loader
from understudy.evaluation import detect_all, gather_detections, score
from understudy.runs import RunFolder, append_row, read_rows

if TYPE_CHECKING:
    from understudy.training import Engine


class Interrupted(Exception):
    """The user stopped the run, and it was saved; the message is the command that goes on."""


class LogLosses(L.Callback):
    """Writes every named loss, averaged since the last row, to ``losses.csv``, and to TensorBoard where installed."""

    def __init__(self, folder: RunFolder, every: int):
        self.folder, self.every = folder, every
        self.sums: dict[str, float] = {}
        self.count = 0
        self.share: float | None = None

    def on_fit_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Open TensorBoard's file."""
        self.board = _tensorboard(self.folder) if trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Add the step's losses; write a row every few steps."""
        for name, value in engine.losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.share = engine.share if engine.share is not None else self.share
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self._write(trainer, engine)

    def on_train_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Write what is left."""
        if trainer.is_global_zero and self.count:
            self._write(trainer, engine)
        if self.board:
            self.board.close()

    def _write(self, trainer: L.Trainer, engine: "Engine") -> None:
        means = {name: total / self.count for name, total in self.sums.items()}
        step = trainer.global_step
        row = {
            "epoch": f"{step / engine.steps_per_epoch:.3f}",
            "step": step,
            "lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.4g}",
            **{name: f"{value:.6g}" for name, value in means.items()},
            "distillation_share": "" if self.share is None else f"{self.share:.4f}",
        }
        append_row(self.folder.losses, row)
        if self.board:
            for name, value in means.items():
                self.board.add_scalar(f"loss/{name}", value, step)
            if self.share is not None:
                self.board.add_scalar("distillation_share", self.share, step)
        self.sums, self.count, self.share = {}, 0, None


class Validate(L.Callback):
    """Evaluates the student after an epoch, writes ``metrics.csv``, and keeps the best in ``best.ckpt``."""

    def __init__(self, folder: RunFolder, data: DetectionData, config: TrainConfig):
        self.folder, self.data, self.config = folder, data, config

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Evaluate, if it is the turn of this epoch or it is the last."""
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
            found = detect_all(engine.learner.student, loader, engine.device, self.data.category_ids)
        found = gather_detections(found)
        if trainer.is_global_zero:
            self._keep(trainer, engine, epoch, found)
        trainer.strategy.barrier("validated")

    def _keep(self, trainer: L.Trainer, engine: "Engine", epoch: int, found: list[dict[str, Any]]) -> None:
        evaluation = score(self.data, found)
        average = {name: evaluation.coco[name] for name in ("AP", "AP50", "AP75")}
        best = max((float(row["AP"]) for row in read_rows(self.folder.metrics)), default=-1.0)
        row = {"epoch": epoch, "step": trainer.global_step, **average, "seconds": round(engine.seconds, 1)}
        if average["AP"] > best:
            weights = engine.learner.student.network.state_dict(prefix="learner.student.network.")
            meta = engine.metadata(epoch=epoch, AP=average["AP"], evaluation=evaluation.to_dict())
            write_checkpoint(self.folder.best, {"understudy": meta, "state_dict": weights})
        append_row(self.folder.metrics, row)
        scores = "  ".join(f"{name} {100 * value:.1f}" for name, value in average.items())
        say(f"epoch {epoch:>3}  {scores}" + ("  best so far" if average["AP"] > best else ""))

    def write_result(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Write the best checkpoint's evaluation to ``result.json``, once the run is finished."""
        if not trainer.is_global_zero:
            return
        meta = read_checkpoint(self.folder.best)["understudy"]
        result = {
            **meta["evaluation"],
            "epoch": meta["epoch"],
            "parameters": sum(parameter.numel() for parameter in engine.learner.student.parameters()),
            "train_seconds": round(engine.seconds, 1),
        }
        self.folder.result.write_text(json.dumps(result, indent=2) + "\n")


class KeepCheckpoints(L.Callback):
    """Saves ``last.ckpt`` after every epoch, and on Ctrl-C after the step that is under way."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.stop_wanted = False

    def on_fit_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Take Ctrl-C over."""
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._on_signal)

    def teardown(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Give Ctrl-C back."""
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Stop within an epoch; after its last step the evaluation comes first."""
        if trainer.global_step % engine.steps_per_epoch and self._stop(trainer):
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Save, and stop if that is wanted and something is left to do."""
        finished = trainer.current_epoch + 1 == trainer.max_epochs
        if self._stop(trainer) and not finished:
            self._save_and_stop(trainer)
        trainer.save_checkpoint(self.folder.last)

    def _stop(self, trainer: L.Trainer) -> bool:
        # All processes stop at the same step, whichever of them heard the signal.
        return trainer.strategy.reduce_boolean_decision(self.stop_wanted, all=False)

    def _save_and_stop(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder.last)
        raise Interrupted(f"Stopped and saved after step {trainer.global_step}. Go on with: understudy resume {self.folder.path}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_wanted:
            raise KeyboardInterrupt
        self.stop_wanted = True
        print("\nFinishing this step, then saving (Ctrl-C again stops at once, without saving) ...", file=sys.stderr)


CONSOLE = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line, above the bar where there is one."""
    CONSOLE.print(text)


class ShowProgress(L.Callback):
    """A bar over all steps of the run with the time left, and every named loss below it; plain lines where no terminal is."""

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Show the bar."""
        self.live: Live | None = None
        if not (trainer.is_global_zero and CONSOLE.is_terminal):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=CONSOLE,
        )
        steps = engine.steps_per_epoch * int(trainer.max_epochs or 0)
        self.task: TaskID = self.bar.add_task("starting", total=steps, completed=trainer.global_step)
        self.live = Live(self.bar, console=CONSOLE, refresh_per_second=4, transient=True)
        self.live.start()

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Move it."""
        if self.live:
            self.bar.update(self.task, completed=trainer.global_step, description=self._epoch(trainer))
            losses = "  ".join(f"{name} {value:.4g}" for name, value in engine.losses.items())
            self.live.update(Group(self.bar, Text(losses, style="dim")))

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Say that the epoch is being evaluated."""
        if self.live:
            self.bar.update(self.task, description=self._epoch(trainer))

    def teardown(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Take it away."""
        if getattr(self, "live", None):
            self.live.stop()

    @staticmethod
    def _epoch(trainer: L.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def _tensorboard(folder: RunFolder) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder.path / "tensorboard"))
