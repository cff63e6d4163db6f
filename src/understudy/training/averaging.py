# ty: ignore[incompatible-method-override]  -- Lightning's `pl_module` (any class) is our `engine: Engine`
"""The moving average of the trained weights, which is evaluated and exported instead of the weights themselves.

Lightning's ``WeightAveraging`` copies the whole module, with its data and settings, and averages counters, too. Here
are the same two dicts in a checkpoint, without the copy, and with a decay that suits a run of any length.
"""

import contextlib
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as L
import torch
from torch import Tensor

from understudy.checkpoints import check_weights

if TYPE_CHECKING:
    from understudy.training.engine import Engine

RAW = "weights_in_training"
"""Key of a checkpoint for the weights that the training goes on with; ``state_dict`` has their averages."""


class AverageWeights(L.Callback):
    """Average the weights of the student and of the methods after every step.

    Averaged are the trained parameters and the running statistics of batch normalisation: both move slowly, and the
    statistics of an average of networks are, to first order, the average of theirs. Everything else is as in training.

    Args:
        decay: the share of the old average that a step keeps, once the run is long enough, see :func:`decay_at`;
            "off": there is no average, and nothing here has an effect.

    Attributes:
        averages: the averages by their name in the checkpoint; those of the weights in training while
            :meth:`in_place`.
    """

    def __init__(self, decay: float | Literal["off"]):
        self.decay, self.averages, self.weights = decay, dict[str, Tensor](), list[Tensor]()

    @torch.no_grad()
    def setup(self, trainer: L.Trainer, engine: "Engine", stage: str) -> None:
        """Begin with the initial weights, on the device of the run."""
        if self.decay != "off":
            device = trainer.strategy.root_device
            self.averages = {name: tensor.clone().to(device) for name, tensor in averaged(engine).items()}

    def on_train_start(self, trainer: L.Trainer, engine: "Engine") -> None:
        """Look up the weights once, now that they are on the device: naming them in every step would take time."""
        self.weights = list(averaged(engine).values()) if self.averages else []

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, engine: "Engine", *_: Any) -> None:
        """Move the averages towards the weights after a step."""
        if self.decay != "off":
            share = 1 - decay_at(trainer.global_step, self.decay)
            torch._foreach_lerp_(list(self.averages.values()), self.weights, share)

    @contextlib.contextmanager
    def in_place(self, trainer: L.Trainer, engine: "Engine") -> Generator[None]:
        """Put the averages into the student and the methods within this block."""
        if trainer.world_size > 1:  # each process has statistics of its own images; a resumed run, those of the first
            parameters = dict(engine.named_parameters())
            for name, average in self.averages.items():
                if name not in parameters:
                    torch.distributed.broadcast(average, 0)
        self._swap(engine)
        try:
            yield
        finally:
            self._swap(engine)

    @torch.no_grad()
    def _swap(self, engine: "Engine") -> None:
        for name, tensor in averaged(engine).items() if self.averages else ():
            held = tensor.clone()
            tensor.copy_(self.averages[name])
            self.averages[name].copy_(held)

    def on_save_checkpoint(self, trainer: L.Trainer, engine: "Engine", checkpoint: dict[str, Any]) -> None:
        """Save the averages as the detector's weights, and beside them those that the training goes on with."""
        if self.averages:
            checkpoint[RAW] = {name: checkpoint["state_dict"][name] for name in self.averages}
            checkpoint["state_dict"].update(self.averages)

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, engine: "Engine", checkpoint: dict[str, Any]) -> None:
        """Restore both."""
        raw = averaged(engine) if self.averages else {}
        for name, average in self.averages.items():
            average.copy_(checkpoint["state_dict"][name])
            raw[name].copy_(checkpoint[RAW][name])

    def check(self, file: Any, engine: "Engine", checkpoint: Mapping[str, Any]) -> None:
        """Raise a ``UserError`` if a checkpoint does not have the weights in training of a run."""
        if self.decay != "off":
            summary = f"The weights in training in {file} do not fit the run (ema={self.decay}):"
            check_weights(summary, averaged(engine), checkpoint.get(RAW, {}))


def decay_at(step: int, limit: float) -> float:
    """Return the decay of the average after a number of steps: it spans the last ninth of a run, whatever its length.

    (1 + t) / (10 + t) weighs the weights of step s by about s to the power of 8, as the polynomial-decay averaging of
    Shamir and Zhang (ICML 2013). The limit ends this growth: 0.9998 after 45,000 steps.

    >>> [round(decay_at(step, 0.999), 3) for step in (1, 90, 990, 100_000)]
    [0.182, 0.91, 0.991, 0.999]
    """
    return min(limit, (1 + step) / (10 + step))


def averaged(engine: "Engine") -> dict[str, Tensor]:
    """Return what is averaged of a run, by its name in the checkpoint: not frozen weights, nor counters."""
    kept = engine.state_dict(keep_vars=True)
    return {
        name: tensor.detach()
        for name, tensor in kept.items()
        if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter))
    }
