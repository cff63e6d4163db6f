"""The precision that losses are computed in."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
