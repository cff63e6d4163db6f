# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that shows a progress bar, or prints lines where there is no terminal."""

import contextlib
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
from rich.console import Group
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

from understudy.training import console

if TYPE_CHECKING:
    from understudy.training.engine import Engine


class ShowProgress(L.Callback):
    """Show a bar over all steps with the remaining time and every named loss; without a terminal, print lines."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self) -> None:
        self.live: Live | None = None

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Show the bar."""
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.next_line = self.started + self.SECONDS_BETWEEN_LINES
        terminal = console.CONSOLE
        if not trainer.is_global_zero or not terminal.is_terminal or terminal.is_dumb_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=terminal,
        )
        self.task: TaskID = self.bar.add_task("starting", total=engine.total_steps, completed=self.first_step)
        self.live = Live(self.bar, console=terminal, refresh_per_second=4, transient=True)
        self.live.start()

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Advance the bar, or print a line if the last is old enough."""
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if self.live:
            self.bar.update(self.task, completed=trainer.global_step, description=epoch)
            self.live.update(Group(self.bar, Text(_losses_in_one_line(engine), style="dim")))
        elif trainer.is_global_zero and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + self.SECONDS_BETWEEN_LINES
            step, total = trainer.global_step, engine.total_steps
            seconds = (time.monotonic() - self.started) / (step - self.first_step) * (total - step)
            line = f"{epoch}  step {step}/{total}  {seconds / 60:.0f} min left  {_losses_in_one_line(engine)}"
            console.say(line)

    def teardown(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Remove the bar."""
        if self.live:
            with contextlib.suppress(OSError):  # the terminal has been closed
                self.live.stop()
            self.live = None

    def on_exception(self, trainer: L.Trainer, engine: "Engine", exception: BaseException) -> None:
        """Remove the bar when the run fails, where Lightning skips the teardown."""
        self.teardown(trainer, engine, "fit")


def _losses_in_one_line(engine: "Engine") -> str:
    """Return the last step's losses, distillation terms unweighted with their weights, and the distillation's share."""
    weights = {name: f" x {weight:.4g}" for name, weight in engine.term_weights.items()}
    losses = [f"{name} {value:.4g}{weights.get(name, '')}" for name, value in engine.losses.items()]
    reading = engine.balance.reading if engine.term_weights else None
    shares = [f"distillation {reading.distillation:.0%} of the gradient"] if reading else []
    return "  ".join([*losses, *shares])
