"""Small pieces of the slow loops that methods and their arithmetic are compared with."""

import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from understudy.methods import Method
from understudy.outputs import Outputs, Spec, Target, Truth

SIDE = 512
NO_BOX: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}


def wave(shape: tuple[int, ...], rate: float, start: float, size: float) -> Tensor:
    """``size * sin(rate * k + start)`` in float64 with k the flat index: reproducible in any language."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (size * torch.sin(rate * index + start)).reshape(shape)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def cells(height: int, width: int) -> itertools.product:
    return itertools.product(range(height), range(width))


def iou(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def boxes(*rows: tuple[float, float, float, float]) -> Target:
    """Objects of class 0."""
    return {"boxes": torch.tensor(rows), "labels": torch.zeros(len(rows)).long()}


def ground(*targets: Target, left_out: tuple[Tensor, ...] = (), unlabelled: tuple[int, ...] = ()) -> Truth:
    """A ground truth for methods that read no assignment: it only marks which images are labelled."""
    gt_index = torch.full((len(targets), 1), -1)
    gt_index[list(unlabelled)] = -2
    return Truth(targets, gt_index, left_out)


def identity(method: Any) -> Any:
    """Make every convolution pass on its input."""
    for adapter in method.modules():
        if isinstance(adapter, nn.Conv2d):
            nn.init.dirac_(adapter.weight)
            if adapter.bias is not None:
                nn.init.zeros_(adapter.bias)
    return method


def waved(method: Any) -> Any:
    """Set every parameter to sines and return the method in float64, for values that were computed with other code."""
    for number, parameter in enumerate(method.double().parameters()):
        parameter.data.copy_(wave(tuple(parameter.shape), 0.3, 0.1 * number, 0.8))
    return method


# --- levels of a pyramid ----------------------------------------------------------------------------------------------


def pyramid(spec: Spec, images: int = 1) -> Outputs:
    """Random features, leaves with gradient, of images of ``SIDE`` x ``SIDE`` pixels."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(images, *each) for each in zip(spec.channels, *2 * [[SIDE // s for s in spec.strides]], strict=True)]
    features = [torch.rand(shape, generator=generator).requires_grad_() for shape in shapes]
    return Outputs(stages=[], features=features)


def strides_reached(method: Method, term: str, student: Outputs, truth: Truth) -> set[int]:
    """The strides of the levels to whose features a term gives a gradient."""
    teacher = replace(student, features=[torch.rand_like(level) for level in student.features])
    method(student, teacher, truth)[term].backward()
    pairs = zip(method.student.strides, student.features, strict=True)
    return {stride for stride, level in pairs if level.grad is not None and level.grad.any()}
