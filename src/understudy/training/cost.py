"""Time and memory of a run, estimated before it begins from a step on two small images.

A step of a detector of convolutions takes time and memory in proportion to its pixels, so what was measured on small
images is scaled to the size and number of those of the run.
"""

import math
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from understudy.config import DistillConfig, TrainConfig
from understudy.data import Batch
from understudy.data.transforms import PAD_MULTIPLE
from understudy.evaluation.inferring import inferring
from understudy.methods.weighting import LATE, weighted_sum
from understudy.training.assembly import build_networks, make_loader
from understudy.training.engine import suits_channels_last
from understudy.training.machine import Machine, Memory, memory_of_process
from understudy.training.padding import images_of_step, padded_pixels
from understudy.training.sources import Sources
from understudy.training.teacher_pass import record_of_teacher

IMAGES, PIXELS = 2, 2**17
"""Images of the step that is measured, and the pixels of each at most: enough that overheads count little."""

PATIENCE = 4.0
"""Seconds of a first step from which it is not repeated, although the first step is slower than the others."""

ACTIVATIONS = {"cpu": 1.15, "cuda": 1.35}
"""Peak of a step in relation to what is saved for the backward pass: gradients of activations, and workspaces. That of
GPUs was not measured, and is meant to be high."""

RESERVE = 1.1
"""Factor of all memory: copies that live for a moment, and what the allocator cannot use (docs/performance.md)."""

CONTEXT = 2**29
"""Bytes that CUDA and its libraries take on a GPU."""

STATES = {"sgd": 1, "adamw": 2}
"""Tensors that an optimizer keeps for each weight."""

LONG = 8 * 3600
"""Seconds from which a run is long: more than a working day."""

SMALL_SIDE = 160
"""Pixels of the shorter side down to which smaller images are advised."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured.

    Attributes:
        training: seconds of a training step per pixel.
        inference: seconds of the evaluation per pixel.
        loading: seconds to read an image.
        saved: bytes per pixel that are saved for the backward pass.
        trained: bytes of the trained weights of student and methods.
        others: bytes of the other tensors of student, methods and teacher.
        process: bytes that this process held before.
    """

    training: float
    inference: float
    loading: float
    saved: float
    trained: int
    others: int
    process: int


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate of what a run takes.

    Attributes:
        steps: of the run.
        seconds_per_step: with loading.
        evaluations: of the run.
        seconds_per_evaluation: each.
        bytes: memory of a process at its peak.
        more: bytes of it that the process does not hold yet.
        memory: that there is; None: the system does not tell.
    """

    steps: int
    seconds_per_step: float
    evaluations: int
    seconds_per_evaluation: float
    bytes: int
    more: int
    memory: Memory | None

    @property
    def seconds(self) -> float:
        """Duration of the run."""
        return self.steps * self.seconds_per_step + self.evaluations * self.seconds_per_evaluation

    @property
    def fits(self) -> bool:
        """Whether the free memory suffices, as far as it is known."""
        return self.memory is None or self.more <= self.memory.free

    def __str__(self) -> str:
        """Describe the estimate in a line."""
        step = f"{self.seconds_per_step:.2g}" if self.seconds_per_step < 10 else f"{self.seconds_per_step:.0f}"
        times = f"{self.steps} steps of {step} s and {self.evaluations} evaluations"
        return f"about {shown_duration(self.seconds)} ({times}); {self.shown_memory()}"

    def shown_memory(self) -> str:
        """Describe the memory."""
        there = f"; {gib(self.memory.free)} of {gib(self.memory.total)} are free" if self.memory else ""
        return f"about {gib(self.bytes)} of {self.memory.kind if self.memory else 'memory'}{there}"

    def to_dict(self) -> dict[str, Any]:
        """Return its numbers for JSON."""
        return {
            "steps": self.steps,
            "seconds_per_step": self.seconds_per_step,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "bytes_free": self.memory.free if self.memory else None,
            "bytes_total": self.memory.total if self.memory else None,
        }


def gib(size: float) -> str:
    """Write a number of bytes.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size / 2**30:.1f} GiB"


