"""Images per second of the rows of a comparison."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from understudy.compare.rows import Row
from understudy.compare.runs import Run
from understudy.data import Batch, Limits, open_data
from understudy.evaluation import loader_at_evaluation_size
from understudy.evaluation.models import Runnable, open_runnable
from understudy.evaluation.speed import IMAGES, Racer, race, shown_sizes, spread


def with_speeds(rows: Sequence[Row], device: torch.device) -> tuple[list[Row], str]:
    """Return the rows with the speed of each one's first detector, and how it was measured, in words.

    Raises:
        UserError: a checkpoint, an exported file or the images cannot be read.
    """
    entrants = [_entrant(row.runs[0], device) for row in rows]
    speeds = race([Racer.of(detector.runtime, batches) for detector, batches in entrants])
    rates = [speed.images_per_second for speed in speeds]
    teacher_rates = [rate for row, rate in zip(rows, rates, strict=True) if row.role == "teacher"]
    reference = teacher_rates[0] if len(teacher_rates) == 1 else None
    timed = [
        replace(row, images_per_second=rate, speed_ratio=rate / reference if reference else None)
        for row, rate in zip(rows, rates, strict=True)
    ]
    sizes = shown_sizes([batch for _, batches in entrants for batch in batches])
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({threads} of its cores)"
    runtimes = "PyTorch" if all(row.role != "exported" for row in rows) else "PyTorch and the runtimes of the files"
    how = (
        f"Speed: from pixels to detections, one image at a time ({sizes} pixels), float32, {runtimes} on {where}; "
        f"the detectors take turns, median of {speeds[0].rounds} rounds. Reading and resizing the image is not "
        "included. Compare the ratios: images per second depend on the machine and its load."
    )
    return timed, how


def _entrant(run: Run, device: torch.device) -> tuple[Runnable, list[Batch]]:
    """Load a run's best detector, and a few images evenly spread over its validation split."""
    detector = open_runnable(run.folder, device)
    data = spread(open_data(*run.measured_on, Limits.of(run.config.data)), IMAGES)
    return detector, list(loader_at_evaluation_size(data, detector.config))
