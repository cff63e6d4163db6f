"""Speed: detectors of any runtime, timed in turns in one process, from resized pixels to detections in memory."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from understudy.data import Batch, DetectionData
from understudy.evaluation.runtimes import FileRuntime, Runtime, TorchRuntime

ROUNDS, LEAST_ROUNDS = 15, 3
"""Rounds of a race at most, and at least, however long they take."""

PAUSE = 0.01
"""Seconds between two detectors, in which the threads of the one before, which wait for more work, fall asleep."""

IMAGES = 4
"""Images on which detectors are timed by default."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a detector was.

    Attributes:
        images_per_second: median over the rounds.
        seconds: of each timed call.
        rounds: in which it was timed.
    """

    images_per_second: float
    seconds: tuple[float, ...]
    rounds: int

    def milliseconds(self, percent: float) -> float:
        """Return the time that this percentage of the calls took at most."""
        return 1000 * float(np.percentile(self.seconds, percent))


@dataclass(slots=True)
class Racer:
    """A detector that is timed.

    Attributes:
        calls: each detects the objects of one batch, whose pixels are in place.
        images: of a batch.
        device: on which the detector runs.
        rounds: the seconds of each call, by round.
    """

    calls: Sequence[Callable[[], object]]
    images: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, runtime: Runtime, batches: Sequence[Batch]) -> "Racer":
        """Return a racer that detects objects in batches of one number of images."""
        device = torch.device(runtime.device if isinstance(runtime, TorchRuntime) else "cpu")
        return cls([call_of(runtime, batch) for batch in batches], len(batches[0].image_sizes), device)

    def lap(self) -> None:
        """Time one pass over the batches."""
        seconds = []
        time.sleep(PAUSE)
        for call in self.calls:
            _wait_for(self.device)
            started = time.perf_counter()
            call()
            _wait_for(self.device)
            seconds.append(time.perf_counter() - started)
        self.rounds.append(seconds)

    @property
    def speed(self) -> Speed:
        """The result so far."""
        rates = [self.images * len(seconds) / sum(seconds) for seconds in self.rounds]
        every = tuple(second for seconds in self.rounds for second in seconds)
        return Speed(statistics.median(rates), every, len(self.rounds))


def race(racers: Sequence[Racer], *, rounds: int = ROUNDS, seconds: float = 20.0) -> list[Speed]:
    """Time detectors in rounds in which all take turns, each round beginning with the next one.

    They take turns so that a temporary load on a shared machine slows down all of them.

    Args:
        racers: the detectors.
        rounds: at most this many; at least three.
        seconds: time after which no further round begins.
    """
    for racer in racers:
        racer.lap()  # warms caches and picks kernels; not counted
        racer.rounds.clear()
    started = time.perf_counter()
    for done in range(max(rounds, LEAST_ROUNDS)):
        if done >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        first = done % len(racers)
        for racer in (*racers[first:], *racers[:first]):
            racer.lap()
    return [racer.speed for racer in racers]


def call_of(runtime: Runtime, batch: Batch) -> Callable[[], object]:
    """Return a call that detects the objects of a batch.

    Its pixels are where and what the runtime takes: on the device of PyTorch; as bytes, or on the canvas, of a file.
    """
    if isinstance(runtime, FileRuntime):
        return partial(runtime.detect, runtime.pixels(batch.images, batch.image_sizes))
    if isinstance(runtime, TorchRuntime):
        runtime.detector.eval()
        return partial(_detect, runtime, batch.to(torch.device(runtime.device)))
    return partial(runtime, batch.images, batch.image_sizes)


def _detect(runtime: TorchRuntime, batch: Batch) -> object:
    with torch.no_grad():
        outputs = runtime.detector(batch.images, batch.image_sizes)
        return runtime.detector.detect(outputs, batch.image_sizes)


def spread(data: DetectionData, count: int) -> DetectionData:
    """Return a split with at most so many of its images, evenly spread over it."""
    count = min(count, len(data))
    return replace(data, records=data.records.take([place * len(data) // count for place in range(count)]))


def shown_sizes(batches: Sequence[Batch]) -> str:
    """Write the sizes of images, width first, in words.

    A few of them if there are many.
    """
    sizes = {f"{width}x{height}" for batch in batches for height, width in batch.image_sizes}
    return " and ".join(sorted(sizes)[:3])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
