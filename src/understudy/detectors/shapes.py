"""Build networks for their shapes alone."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.normal_, Tensor.uniform_)


class _WithoutDraws(TorchFunctionMode):
    """Leave out the random first weights of tensors on the meta device, where a draw runs in Python."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Generator[None]:
    """Build the networks of the block on the meta device: no memory is allocated, whatever size a file asks for."""
    with torch.device("meta"), _WithoutDraws():
        yield
