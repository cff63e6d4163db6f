"""Quantisation-aware training: a student is trained as it will compute in INT8, simulated in floating point.

The inputs and the weights of its convolutions and linear layers are rounded to 256 levels in the forward pass. The
gradient passes the rounding as if it were not there (Bengio et al., 2013), and is zero for an input outside its range.
The scheme is that of Jacob et al. (CVPR 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"), with a scale for each output channel of a weight (Krishnamoorthi, 2018): folding a
batch normalisation into the weight, which multiplies each output channel by a number, changes scales and no integer.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.networks.processes import largest_over_processes

IN_FLOAT = frozenset({"cls_logits", "bbox_reg", "bbox_ctrness", "bbox_pred", "cls_score"})
"""Layers that stay in float, by the last part of their names: those that emit scores and boxes, whose small differences
decide the order of scores."""

SPAN = 100
"""Steps over which the range of a layer's inputs is averaged; so many before the first quantised step, it is observed.
"""

LARGEST_WEIGHT = 127
"""The integers of a weight are -127..127: symmetric, so that a negative factor from a batch normalisation changes only
their signs."""

LARGEST_INPUT = 255
"""The integers of an input are 0..255."""

_TINY = torch.finfo(torch.float32).tiny


def quantised_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a plain network that are quantised, by name: convolutions and linear ones (IN_FLOAT)."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)  # not of a subclass that computes otherwise
        and name.rpartition(".")[2] not in IN_FLOAT
    }


def quantised_weight(weight: Tensor) -> Tensor:
    """Round a weight (O, ...) to 255 levels for each output channel, the largest value being one of them.

    The gradient passes through.

    Examples:
        >>> quantised_weight(torch.tensor([[1.27, 0.444], [0.0, -254.0]]))
        tensor([[   1.2700,    0.4400],
                [   0.0000, -254.0000]])
    """
    scales = (weight.detach().float().abs().flatten(1).amax(1) / LARGEST_WEIGHT).clamp(min=_TINY)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    limits = -LARGEST_WEIGHT, LARGEST_WEIGHT
    return torch.fake_quantize_per_channel_affine(weight.float(), scales, zeros, 0, *limits).to(weight.dtype)


def quantised_input(inputs: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round inputs of any shape to 256 levels; values beyond them are cut off, and have no gradient."""
    return torch.fake_quantize_per_tensor_affine(inputs.float(), scale, zero_point, 0, LARGEST_INPUT).to(inputs.dtype)


