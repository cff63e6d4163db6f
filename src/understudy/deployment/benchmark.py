"""Measure detectors as they would be deployed, beside each other: speed, AP, size and memory."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from understudy.data import Batch, DetectionData, Limits
from understudy.deployment.competitors import (
    Competitor,
    check_classes,
    open_competitors,
    open_data_of,
    repeated,
)
from understudy.deployment.memory import peak_memory
from understudy.deployment.results import FOR_P95, Benchmark, Result
from understudy.deployment.sizes import sizes_of
from understudy.errors import UserError
from understudy.evaluation import aliases_of, choose_device, loader_at_evaluation_size
from understudy.evaluation.measure import evaluate_opened
from understudy.evaluation.speed import IMAGES, Racer, Speed, race, shown_sizes, spread

SECONDS = 20.0
"""Time of a race at each batch, after which no further round begins."""

ROUNDS = 50


def benchmark(
    detectors: Sequence[Path | str],
    data: Path | str | None = None,
    *,
    split: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    libraries: Sequence[str] = (),
    seconds: float = SECONDS,
    measure_ap: bool = True,
    device: torch.device | str | None = "cpu",
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Benchmark:
    """Measure speed, AP, size and peak memory of detectors.

    They are timed in one process, in turns, from resized pixels to detections in memory. Each has its own image size.

    Args:
        detectors: run folders, checkpoints and exported files; ratios refer to the first.
        data: whose images they detect objects in; by default the data set of the first run.
        split: by default the validation split of that run.
        batch: time batches of so many images, too.
        threads: of every runtime; None: as many as PyTorch uses.
        libraries: ``onnxruntime``, ``openvino`` or both, which run every ONNX file; none: ONNX Runtime.
        seconds: of a race, after which no further round begins.
        measure_ap: evaluate each on the whole split.
        device: of PyTorch and ONNX Runtime; None: a GPU if there is one.
        limits: of the data set; None: those of the run.
        say: called with each line of progress.

    Raises:
        UserError: detectors or data cannot be read, packages are missing, or a detector has no class in common with
            the data; all faults of the detectors are listed.
    """
    device = choose_device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU. Leave it out to measure on the CPU.")
    with _threads(threads) as used:
        competitors = open_competitors([Path(each) for each in detectors], libraries, used, device)
        opened, aliases = open_data_of(competitors, None if data is None else Path(data), split, limits)
        if measure_ap:
            check_classes(competitors, opened, aliases)
        images = [_images(each, opened) for each in competitors]
        batches = tuple(dict.fromkeys((1, batch)))
        say(f"Timing {len(competitors)} detectors in turns")
        speeds = {count: _timed(competitors, images, count, seconds) for count in batches}
        rows = []
        for number, (each, own) in enumerate(zip(competitors, images, strict=True)):
            say(f"Measuring {each.name}: {'AP, ' if measure_ap else ''}size and memory")
            row = Result(
                each.name,
                each.path,
                each.runtime,
                {count: found[number] for count, found in speeds.items() if number in found},
                sizes_of(each.detector, repeated(own[0], each.batch or 1)),
                peak_memory=_memory(each, own[0], used) if device.type == "cpu" else None,
            )
            if measure_ap:
                coco = evaluate_opened(each.detector, opened, aliases_of(each.detector) or aliases).coco
                row = replace(row, AP=_known(coco["AP"]), AP50=_known(coco["AP50"]))
            rows.append(row)
    result = Benchmark(tuple(rows), batches, used, (), measure_ap)
    return replace(result, notes=tuple(_notes(result, competitors, images, opened, device)))


@contextmanager
def _threads(count: int | None) -> Generator[int]:
    """Use so many threads in PyTorch within this context; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


def _images(competitor: Competitor, data: DetectionData) -> list[Batch]:
    return list(loader_at_evaluation_size(spread(data, IMAGES), competitor.detector.config))


