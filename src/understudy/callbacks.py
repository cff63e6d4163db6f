# ty: ignore[incompatible-method-override]  -- what Lightning calls `pl_module`, of any class, is our `engine: Engine`
"""What happens around the steps of a run: rows, evaluation, checkpoints, Ctrl-C, the progress bar."""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from understudy.checkpoints import STUDENT, read_checkpoint, write_checkpoint
from understudy.config import TrainConfig
from understudy.data import DetectionData, evaluation_loader
from understudy.evaluation import detect_all, gather_detections, score
from understudy.runs import RunFolder, append_row, is_first_process, read_rows, write_atomically
from understudy.weighting import MOST

if TYPE_CHECKING:
    from understudy.engine import Engine


class Interrupted(BaseException):
    """The user stopped the run; the message says how to go on.

    Not a KeyboardInterrupt, which Lightning turns into an exit of its own, and no Exception, which others may catch.
    """


class LogLosses(L.Callback):
    """Writes every named loss, averaged since the last row, to ``losses.csv``, and to TensorBoard where installed.

    The distillation's terms are raw; the weight of each, which may grow, stands beside it as ``<term>_weight``.
    """

    def __init__(self, folder: RunFolder, every: int):
        self.folder, self.every = folder, every
        self.board: Any = None
        self._forget()

    def _forget(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0
        self.share: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the next row is made of, for a run that is interrupted between two rows."""
        return {"sums": self.sums, "count": self.count, "share": self.share}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.sums, self.count, self.share = state_dict["sums"], state_dict["count"], state_dict["share"]

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Open TensorBoard's file."""
        self.board = _tensorboard(self.folder, trainer.global_step) if trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Add the step's losses; write a row every few steps, and after the last."""
        for name, value in engine.losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.share = engine.share if engine.share is not None else self.share
        step = trainer.global_step
        if step % self.every == 0 or step == _total_steps(trainer, engine):
            if trainer.is_global_zero:
                self._write(engine, step)
            self._forget()

    def teardown(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Close TensorBoard's file."""
        if self.board:
            self.board.close()
            self.board = None

    def on_exception(self, trainer: L.Trainer, engine: "Engine", exception: BaseException) -> None:
        """Close it also when the run fails; Lightning skips the teardown then."""
        self.teardown(trainer, engine, "fit")

    def _write(self, engine: "Engine", step: int) -> None:
        means = {name: total / self.count for name, total in self.sums.items()}
        row = {
            "epoch": f"{step / engine.steps_per_epoch:.3f}",
            "step": step,
            "lr": f"{engine.lr:.4g}",
            **{name: f"{value:.6g}" for name, value in means.items()},
            "distillation_share": "" if self.share is None else f"{self.share:.4f}",
            **{f"{name}_weight": f"{weight:.6g}" for name, weight in engine.term_weights.items()},
        }
        append_row(self.folder.losses, row)
        if self.board:
            for name, value in means.items():
                self.board.add_scalar(f"loss/{name}", value, step)
            for name, weight in engine.term_weights.items():
                self.board.add_scalar(f"weight/{name}", weight, step)
            if self.share is not None:
                self.board.add_scalar("distillation_share", self.share, step)


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
            weights = engine.learner.student.network.state_dict(prefix=STUDENT)
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
        write_atomically(self.folder.result, (json.dumps(result, indent=2) + "\n").encode())


class KeepCheckpoints(L.Callback):
    """Saves ``last.ckpt`` after every epoch, and on Ctrl-C after the step that is under way.

    Args:
        folder: of the run.
        saved_step: the step that ``last.ckpt`` was written after; 0 if there is none.
    """

    def __init__(self, folder: RunFolder, saved_step: int = 0):
        self.folder, self.saved_step = folder, saved_step
        self.stop_wanted = False

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Take Ctrl-C over within this block."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals to the main thread only
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Stop within an epoch; after its last step the evaluation comes first."""
        if trainer.global_step % engine.steps_per_epoch and self._all_stop(trainer):
            self._save(trainer)
            raise Interrupted(f"Stopped and saved after step {self.saved_step}. {self._way_on()}")

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Save, and stop if that is wanted and something is left to do."""
        self._save(trainer)
        if self._all_stop(trainer) and trainer.current_epoch + 1 != trainer.max_epochs:
            raise Interrupted(f"Stopped and saved after step {self.saved_step}. {self._way_on()}")

    def _all_stop(self, trainer: L.Trainer) -> bool:
        # All processes stop at the same step, whichever of them heard the signal.
        return trainer.strategy.reduce_boolean_decision(self.stop_wanted, all=False)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder.last)
        self.saved_step = trainer.global_step

    def _way_on(self) -> str:
        if not self.saved_step:
            return f"Nothing was saved yet: delete {self.folder.path} and start anew."
        return f"Go on with: understudy resume {self.folder.path}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_wanted:
            kept = f"; step {self.saved_step} was the last to be saved" if self.saved_step else ""
            raise Interrupted(f"Stopped at once{kept}. {self._way_on()}")
        self.stop_wanted = True
        if is_first_process():
            print(
                "\nFinishing this step, then saving (Ctrl-C again stops at once, without saving) ...", file=sys.stderr
            )


CONSOLE = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line, above the bar where there is one."""
    CONSOLE.print(text, soft_wrap=True)


class NoteTerms(L.Callback):
    """Says once if the distillation has drowned the student's own task, and at the end which terms were always zero."""

    def __init__(self) -> None:
        self.said = False

    def state_dict(self) -> dict[str, Any]:
        """Whether it has been said, for a run that is interrupted."""
        return {"said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.said = state_dict["said"]

    def on_train_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Name the terms that were zero in every step since the run was started, or resumed."""
        if engine.unproven and trainer.is_global_zero:
            names = ", ".join(sorted(engine.unproven))
            say(f"{names}: exactly zero in every step since the start, so nothing was taught by it.")

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Look at a share that was measured in this step."""
        if self.said or engine.share is None or engine.share <= MOST or not trainer.is_global_zero:
            return
        self.said = True
        weighted = {name: engine.losses[name] * weight for name, weight in engine.term_weights.items()}
        largest = max(weighted, key=lambda name: weighted[name])
        own = sum(value for name, value in engine.losses.items() if name not in weighted and name != "total")
        say(
            f"step {trainer.global_step}: {engine.share:.0%} of the student's gradient comes from the distillation. "
            f"Its largest term is {largest}, {engine.losses[largest]:.4g} x {engine.term_weights[largest]:.4g} = "
            f"{weighted[largest]:.4g}; the student's own losses add up to {own:.4g}. If it ends no better than a plain "
            "student, lower this weight."
        )


class ShowProgress(L.Callback):
    """A bar over all steps with the time left, and every named loss; where no terminal is, a line now and then."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self) -> None:
        self.live: Live | None = None

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Show the bar."""
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.next_line = self.started + self.SECONDS_BETWEEN_LINES
        if not trainer.is_global_zero or not CONSOLE.is_terminal or CONSOLE.is_dumb_terminal:
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
        total = _total_steps(trainer, engine)
        self.task: TaskID = self.bar.add_task("starting", total=total, completed=self.first_step)
        self.live = Live(self.bar, console=CONSOLE, refresh_per_second=4, transient=True)
        self.live.start()

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Move it, or write a line if it is time."""
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if self.live:
            self.bar.update(self.task, completed=trainer.global_step, description=epoch)
            self.live.update(Group(self.bar, Text(_written(engine), style="dim")))
        elif trainer.is_global_zero and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + self.SECONDS_BETWEEN_LINES
            step, total = trainer.global_step, _total_steps(trainer, engine)
            seconds = (time.monotonic() - self.started) / (step - self.first_step) * (total - step)
            say(f"{epoch}  step {step}/{total}  {seconds / 60:.0f} min left  {_written(engine)}")

    def teardown(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Take it away."""
        if self.live:
            self.live.stop()
            self.live = None

    def on_exception(self, trainer: L.Trainer, engine: "Engine", exception: BaseException) -> None:
        """Take it away also when the run fails; Lightning skips the teardown then."""
        self.teardown(trainer, engine, "fit")


def _total_steps(trainer: L.Trainer, engine: "Engine") -> int:
    return engine.steps_per_epoch * int(trainer.max_epochs or 0)


def _written(engine: "Engine") -> str:
    """The last step's losses in one line; raw terms with their weights."""
    weights = {name: f" x {weight:.4g}" for name, weight in engine.term_weights.items()}
    return "  ".join(f"{name} {value:.4g}{weights.get(name, '')}" for name, value in engine.losses.items())


def _tensorboard(folder: RunFolder, step: int) -> Any:
    """A writer that leaves out what an interrupted run wrote after the step it now goes on from."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1 if step else None)
