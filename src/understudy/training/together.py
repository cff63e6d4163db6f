# ty: ignore[incompatible-method-override]  -- Lightning passes two arguments that are not read
"""Train several students of one teacher side by side: one batch and one pass of the teacher serve them all.

Each run has a thread, and the runs take turns, step by step, so that never two of them compute at the same time. A run
is therefore what it would be alone: its random numbers are drawn from its seed and step.
"""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from understudy.config import DistillConfig, TrainConfig, dump_config
from understudy.data import Batch
from understudy.errors import RunError, Stopped, UserError
from understudy.outputs import Needs, Outputs
from understudy.training import console
from understudy.training.assembly import AssembledRun, assemble, resolve_config
from understudy.training.checkpointing import STOPPING
from understudy.training.engine import Engine
from understudy.training.folder import RunFolder
from understudy.training.progress import ShowProgress
from understudy.training.run import fit
from understudy.training.teacher_check import CheckTeacher
from understudy.training.trainer import make_trainer, quiet_lightning

SHARED = ("data", "teacher", "seed", "batch_size", "schedule", "precision", "accelerator", "teacher_check")
"""Keys of the config in which the runs must agree."""


def distill_together(configs: Sequence[DistillConfig]) -> list[Path | BaseException]:
    """Train students of one teacher on the same batches, each with its own detector, methods and optimizer.

    Each run has its folder, and can be resumed alone. A run that fails does not stop the others.

    Returns:
        For each config its run folder, or the exception that ended it.

    Raises:
        UserError: the configs cannot share their batches and their teacher, or one of them is wrong. Nothing was
            written.
        Stopped: a signal stopped the runs; each was saved.
    """
    resolved = [resolve_config(config) for config in configs]
    _check(resolved)
    runs: list[AssembledRun] = []
    for config in resolved:
        folder = RunFolder(config.run)
        trainer = make_trainer(config, folder.path)
        folder.check_new()
        runs.append(assemble(config, folder, trainer))
    group = _Group.of(runs)
    with contextlib.ExitStack() as folders:
        for run in runs:
            folders.enter_context(run.folder.created(dump_config(run.engine.config), run.facts))
        return group.train()


def _check(configs: Sequence[TrainConfig]) -> None:
    if not configs:
        raise UserError("distill_together got no config; it expects one for each student.")
    faults = [
        f"{key} differs: {', '.join(str(getattr(config, key)) for config in configs)}"
        for key in SHARED
        if any(getattr(config, key) != getattr(configs[0], key) for config in configs)
    ]
    if len({config.run for config in configs}) < len(configs):
        faults.append("run: two runs have the same folder")
    for config in configs:
        if config.devices != 1 or config.num_nodes != 1:
            faults.append(f"{config.run}: it needs devices=1 and num_nodes=1")
        if isinstance(config, DistillConfig) and config.teacher_cache != "off":
            faults.append(f"{config.run}: teacher_cache is for single runs, set teacher_cache=off")
    if faults:
        raise UserError.listing("These runs cannot be trained together:", faults)


@dataclass(frozen=True, slots=True)
class _Group:
    """Runs that share a loader, a teacher and its passes.

    Attributes:
        runs: in the order of their turns.
        turns: whose turn it is.
        batches: that all of them take.
    """

    runs: list[AssembledRun]
    turns: "_Turns"
    batches: "_Batches"

    @classmethod
    def of(cls, runs: Sequence[AssembledRun]) -> "_Group":
        """Let runs share the loader, the teacher, its passes and its check."""
        group = cls([], _Turns(len(runs)), _Batches(runs[0].loader, len(runs), runs[0].trainer.strategy.root_device))
        passes = _Passes(_union([run.engine.learner.needs for run in runs]))
        check: CheckTeacher | None = None
        bar = _OneBar()
        for number, run in enumerate(runs):
            run.engine.__dict__["teacher"] = runs[0].engine.teacher
            run.engine.shared_pass = passes
            callbacks: Any = run.trainer.callbacks  # ty: ignore[missing-attribute]
            own = next(each for each in callbacks if isinstance(each, CheckTeacher))
            own.same_as, check = check, check or own
            own.teacher = check.teacher  # one teacher in memory
            kept = [each for each in callbacks if not isinstance(each, ShowProgress)]
            callbacks[:] = [_TakeTurns(group.turns, number), *kept, bar]
            group.runs.append(replace(run, loader=group.batches.view(number)))
        return group

    def train(self) -> list[Path | BaseException]:
        """Run every run in a thread, and return its folder or its exception."""
        found: list[Path | BaseException] = [RunError("not finished")] * len(self.runs)
        threads = torch.get_num_threads()

        def run_one(number: int) -> None:
            torch.set_num_threads(threads)  # each thread has its own number
            console.PREFIX.set(f"{self.runs[number].folder.path.name}: ")
            self.turns.wait(number)
            try:
                found[number] = fit(self.runs[number])
            except BaseException as error:
                found[number] = error
                if not isinstance(error, Stopped):  # whose message comes at the end
                    console.say(f"failed: {error or type(error).__name__}")
            finally:
                self.batches.leave(number)
                self.turns.leave(number)

        workers = [threading.Thread(target=run_one, args=(number,)) for number in range(len(self.runs))]
        with quiet_lightning(), _stopping_all(self.runs):
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.05)  # signals are handled in between
        self.batches.close()
        if stops := [each for each in found if isinstance(each, Stopped)]:
            raise Stopped("\n".join(map(str, stops)), stops[0].exit_code - 128)
        return found


