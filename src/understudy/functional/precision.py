"""What every loss does first: the precision it is computed in, and the teacher as a constant."""

import math

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Promote half precision to float32, and leave float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def same_shape(student: Tensor, teacher: Tensor, what: str = "features") -> None:
    """Make sure that nothing is broadcast.

    Raises:
        ValueError: shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} to compare differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )


def comparable(student: Tensor, teacher: Tensor, what: str = "features") -> tuple[Tensor, Tensor]:
    """Bring two tensors of one shape to the precision of losses; the teacher's is a constant.

    Args:
        student: of any shape.
        teacher: of the same.
        what: what they are, for the message.

    Raises:
        ValueError: shapes differ.
    """
    same_shape(student, teacher, what)
    return at_least_float32(student), at_least_float32(teacher.detach())


def above_zero(temperature: float) -> float:
    """Return a temperature that can divide.

    Raises:
        ValueError: it is not a number above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature is a number above 0, got {temperature}")
    return temperature
