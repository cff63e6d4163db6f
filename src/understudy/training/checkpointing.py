# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that saves ``last.ckpt`` after every epoch and on Ctrl-C."""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L

from understudy.training.folder import RunFolder, is_first_process

if TYPE_CHECKING:
    from understudy.training.engine import Engine


class Interrupted(BaseException):
    """The user stopped the run; the message names the command that continues it.

    It is not a KeyboardInterrupt, which Lightning turns into an exit of its own, and not an Exception, which other code
    may catch.
    """


class KeepCheckpoints(L.Callback):
    """Save ``last.ckpt`` after every epoch, and on Ctrl-C after the current step.

    Args:
        folder: the run folder.
        saved_step: the step of the present ``last.ckpt``; 0 if there is none.
    """

    def __init__(self, folder: RunFolder, saved_step: int = 0):
        self.folder, self.saved_step = folder, saved_step
        self.stop_requested = False

    @contextlib.contextmanager
    def handling_interrupts(self) -> Generator[None]:
        """Handle Ctrl-C within this block."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Save and stop within an epoch if requested; after an epoch's last step the evaluation comes first."""
        if trainer.global_step % engine.steps_per_epoch and self._any_stop_requested(trainer):
            self._save(trainer)
            self._stop()

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Save; stop if requested and if epochs are left."""
        self._save(trainer)
        if self._any_stop_requested(trainer) and trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop()

    def _any_stop_requested(self, trainer: L.Trainer) -> bool:
        # All processes stop at the same step, whichever of them received the signal.
        return trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder.last)
        self.saved_step = trainer.global_step

    def _stop(self) -> None:
        raise Interrupted(f"Stopped and saved after step {self.saved_step}. {self._remedy()}")

    def _remedy(self) -> str:
        if not self.saved_step:
            return f"No checkpoint was saved yet: delete {self.folder.path} and start the run again."
        return f"To continue: understudy resume {self.folder.path}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            last = f" The last checkpoint is of step {self.saved_step}." if self.saved_step else ""
            raise Interrupted(f"Stopped without saving.{last} {self._remedy()}")
        self.stop_requested = True
        if is_first_process():
            print("\nFinishing this step, then saving (Ctrl-C again stops without saving) ...", file=sys.stderr)