def _union(needs: Sequence[Needs]) -> Needs:
    """Return what is needed to serve all."""
    parts = [each.parts for each in needs]
    levels = [each.levels for each in needs]
    return Needs(
        None if None in parts else frozenset(part for each in parts for part in each or ()),
        None if None in levels else tuple(sorted({level for each in levels for level in each or ()})),
        tuple(sorted({number for each in needs for number in each.convolutions})),
    )


@contextlib.contextmanager
def _stopping_all(runs: Sequence[AssembledRun]) -> Generator[None]:
    """Pass signals on to all runs, which save and stop after their step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for run in runs:
            run.checkpoints.received = run.checkpoints.received or number

    heeded = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class _Turns:
    """Whose turn it is, among the runs that are not finished."""

    def __init__(self, count: int):
        self.changed, self.order = threading.Condition(), deque(range(count))

    def wait(self, number: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.order[0] == number)

    def pass_on(self, number: int) -> None:
        with self.changed:
            self.order.rotate(-1)
            self.changed.notify_all()
        self.wait(number)

    def leave(self, number: int) -> None:
        with self.changed:
            self.order.remove(number)
            self.changed.notify_all()


class _TakeTurns(L.Callback):
    """Pass the turn on after each step, with what belongs to it: its row, its checkpoint, its evaluation."""

    def __init__(self, turns: _Turns, number: int):
        self.turns, self.number, self.stepped = turns, number, False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Wait for the own turn."""
        if self.stepped:
            self.turns.pass_on(self.number)
        self.stepped = True


class _OneBar(ShowProgress):
    """One progress bar for all runs: it shows the first of those that still train, since a run may stop early."""

    def __init__(self) -> None:
        super().__init__()
        self.training: list[L.Trainer] = []

    def on_train_start(self, trainer: L.Trainer, engine: Engine) -> None:
        """Show the bar of the first run."""
        self.training.append(trainer)
        if len(self.training) == 1:
            super().on_train_start(trainer, engine)

    def on_train_batch_end(self, trainer: L.Trainer, engine: Engine, *more: Any) -> None:
        """Advance the bar with one of the runs."""
        if trainer is self.training[0]:
            super().on_train_batch_end(trainer, engine, *more)

    def teardown(self, trainer: L.Trainer, engine: Engine, stage: str) -> None:
        """Remove the bar with the last run."""
        if trainer in self.training:
            self.training.remove(trainer)
        if not self.training:
            super().teardown(trainer, engine, stage)


class _Passes:
    """The teacher's record of the last step, which the first run computes for all."""

    def __init__(self, needs: Needs):
        self.needs = needs
        self.step, self.last = -1, Outputs([], [])

    def outputs(self, engine: Engine, batch: Batch) -> Outputs:
        if engine.global_step != self.step:
            assert engine.teacher is not None
            self.last = engine.teacher(batch.images, batch.image_sizes, needs=self.needs)
            self.step = engine.global_step
        return self.last


@dataclass
class _View:
    """The loader of one run: the batches that one loader loads for all."""

    batches: "_Batches"
    number: int

    @property
    def sampler(self) -> Any:
        return self.batches.loader.sampler

    def __len__(self) -> int:
        return len(self.batches.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.epoch(self.number)


class _Batches:
    """One loader for several runs, each of which takes every batch once."""

    def __init__(self, loader: DataLoader, count: int, device: torch.device):
        self.loader, self.device = loader, device
        self.queues: dict[int, deque[Batch]] = {number: deque() for number in range(count)}
        self.epochs = [0] * count
        self.source: Iterator[Batch] = iter(())
        self.error: RunError | None = None
        self.started = 0

    def view(self, number: int) -> Any:
        return _View(self, number)

    def leave(self, number: int) -> None:
        """Give a run no more batches."""
        del self.queues[number]

    def close(self) -> None:
        """End the workers, as Lightning does for a loader of its own."""
        self.source, self.loader._iterator = iter(()), None

    def epoch(self, number: int) -> Iterator[Batch]:
        """Iterate over the next epoch of a run; the first run that begins it starts the loader."""
        self.epochs[number] += 1
        if self.epochs[number] > self.started:
            self.started += 1
            self.source = iter(self.loader)
        for _ in range(len(self.loader)):
            if not self.queues[number]:
                self._load()
            yield self.queues[number].popleft()

    def _load(self) -> None:
        """Load the next batch for all; an image that cannot be read ends every run with the same message."""
        try:
            if self.error:
                raise self.error
            batch = next(self.source).to(self.device)  # resized once for all
        except RunError as error:
            self.error = error
            raise
        for queue in self.queues.values():
            queue.append(batch)
