"""Speed: images per second of several detectors, timed in turns in one process."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from understudy.checkpoints import load_checkpoint
from understudy.compare.rows import Row
from understudy.compare.runs import Run
from understudy.data import Batch, Limits, open_data
from understudy.detectors import Detector
from understudy.detectors.base import evaluating
from understudy.evaluation import loader_at_evaluation_size


@dataclass(slots=True)
class Racer:
    """A detector that is timed.

    Attributes:
        detector: on the device on which it is timed.
        batches: its images, on the same device.
        rates: images per second, one value per round.
    """

    detector: Detector
    batches: list[Batch]
    rates: list[float] = field(default_factory=list)

    def lap(self, device: torch.device) -> None:
        """Time one pass over the images."""
        with evaluating(self.detector), torch.no_grad():
            _wait_for(device)
            started = time.perf_counter()
            for batch in self.batches:
                self.detector.detect(self.detector(batch.images, batch.image_sizes), batch.image_sizes)
            _wait_for(device)
            self.rates.append(len(self.batches) / (time.perf_counter() - started))


def with_speeds(rows: Sequence[Row], device: torch.device) -> tuple[list[Row], str]:
    """Return the rows with the speed of each one's first detector, and how it was measured, in words.

    Raises:
        UserError: a checkpoint or the images cannot be read.
    """
    racers = [_racer(row.runs[0], device) for row in rows]
    rates = race(racers, device)
    teacher_rates = [rate for row, rate in zip(rows, rates, strict=True) if row.role == "teacher"]
    reference = teacher_rates[0] if len(teacher_rates) == 1 else None
    timed = [
        replace(row, images_per_second=rate, speed_ratio=rate / reference if reference else None)
        for row, rate in zip(rows, rates, strict=True)
    ]
    sizes = {f"{batch.image_sizes[0][1]}x{batch.image_sizes[0][0]}" for racer in racers for batch in racer.batches}
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({threads} of its cores)"
    how = (
        f"Speed: from pixels to detections, one image at a time ({' and '.join(sorted(sizes)[:3])} pixels), float32, "
        f"PyTorch on {where}; the detectors take turns, median of {len(racers[0].rates)} rounds. Reading and resizing "
        "the image is not included. Compare the ratios: images per second depend on the machine and its load."
    )
    return timed, how


def race(racers: Sequence[Racer], device: torch.device, *, rounds: int = 15, seconds: float = 20.0) -> list[float]:
    """Measure images per second of each detector: the median over rounds in which all take turns.

    They take turns so that a temporary load on a shared machine slows down all of them.

    Args:
        racers: the detectors.
        device: where the detectors and their images are.
        rounds: at most this many; at least three.
        seconds: time after which no further round begins.
    """
    for racer in racers:
        racer.lap(device)  # warms caches and picks kernels; not counted
        racer.rates.clear()
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        for racer in racers:
            racer.lap(device)
    return [statistics.median(racer.rates) for racer in racers]


def _racer(run: Run, device: torch.device, images: int = 4) -> Racer:
    """Load a run's best detector, and a few images evenly spread over its validation split."""
    checkpoint = load_checkpoint(run.folder)
    data = open_data(*run.measured_on, Limits.of(run.config.data))
    count = min(images, len(data))
    chosen = replace(data, records=data.records.take([i * len(data) // count for i in range(count)]))
    loader = loader_at_evaluation_size(chosen, checkpoint.config)
    return Racer(checkpoint.detector.to(device), [batch.to(device) for batch in loader])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
