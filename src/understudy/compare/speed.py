"""Images per second of the rows of a comparison."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from understudy.compare.rows import Row
from understudy.compare.runs import Run
from understudy.data import Batch, Limits, open_data
from understudy.evaluation import loader_at_evaluation_size
from understudy.evaluation.models import Runnable, open_runnable
from understudy.evaluation.runtimes import FileRuntime
from understudy.evaluation.speed import IMAGES, Racer, race, shown_sizes, spread
from understudy.text import listed


def with_speeds(rows: Sequence[Row], device: torch.device) -> tuple[list[Row], str]:
    """Return the rows with the speed of each one's first detector, and how it was measured, in words.

    Raises:
        UserError: a checkpoint, an exported file or the images cannot be read.
    """
    opened = [(row, *_entrant(row.runs[0], device)) for row in rows]
    entrants = [each for each in opened if _takes_one(each[1])]
    speeds = race([Racer.of(detector.runtime, batches) for _, detector, batches in entrants])
    rates = {row.name: speed.images_per_second for (row, *_), speed in zip(entrants, speeds, strict=True)}
    teacher_rates = [rates[row.name] for row in rows if row.role == "teacher"]
    reference = teacher_rates[0] if len(teacher_rates) == 1 else None
    timed = [
        replace(row, images_per_second=rate, speed_ratio=rate / reference if reference else None)
        if (rate := rates.get(row.name))
        else row
        for row in rows
    ]
    sizes = shown_sizes([batch for *_, batches in entrants for batch in batches])
    left_out = [row.name for row in rows if row.name not in rates]
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({threads} of its cores)"
    exported = any(row.role == "exported" for row in rows)
    runtimes = "PyTorch and the runtimes of the files" if exported else "PyTorch"
    precision = "float32 unless the row says otherwise" if exported else "float32"
    how = (
        f"Speed: from pixels to detections, one image at a time ({sizes} pixels), {precision}, {runtimes} on {where}; "
        f"the detectors take turns, median of {speeds[0].rounds} rounds. Reading and resizing the image is not "
        "included. Compare the ratios: images per second depend on the machine and its load."
        + (f" Not timed, since they do not take single images: {listed(left_out)}." if left_out else "")
    )
    return timed, how


def _takes_one(detector: Runnable) -> bool:
    """Return whether a detector takes single images; a file of a fixed size may take several at once."""
    return not isinstance(detector.runtime, FileRuntime) or detector.runtime.facts.batch in (None, 1)


def _entrant(run: Run, device: torch.device) -> tuple[Runnable, list[Batch]]:
    """Load a run's best detector, and a few images evenly spread over its validation split."""
    detector = open_runnable(run.folder, device)
    data = spread(open_data(*run.measured_on, Limits.of(run.config.data)), IMAGES)
    return detector, list(loader_at_evaluation_size(data, detector.config))
