"""What the processes of a run have in common: counts that divide a loss, and largest values."""

import torch
from torch import Tensor, distributed


def averaged_over_processes(count: Tensor, least: float = 1.0) -> Tensor:
    """Average a count, or a sum of weights, over the processes of a run; a loss is divided by it.

    A process sums a loss over its own images, and training averages the gradients of the processes. Divided by the mean
    of the processes' counts, this is the gradient of one process that sums over all images and divides by their count.
    Every process must call this equally often and in the same order.

    Args:
        count: of this process' images, of any shape; a constant.
        least: the smallest divisor of one process with all images.

    Returns:
        The sum over the processes, at least ``least``, divided by their number. In a single process the count itself,
        at least ``least``.

    Examples:
        >>> averaged_over_processes(torch.tensor(7)), averaged_over_processes(torch.tensor(0))
        (tensor(7.), tensor(1.))
    """
    processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if processes == 1:
        return count.detach().clamp(min=least)
    total = count.detach().to(torch.promote_types(count.dtype, torch.float32), copy=True)
    distributed.all_reduce(total)
    return total.clamp(min=least) / processes


def largest_over_processes(values: Tensor) -> Tensor:
    """Return the largest of each value (any shape) over the processes of a run; in a single process, the values."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return values
    largest = values.clone()
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest
