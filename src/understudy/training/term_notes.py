# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that warns of distillation terms that dominate the gradient or have no effect."""

from typing import TYPE_CHECKING, Any

import lightning.pytorch as L

from understudy.methods.weighting import LARGEST_SHARE
from understudy.training.console import say

if TYPE_CHECKING:
    from understudy.training.engine import Engine


class NoteTerms(L.Callback):
    """Warn once if the distillation dominates the gradient, and at the end of terms that were always zero."""

    def __init__(self) -> None:
        self.said = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether the warning was printed, for a run that is interrupted."""
        return {"said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.said = state_dict["said"]

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Warn if a share of the gradient was measured in this step and is too large."""
        if self.said or engine.share is None or engine.share <= LARGEST_SHARE or not trainer.is_global_zero:
            return
        self.said = True
        weighted = {name: engine.losses[name] * weight for name, weight in engine.term_weights.items()}
        largest = max(weighted, key=lambda name: weighted[name])
        own = sum(value for name, value in engine.losses.items() if name not in weighted and name != "total")
        say(
            f"step {trainer.global_step}: {engine.share:.0%} of the student's gradient comes from the distillation. "
            f"Largest term: {largest}, {engine.losses[largest]:.4g} x {engine.term_weights[largest]:.4g} = "
            f"{weighted[largest]:.4g}; sum of the student's own losses: {own:.4g}. If the final AP is not above that "
            "of a plain student, lower the weight of this term."
        )

    def on_train_end(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Name the terms that were zero in every step since the run was started or resumed."""
        if engine.unproven and trainer.is_global_zero:
            for name in sorted(engine.unproven):
                since = "since the run was started or resumed"
                say(f"{name} was exactly zero in every step {since}, so it had no effect on training.")
