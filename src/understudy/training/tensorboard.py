"""TensorBoard's file of a run."""

import contextlib
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.errors import RunError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes numbers to TensorBoard's file.

    Args:
        folder: of the file.
        writer: TensorBoard's own, which writes in a thread. Its errors come out of its next call, so the thread itself
            does not print them.
    """

    def __init__(self, folder: Path, writer: "SummaryWriter"):
        self.folder, self.writer = folder, writer
        self.hook, threading.excepthook = threading.excepthook, self._on_error

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of a step.

        Raises:
            RunError: the file cannot be written.
        """
        with self._explained():
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            with self._explained():
                self.writer.close()
        finally:
            threading.excepthook = self.hook

    def _on_error(self, args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self.hook(args)

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"Could not write {self.folder} ({error.strerror or error}).") from error


def open_board(folder: Path, step: int) -> Board | None:
    """Open a board that discards what an interrupted run wrote after the step it is resumed from.

    Returns:
        None if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return Board(folder, SummaryWriter(str(folder), purge_step=step + 1))