def _timed(
    competitors: Sequence[Competitor], images: Sequence[Sequence[Batch]], count: int, seconds: float
) -> dict[int, Speed]:
    """Time the detectors that take batches of so many images; returns their speeds by position."""
    able = [number for number, each in enumerate(competitors) if each.batch in (None, count)]
    racers = [
        Racer.of(competitors[number].detector.runtime, [repeated(image, count) for image in images[number]])
        for number in able
    ]
    return dict(zip(able, race(racers, rounds=ROUNDS, seconds=seconds), strict=True)) if racers else {}


def _memory(competitor: Competitor, image: Batch, threads: int) -> int | None:
    batch = repeated(image, competitor.batch or 1)
    path, size = competitor.detector.path, batch.image_sizes[0]
    return peak_memory(path, competitor.library, threads, batch.images.numpy(), size)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _notes(
    result: Benchmark,
    competitors: Sequence[Competitor],
    images: Sequence[Sequence[Batch]],
    data: DetectionData,
    device: torch.device,
) -> list[str]:
    """Return the notes that are needed to judge the numbers."""
    if result.measured_ap:
        ap = f"AP in percent, on the {len(data)} images of {data.split!r} in {data.source}."
    else:
        ap = f"Images of {data.split!r} in {data.source}; AP was not measured."
    return [ap, _speed_note(result, images, device), *_batch_notes(result, competitors), *_size_notes(result, device)]


def _speed_note(result: Benchmark, images: Sequence[Sequence[Batch]], device: torch.device) -> str:
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''} for every runtime"
    where = f", PyTorch on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    timed = [speed for row in result.rows for speed in row.speeds.values()]
    rounds = sorted({speed.rounds for speed in timed}) or [0]
    few = any(len(speed.seconds) < FOR_P95 for speed in timed)
    return (
        f"Speed: from resized pixels to detections in memory, {len(images[0])} images "
        f"({shown_sizes([batch for own in images for batch in own])} pixels), {threads}{where}. The detectors take "
        f"turns in a rotating order, {' and '.join(map(str, rounds))} rounds after one to warm up. p25 to p95 are "
        f"percentiles of the calls{f'; p95 needs {FOR_P95} of them (--seconds)' if few else ''}, images per second a "
        "median over the rounds. Reading and resizing the image is not included. The times depend on the machine and "
        "its load: compare the ratios, within one run of this command, at best on an idle machine."
    )


def _batch_notes(result: Benchmark, competitors: Sequence[Competitor]) -> list[str]:
    """Explain batches, and name the files that do not take them."""
    notes = []
    if len(result.batches) > 1:
        notes.append(f"A batch is one image {result.batches[1]} times; its times are those of the whole batch.")
    for count in result.batches:
        words = "one image" if count == 1 else f"{count} images"
        notes += [
            f"{each.name} was not timed with {words} at a time: it was exported for {each.batch}. Export it without "
            f"--size, or with --batch {count}."
            for each in competitors
            if each.batch not in (None, count)
        ]
    return notes


def _size_notes(result: Benchmark, device: torch.device) -> list[str]:
    """Define the sizes, and say why some are missing."""
    notes = [
        "Params: of a checkpoint all weights that training changes; of a file the kernels of its convolutions and "
        "matrix products, with which batch normalisation is merged. Multiply-adds: of these operations, for one of the "
        "images. MB is 10⁶ bytes."
    ]
    if device.type == "cpu":
        notes.append(
            "Peak memory: by how much loading the detector and detecting in one image raises the resident memory of a "
            "fresh process at most, beyond Python and the loaded libraries."
        )
        if any(row.peak_memory is None for row in result.rows):
            notes.append("Peak memory is missing where the process failed or the system does not tell (Linux does).")
    else:
        notes.append("Peak memory is measured on the CPU alone (--device cpu).")
    return notes + [
        f"{row.name}: sizes were not counted: {row.sizes.missing}." for row in result.rows if row.sizes.missing
    ]
