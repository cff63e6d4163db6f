"""What every loss does first: the precision it is computed in, and the teacher as a constant."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Promote half precision to float32, and leave float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def comparable(student: Tensor, teacher: Tensor, what: str = "features") -> tuple[Tensor, Tensor]:
    """Bring two tensors of one shape to the precision of losses; the teacher's is a constant.

    Args:
        student: of any shape.
        teacher: of the same.
        what: what they are, for the message.

    Raises:
        ValueError: shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} to compare differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    return at_least_float32(student), at_least_float32(teacher.detach())
