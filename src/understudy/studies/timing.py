"""Time and memory of one training step of each row, measured in turns before the study trains."""

import contextlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

import torch

from understudy.data import Batch
from understudy.methods.weighting import LATE, weighted_sum
from understudy.training.assembly import AssembledRun
from understudy.training.teacher_cache import TeacherCache

ROUNDS, FEWEST, SECONDS = 10, 3, 60.0
"""Rounds at most and at least, and the time after which no further round begins."""

BATCHES = 2


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of a training step.

    Attributes:
        seconds: median over the rounds; of loading, only the resizing is included. The teacher's outputs are kept,
            where a run keeps them.
        computed: likewise, with a pass of the teacher.
        memory: bytes at the peak of the step, beyond those of the networks and of the optimizer.
    """

    seconds: float
    computed: float
    memory: int


@dataclass(slots=True)
class _Contestant:
    run: AssembledRun
    batches: list[Batch]
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)
    memory: int = 0
    count: int = 0

    def step(self) -> None:
        """Make a step at a learning rate of 0."""
        engine, batch = self.run.engine, self.batches[self.count % len(self.batches)]
        with self.run.trainer.precision_plugin.forward_context():
            outputs = engine.teacher_pass.outputs(batch, self.count) if engine.teacher_pass else None
            images, sizes = batch.images, batch.image_sizes
            terms = engine.learner(images, batch.targets, outputs, sizes, batch.labelled, teacher=engine.teacher)
            loss = weighted_sum(terms, engine.balance.weights, LATE)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.count += 1


def step_costs(runs: Mapping[str, AssembledRun]) -> dict[str, StepCost]:
    """Measure a step of each run; they take turns, so that a temporary load on the machine slows down all of them.

    Args:
        runs: new ones by name, which are of no further use: their weights and random numbers have changed.
    """
    contestants = {name: _contestant(run) for name, run in runs.items()}
    device = next(iter(runs.values())).trainer.strategy.root_device
    for each in contestants.values():
        for _ in each.batches:  # allocates memory, picks kernels, fills the cache of the teacher; not counted
            each.step()
        each.memory = peak_memory(each.step, device)
    started = time.perf_counter()
    for done in range(ROUNDS):
        if done >= FEWEST and time.perf_counter() - started > SECONDS:
            break
        for each in contestants.values():
            each.seconds.append(_seconds(each.step, device))
            if isinstance(cache := each.run.engine.teacher_pass, TeacherCache):
                with cache.emptied():
                    each.computed.append(_seconds(each.step, device))
    return {
        name: StepCost(*map(statistics.median, (each.seconds, each.computed or each.seconds)), each.memory)
        for name, each in contestants.items()
    }


def peak_memory(step: Callable[[], None], device: torch.device) -> int:
    """Return the most bytes that PyTorch holds on a device during a step, minus those it held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _silent_libraries(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes), default=0)


@contextlib.contextmanager
def _silent_libraries() -> Generator[None]:
    """Discard what libraries write to standard error without Python: the profiler's log cannot be switched off."""
    sys.stderr.flush()
    try:
        own = os.dup(2)
    except OSError:  # the terminal has been closed
        yield
        return
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)


def _contestant(run: AssembledRun) -> _Contestant:
    engine, device = run.engine, run.trainer.strategy.root_device
    engine.trainer = run.trainer
    engine.setup("fit")
    engine.to(device)
    engine.train()
    batches = []
    for batch in itertools.islice(run.loader, BATCHES):
        if engine.teacher_pass:
            engine.teacher_pass.prepare(batch)
        batches.append(batch.to(device))
    optimizer = engine.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return _Contestant(run, batches, optimizer)


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    before = _now(device)
    step()
    return _now(device) - before


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