def input_scale(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32, 0..255) of inputs: the integer i stands for scale * (i - zero).

    Args:
        low: the smallest value, at most 0, of any shape.
        high: the largest, at least 0, of the same shape.

    Examples:
        >>> input_scale(torch.tensor(-0.5), torch.tensor(2.05))
        (tensor(0.0100), tensor(50, dtype=torch.int32))
    """
    scale = ((high - low) / LARGEST_INPUT).clamp(min=_TINY)
    return scale, (-low / scale).round().clamp(0, LARGEST_INPUT).int()


class Quantiser:
    """Train a detector with INT8 weights and inputs (UINT8), from some step on.

    In your own training loop::

        quantiser = Quantiser(student, start=7500)  # of 10,000 steps
        for batch in batches:
            losses = learner(...)
            quantiser.step()
            ...
        torch.save({"weights": student.network.state_dict(), "ranges": quantiser.ranges}, file)

    A trained detector computes as in INT8 with ``Quantiser(detector, ranges=ranges)``; those of a run are in the
    ``meta["quantisation"]`` of its checkpoints.

    The range of a layer's inputs is the smallest and the largest value of a step, over all calls of the layer (a head
    that several levels share has one range) and over all processes, averaged over the last :data:`SPAN` steps. It is
    observed in ``train()`` alone, from so many steps before ``start`` on. A layer without a range, which has not run
    yet, computes in float.

    The ``forward`` of the layers is replaced, and nothing else: parameters, their names and the state dict stay as
    they are.

    Args:
        detector: the detector, changed in place.
        start: steps before the first quantised one. If it is 0, the first step only observes.
        ranges: smallest and largest input of each layer by its name in the plain network, to begin with.

    Attributes:
        layers: the quantised layers by name.
        start: as given.
        done: number of steps done.

    Raises:
        UserError: the detector has no layer to quantise, or has a Quantiser; or a range is of an unknown layer.
    """

    def __init__(self, detector: Detector, start: int = 0, ranges: Mapping[str, Sequence[float]] | None = None):
        self.layers, self.start, self.done = quantised_layers(detector.network), start, 0
        _check(detector.spec.name, self.layers, ranges or {})
        pairs = [(ranges or {}).get(name, (0.0, 0.0)) for name in self.layers]
        # How far the inputs reach below and above zero, (layers, 2). Zero is always in a range, since padding is zero.
        self._reach = torch.tensor([[-low, high] for low, high in pairs])
        self._observed = torch.zeros_like(self._reach)  # in this step
        self._steps = self._reach.any(1) * float(SPAN)  # in which each layer has run, as far as they count
        self._follow()
        for place, layer in enumerate(self.layers.values()):
            vars(layer)["forward"] = partial(self._forward, place, layer)  # goes before the method of the class

    @property
    def active(self) -> bool:
        """Whether the detector computes with quantised weights and inputs."""
        return self.done >= self.start

    @property
    def ranges(self) -> dict[str, list[float]]:
        """Smallest and largest input of each layer that has a range, by its name in the plain network."""
        reach = zip(self.layers, self._reach.tolist(), strict=True)
        return {name: [-below, above] for name, (below, above) in reach if below or above}

    def step(self) -> None:
        """Count a step, and let the ranges follow what was observed in it. Every process of a run must call it."""
        if self._is_observing:
            found = largest_over_processes(self._observed)
            ran = found.any(1)
            self._steps = (self._steps + ran).clamp(max=SPAN)
            share = ran / self._steps.clamp(min=1)  # at first, the mean of all steps
            self._reach = self._reach.lerp(found, share[:, None])
            self._observed = torch.zeros_like(found)
            self._follow()
        self.done += 1

    def remove(self) -> None:
        """Give the layers back their own ``forward``."""
        for layer in self.layers.values():
            del vars(layer)["forward"]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, so that a resumed run has the same ranges."""
        return {"done": self.done, "reach": self._reach.cpu(), "steps": self._steps.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; raises a ``RuntimeError`` if it is of another detector."""
        self._reach.copy_(state["reach"])
        self._steps.copy_(state["steps"])
        self.done = state["done"]
        self._follow()

    @property
    def _is_observing(self) -> bool:
        return self.done >= self.start - SPAN

    def _forward(self, place: int, layer: Any, inputs: Tensor) -> Tensor:
        """Compute a layer's output, quantised if it is time and the layer has a range."""
        self._move_to(inputs.device)
        if self._is_observing and layer.training:
            self._observe(place, inputs)
        if not (self.active and self._has_range[place]):
            return type(layer).forward(layer, inputs)
        inputs = quantised_input(inputs, self._scales[place], self._zero_points[place])
        weight = quantised_weight(layer.weight)
        if isinstance(layer, nn.Linear):
            return F.linear(inputs, weight, layer.bias)
        return layer._conv_forward(inputs, weight, layer.bias)

    @torch.no_grad()
    def _observe(self, place: int, inputs: Tensor) -> None:
        if inputs.numel():  # a second stage may have no proposals
            low, high = inputs.aminmax()
            self._observed[place] = torch.maximum(self._observed[place], torch.stack([-low, high]))

    def _move_to(self, device: torch.device) -> None:
        if self._reach.device != device:
            parts = self._reach, self._observed, self._steps
            self._reach, self._observed, self._steps = (each.to(device) for each in parts)
            self._follow()

    def _follow(self) -> None:
        """Compute scales and zero points from the ranges."""
        scales, zero_points = input_scale(-self._reach[:, 0], self._reach[:, 1])
        self._scales, self._zero_points = scales.unbind(), zero_points.unbind()
        if not all(getattr(self, "_has_range", [False])):  # a GPU is waited for until every layer has a range
            self._has_range = self._reach.any(1).tolist()


def _check(name: str, layers: Mapping[str, nn.Module], ranges: Mapping[str, Sequence[float]]) -> None:
    if not layers:
        raise UserError(
            f"{name} cannot be quantised: it has no nn.Conv2d or nn.Linear, apart from layers that stay in float "
            f"({', '.join(sorted(IN_FLOAT))}). Leave quantise out."
        )
    if any("forward" in vars(layer) for layer in layers.values()):
        raise UserError(f"{name} has a Quantiser already. Call its remove() first.")
    if unknown := [layer for layer in ranges if layer not in layers]:
        raise UserError(f"These ranges are not of {name}, which has no such quantised layers: {', '.join(unknown)}")
