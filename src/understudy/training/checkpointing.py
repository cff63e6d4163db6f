# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that saves ``last.ckpt`` after every epoch, and when a signal asks the run to stop."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch

from understudy.training.folder import RunFolder
from understudy.training.launching import is_first_process

if TYPE_CHECKING:
    from understudy.training.engine import Engine

STOPPING = [number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None))]
"""Signals that stop a run: Ctrl-C, those of schedulers, and that of a closed terminal (Windows lacks the last two)."""


@contextlib.contextmanager
def heeding(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Handle the signals that stop a run within this block; those that are ignored (``nohup``) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    heeded = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own or signal.SIG_DFL)


class Interrupted(BaseException):
    """A signal stopped the run; the message says what was saved, and names the command that continues it.

    It is not a KeyboardInterrupt, which Lightning turns into an exit of its own, and not an Exception, which other code
    may catch.

    Args:
        message: the message.
        number: the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class KeepCheckpoints(L.Callback):
    """Save ``last.ckpt`` after every epoch, before its evaluation, and after the step in which a signal stops the run.

    Args:
        folder: the run folder.
        saved_step: the step of the present ``last.ckpt``; 0 if there is none.
    """

    def __init__(self, folder: RunFolder, saved_step: int = 0):
        self.folder, self.saved_step = folder, saved_step
        self.process = os.getpid()
        self.received = 0  # the first signal that this process has received

    @contextlib.contextmanager
    def handling_signals(self) -> Generator[None]:
        """Handle the signals that stop a run within this block."""
        with heeding(self._on_signal):
            yield

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Save and stop if a signal asks for it; after an epoch's last step, the end of the epoch does it."""
        if trainer.global_step % engine.steps_per_epoch and (number := self._stop_signal(trainer)):
            self._save(trainer)
            self._stop(number)

    def on_train_epoch_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Save; stop if a signal asks for it. The evaluation comes afterwards, or when the run is resumed."""
        self._save(trainer)
        self.stop_if_asked(trainer)

    def stop_if_asked(self, trainer: L.Trainer) -> None:
        """Stop all processes if one has received a signal; the last step was saved."""
        if number := self._stop_signal(trainer):
            self._stop(number)

    def stop_evaluation(self, trainer: L.Trainer) -> None:
        """Stop during the evaluation, after a batch; several processes, which count on each other, finish it first."""
        if self.received and trainer.world_size == 1:
            self._stop(self.received)

    def _stop_signal(self, trainer: L.Trainer) -> int:
        # All processes stop at the same step, whichever of them received the signal.
        if trainer.world_size == 1:
            return self.received
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder.last)
        self.saved_step = trainer.global_step

    def _stop(self, number: int) -> None:
        raise Interrupted(f"Stopped and saved after step {self.saved_step}. {self._remedy()}", number)

    def _remedy(self) -> str:
        if not self.saved_step:
            return f"No checkpoint was saved yet. To start again: understudy resume {self.folder.path}"
        return f"To continue: understudy resume {self.folder.path}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a worker that was forked this moment
        if not self.received:
            self.received = number
            if number == signal.SIGINT:
                self._tell("Finishing this step, then saving (Ctrl-C again stops without saving) ...")
            else:
                self._tell(f"{signal.Signals(number).name} received. Finishing this step, then saving ...")
        elif number == signal.SIGINT:
            last = f" The last checkpoint is of step {self.saved_step}." if self.saved_step else ""
            raise Interrupted(f"Stopped without saving.{last} {self._remedy()}", number)

    def _tell(self, text: str) -> None:
        if is_first_process():
            with contextlib.suppress(OSError):  # the terminal has been closed
                os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
