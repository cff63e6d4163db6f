"""The first step of every loss: check shapes, choose the precision, and detach the teacher."""

import math

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Promote half precision to float32; float32 and float64 stay as they are.

    Examples:
        >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def same_shape(student: Tensor, teacher: Tensor, what: str = "features") -> None:
    """Check that two tensors have the same shape, so that nothing is broadcast.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} to compare differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )


def comparable(student: Tensor, teacher: Tensor, what: str = "features") -> tuple[Tensor, Tensor]:
    """Return two tensors of the same shape in at least float32; the teacher's is detached.

    Args:
        student: of any shape.
        teacher: of the same shape.
        what: the name of the tensors in messages.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student, teacher, what)
    return at_least_float32(student), at_least_float32(teacher.detach())


def above_zero(temperature: float) -> float:
    """Return a temperature after checking it.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    return temperature
