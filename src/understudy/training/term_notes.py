# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The callback that warns of terms that dominate the gradient, have no effect (any more), or are negative."""

from typing import TYPE_CHECKING, Any

import lightning.pytorch as L

from understudy.methods.weighting import LARGEST_SHARE
from understudy.training.console import say

if TYPE_CHECKING:
    from understudy.training.engine import Engine


SILENT = 3
"""Measurements in succession without a gradient after which a term is named."""

BELOW_ZERO = -1e-4
"""A loss below this is negative; rounding makes a divergence of about -1e-8."""


class NoteTerms(L.Callback):
    """Warn once if the distillation dominates the gradient, of each negative loss and each term without a gradient.

    At the end it names the terms that were always zero.
    """

    def __init__(self) -> None:
        self.said = False
        self.negative: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return which warnings were printed, for a run that is interrupted."""
        return {"said": self.said, "negative": self.negative}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.said, self.negative = state_dict["said"], state_dict.get("negative", [])

    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Warn of what this step shows."""
        if trainer.is_global_zero:
            self._note_negative(trainer, engine)
            self._note_silence(trainer, engine)
            self._note_share(trainer, engine)

    def _note_negative(self, trainer: L.Trainer, engine: "Engine") -> None:
        for name, value in engine.losses.items():
            if name != "total" and value < BELOW_ZERO and name not in self.negative:
                self.negative.append(name)
                say(
                    f"step {trainer.global_step}: the loss {name} is negative ({value:.4g}). A distance is at least 0: "
                    "with a wrong sign, training increases it. Check the sign of this term; if it has another lower "
                    "bound, ignore this line."
                )

    def _note_silence(self, trainer: L.Trainer, engine: "Engine") -> None:
        if engine.shares is None:  # nothing was measured in this step
            return
        for name in [name for name, count in engine.silence.items() if count == SILENT]:
            engine.silence[name] += 1  # said
            say(
                f"step {trainer.global_step}: the distillation term {name} ({engine.losses[name]:.4g}) has no gradient "
                f"any more with respect to any weight of the student, in {SILENT} measurements in succession. It has "
                "no effect now. Possible causes: the method detaches the student's outputs from some step on, or a "
                "limit that it applies is reached."
            )

    def _note_share(self, trainer: L.Trainer, engine: "Engine") -> None:
        if self.said or engine.shares is None or engine.shares.distillation <= LARGEST_SHARE:
            return
        self.said = True
        share = f"{engine.shares.distillation:.0%}"
        weighted = {name: engine.losses[name] * weight for name, weight in engine.term_weights.items()}
        largest = max(weighted, key=lambda name: weighted[name])
        own = sum(value for name, value in engine.losses.items() if name not in weighted and name != "total")
        say(
            f"step {trainer.global_step}: {share} of the student's gradient comes from the distillation. "
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
