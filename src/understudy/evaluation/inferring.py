"""The state in which a detector computes detections: evaluation mode, no gradients, a precision."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from understudy.detectors.base import evaluating
from understudy.errors import UserError

Precision = Literal["32", "bf16", "16"]
"""Precision of the arithmetic in bits; bf16 and 16 are mixed precision, as in training."""

_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


@contextmanager
def inferring(detector: nn.Module, device: torch.device | str, precision: Precision = "32") -> Generator[None]:
    """Put a detector into ``eval()`` within this context, without gradients and in a precision.

    Raises:
        UserError: the device does not have the precision.
    """
    kind = torch.device(device).type
    if precision == "16" and kind == "cpu":
        raise UserError("Precision 16 needs a GPU, but this is a CPU. Use precision 32 or bf16.")
    reduced = torch.autocast(kind, _AUTOCAST[precision]) if precision in _AUTOCAST else nullcontext()
    with evaluating(detector), torch.no_grad(), reduced:
        yield