def shown_duration(seconds: float) -> str:
    """Write a duration in the unit that suits it.

    >>> shown_duration(90), shown_duration(5400), shown_duration(3e5)
    ('90 s', '90 minutes', '3.5 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def too_large(config: TrainConfig, cost: Cost) -> str:
    """Return a warning of a run that does not fit into the memory; empty: it does, or it is not known."""
    if cost.fits:
        return ""
    return (
        f"The run needs {cost.shown_memory()}: the system may end it without a message. Lower batch_size (now "
        f"{config.batch_size}) or data.shorter_side (now {config.data.shorter_side[-1]})."
    )


def how_to_shorten(config: TrainConfig, cost: Cost, chosen: Collection[str]) -> str:
    """Return how a long run takes less time; empty: it is not long, or the user gave what makes it long.

    Args:
        config: complete.
        cost: of the run.
        chosen: keys that the user left open.
    """
    if cost.seconds < LONG:
        return ""
    ways, side = [], max(config.data.shorter_side) // 2
    # A student's images follow those of its teacher.
    if "data.shorter_side" in chosen and side >= SMALL_SIDE and not isinstance(config, DistillConfig):
        ways.append(f"data.shorter_side={side} takes about a quarter of the time")
    if "schedule.epochs" in chosen and config.schedule.epochs > 1:
        ways.append(f"schedule.epochs={config.schedule.epochs // 2} takes half of {'it' if ways else 'the time'}")
    more = "a smaller backbone and neck take less (`understudy detectors`)"
    return f"To shorten it: {', '.join(ways)}; {more}." if ways else ""


def cost_of(config: TrainConfig, sample: Sample, sources: Sources, machine: Machine) -> Cost:
    """Scale a measured step to a run.

    Args:
        config: complete, but for ``detector.norm``.
        sample: of this run.
        sources: its images.
        machine: of each of its processes.
    """
    images = images_of_step(config, unlabelled=bool(sources.unlabelled))
    mean, largest = padded_pixels(config.data, sources.train, images, grouped=config.data.group_by_aspect)
    workers, loading = config.data.workers, images * sample.loading
    step = images * mean * sample.training
    step = max(step, loading / workers) if workers else step + loading
    evaluated = math.ceil(len(sources.val) / machine.processes)
    epochs = config.schedule.epochs
    kind = "cuda" if machine.device.type == "cuda" else "cpu"
    copies = 0.0 if config.precision == "32" else 0.5  # of the weights in half precision
    weights = sample.trained * (2 + STATES[config.optimizer.name] + copies) + sample.others
    inputs = images * largest * 3 * 4 * 2  # floats, and the bytes that they are made from or the normalised images
    files = images * _pixels_of_files(sources) * 3 * (2 * workers + 1)  # two batches wait at each worker
    activations = images * largest * sample.saved * ACTIVATIONS[kind]
    saving = 2 * sample.trained * (1 + STATES[config.optimizer.name])  # a checkpoint is put together in memory
    if kind == "cuda":
        more = held = RESERVE * (weights + inputs + activations) + CONTEXT
    else:
        more = RESERVE * (weights + inputs + files + max(activations, saving))
        held = sample.process + more
    return Cost(
        steps=epochs * (len(sources.train) // (machine.processes * config.batch_size)),
        seconds_per_step=step,
        evaluations=math.ceil(epochs / config.evaluate_every),
        seconds_per_evaluation=evaluated * (mean * sample.inference + (0 if workers else sample.loading)),
        bytes=int(held),
        more=int(more),
        memory=machine.memory,
    )


def measure_step(config: TrainConfig, sources: Sources, trainer: L.Trainer) -> Sample | Exception:
    """Measure a step and an evaluation of two small images, with networks that are thrown away afterwards.

    Nothing that the run reads is changed: neither weights nor random numbers.

    Args:
        config: of the run; the size of its images is known.
        sources: its images.
        trainer: its trainer, for device and precision.

    Returns:
        The measurement, or the exception that prevented it, and that the run itself will probably meet.
    """
    process, device = memory_of_process(), trainer.strategy.root_device
    torch.set_flush_denormal(True)  # as in the run
    small = _small(config, sources)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            started = time.perf_counter()
            batch: Batch = next(iter(make_loader(small, sources.train, None)))
            loading = (time.perf_counter() - started) / len(batch.image_ids)
            return _measured(small, sources, trainer, batch.to(device), loading, process)
        except Exception as error:
            return error


def _measured(
    config: TrainConfig, sources: Sources, trainer: L.Trainer, batch: Batch, loading: float, process: int
) -> Sample:
    device, pixels = batch.images.device, batch.images.numel() / 3
    networks = build_networks(config, sources.train, new=False)
    learner = networks.learner.to(device).train()
    teacher = networks.taught_by.to(device) if networks.taught_by else None
    for network in (learner, teacher):
        if network is not None and suits_channels_last(network):
            network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]

    def step() -> None:
        with trainer.precision_plugin.forward_context():
            outputs = None
            if teacher is not None:
                with torch.no_grad():
                    outputs = record_of_teacher(teacher, batch, learner.needs)
            terms = learner(batch.images, batch.targets, outputs, batch.image_sizes, batch.labelled, teacher=teacher)
            loss = weighted_sum(terms, networks.weights, LATE)
        loss.backward()
        learner.zero_grad(set_to_none=True)

    def evaluate() -> None:
        with inferring(learner.student, device, config.precision):
            learner.student.detect(learner.student(batch.images, batch.image_sizes), batch.image_sizes)

    with _counting_saved(learner, *([teacher] if teacher else [])) as saved:
        first = _seconds(step, device)
    tensors = [*learner.parameters(), *learner.buffers(), *(teacher.state_dict().values() if teacher else ())]
    trained = sum(each.nbytes for each in learner.parameters() if each.requires_grad)
    return Sample(
        training=(first if first > PATIENCE else min(first, _seconds(step, device))) / pixels,
        inference=_seconds(evaluate, device) / pixels,
        loading=loading,
        saved=sum(saved.values()) / pixels,
        trained=trained,
        others=sum(each.nbytes for each in tensors) - trained,
        process=process,
    )


@contextmanager
def _counting_saved(*networks: nn.Module) -> Generator[dict[int, int]]:
    """Count the bytes of tensors, each storage once, that are saved for a backward pass; weights are not counted.

    Nor are copies of weights in another precision, which do not grow with the images.
    """
    found: dict[int, int] = {}
    weights = [each for network in networks for each in (*network.parameters(), *network.buffers())]
    shapes = {each.shape for each in weights} | {each.shape[::-1] for each in weights}  # a linear layer saves it turned

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape not in shapes or not _is_made_of_one(tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _is_made_of_one(tensor: Tensor) -> bool:
    """Return whether a tensor is a leaf, or made from one alone, as a copy of a weight is, and no activation."""
    node = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is None or not node.next_functions


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _small(config: TrainConfig, sources: Sources) -> TrainConfig:
    """Return the config of the step that is measured: two images of the run's size, or smaller ones."""
    _, largest = padded_pixels(config.data, sources.train, 1)
    scale = min(1.0, math.sqrt(PIXELS / largest))
    shorter, longer = (max(PAD_MULTIPLE, int(side * scale)) for side in _sides(config))
    data = config.data.model_copy(
        update={
            "shorter_side": [shorter],
            "longer_side": longer,
            "shorter_side_mode": "choice",
            "group_by_aspect": False,
            "workers": 0,
            "unlabelled_batch": None,
        }
    )
    changes: dict[str, Any] = {"data": data, "batch_size": min(IMAGES, config.batch_size or IMAGES, len(sources.train))}
    return config.model_copy(update=changes)


def _sides(config: TrainConfig) -> tuple[int, int]:
    return max(config.data.shorter_side), config.data.longer_side


def _pixels_of_files(sources: Sources) -> float:
    return float(sources.train.records.images[:, 1:].double().prod(1).mean())
