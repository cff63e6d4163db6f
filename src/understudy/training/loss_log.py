# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that writes every named loss to ``losses.csv`` and to TensorBoard."""

import contextlib
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L

from understudy.errors import RunError
from understudy.files import append_row
from understudy.training.folder import RunFolder
from understudy.training.tensorboard import Board, open_board

if TYPE_CHECKING:
    from understudy.training.engine import Engine


class LogLosses(L.Callback):
    """Write every named loss, averaged since the last row, to ``losses.csv``, and to TensorBoard if it is installed.

    Distillation terms are unweighted; the column ``<term>_weight`` holds the weight of the row's last step, and
    ``<term>_share`` its share of the gradient, if it was measured since the last row.

    Args:
        folder: the run folder.
        every: number of steps between two rows.
    """

    def __init__(self, folder: RunFolder, every: int):
        self.folder, self.every = folder, every
        self.board: Board | None = None
        self.engine: Engine | None = None
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0
        self.shares: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the unfinished row, for a run that is interrupted between two rows."""
        self._add()
        return {"sums": self.sums, "count": self.count, "shares": self.shares}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the unfinished row."""
        self.sums, self.count = state_dict["sums"], state_dict["count"]
        self.shares = state_dict.get("shares", {})  # an earlier version has none

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Open TensorBoard's file."""
        self.engine = engine
        if trainer.is_global_zero:
            self.board = open_board(self.folder.path / "tensorboard", trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Write a row every ``every`` steps and after the last step."""
        if engine.shares:
            self.shares = {"distillation": engine.shares.distillation, **engine.shares.terms}
        step = trainer.global_step
        if step % self.every == 0 or step == engine.total_steps:
            self._add()
            if trainer.is_global_zero:
                self._write(engine, step)
            self._reset()

    def teardown(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Close TensorBoard's file."""
        board, self.board = self.board, None
        if board:
            board.close()

    def on_exception(self, trainer: L.Trainer, engine: "Engine", exception: BaseException) -> None:
        """Close TensorBoard's file when the run fails, where Lightning skips the teardown."""
        with contextlib.suppress(RunError):  # the exception itself says more
            self.teardown(trainer, engine, "fit")

    def _add(self) -> None:
        """Add the losses since the last row or checkpoint."""
        if self.engine is None:
            return
        self.engine.read_losses()
        for losses in self.engine.read:
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += len(self.engine.read)
        self.engine.read.clear()

    def _write(self, engine: "Engine", step: int) -> None:
        means = {name: total / self.count for name, total in self.sums.items()}
        row = {
            "epoch": f"{step / engine.steps_per_epoch:.3f}",
            "step": step,
            "lr": f"{engine.lr:.4g}",
            **{name: f"{value:.6g}" for name, value in means.items()},
            **{
                f"{name}_share": f"{self.shares[name]:.4f}" if name in self.shares else ""
                for name in ("distillation", *engine.term_weights)
            },
            **{f"{name}_weight": f"{weight:.6g}" for name, weight in engine.term_weights.items()},
        }
        append_row(self.folder.losses, row)
        if self.board:
            shown = {f"loss/{name}": value for name, value in means.items()}
            shown |= {f"weight/{name}": weight for name, weight in engine.term_weights.items()}
            shown |= {f"share/{name}": share for name, share in self.shares.items()}
            self.board.write(shown, step)
