# ty: ignore[incompatible-method-override]  -- Lightning passes two arguments that are not read
"""Train several students side by side: one batch, and one pass of their teacher, serve them all.

Each run has a thread, and the runs take turns, step by step, so that never two of them compute at the same time. A run
is therefore what it would be alone: its random numbers are drawn from its seed and step. Runs that were interrupted at
different steps go on together: those that are ahead wait for the others.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from understudy.config import DistillConfig, TrainConfig, dump_config, filled_from
from understudy.data import Batch
from understudy.errors import RunError, Stopped, UserError
from understudy.training import console
from understudy.training.assembly import AssembledRun, resolve_config
from understudy.training.checkpointing import heeding
from understudy.training.defaults import SHARED_CHOICES
from understudy.training.folder import RunFolder
from understudy.training.progress import ShowProgress
from understudy.training.resuming import own_methods
from understudy.training.run import completed, fit, reopened, using_threads
from understudy.training.teacher_cache import TeacherCache, open_teacher
from understudy.training.teacher_check import CheckTeacher
from understudy.training.teacher_pass import SharedPass
from understudy.training.trainer import make_trainer, quiet_lightning

SHARED = ("data", "seed", "batch_size", "schedule", "precision", "accelerator", "threads")
"""Keys of the config in which the runs must agree."""

SHARED_WITH_TEACHER = (
    "teacher",
    "teacher_scale",
    "pseudo_labels",
    "teacher_check",
    "teacher_cache",
    "teacher_cache_gb",
)
"""The same for those of the runs that have a teacher."""


def train_together(
    runs: Sequence[TrainConfig | Path], methods: Sequence[str] = (), *, accept_changes: bool = False
) -> list[Path | BaseException]:
    """Train students on the same batches, each with its own detector, methods and optimizer, and with one teacher.

    Each run has its folder, and can be resumed alone. A run that fails does not stop the others.

    Args:
        runs: the config of each new run, and the folder of each interrupted one. Some may be plain students.
        methods: the user's own methods that interrupted runs may import, see :func:`.run.resume`.
        accept_changes: likewise.

    Returns:
        For each run its folder, or the exception that ended it.

    Raises:
        UserError: the runs cannot share their batches and their teacher, or one of them is wrong. No new folder was
            written.
        Stopped: a signal stopped the runs; each was saved.
    """
    if not runs:
        raise UserError("train_together got no run; it expects one for each student.")
    configs = [RunFolder.open(run).read_config() if isinstance(run, Path) else resolve_config(run) for run in runs]
    _check(configs := _with_what_others_state(configs))
    with using_threads(configs[0].threads), contextlib.ExitStack() as folders:
        found: dict[int, AssembledRun] = {}
        # First those whose teacher decides the size of the images.
        for number in sorted(range(len(runs)), key=lambda number: not isinstance(configs[number], DistillConfig)):
            run, config = runs[number], configs[number]
            if isinstance(run, Path):
                found[number] = folders.enter_context(
                    reopened(run, _own(config, methods), accept_changes=accept_changes)
                )
                continue
            for other in found.values():  # the first has chosen what all share
                config = filled_from(config, other.engine.config, SHARED_CHOICES)
            found[number] = _assembled(config)
        assembled = [found[number] for number in range(len(runs))]
        _check([run.engine.config for run in assembled])
        for run, parts in zip(runs, assembled, strict=True):
            if not isinstance(run, Path):
                folders.enter_context(parts.folder.created(dump_config(parts.engine.config), parts.facts))
        return _Group.of(assembled).train()


def can_share(one: TrainConfig, other: TrainConfig) -> bool:
    """Return whether two runs can be trained together."""
    return not _faults([one, other])


def _own(config: TrainConfig, methods: Sequence[str]) -> list[str]:
    """Return those of the user's own methods that a run uses."""
    return [name for name in methods if name in own_methods(config)]


def _with_what_others_state(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """Give each run what it leaves open, all share, and another one states."""
    stated = configs[0]
    for other in configs:
        stated = filled_from(stated, other, SHARED_CHOICES)
    return [filled_from(config, stated, SHARED_CHOICES) for config in configs]


def _assembled(config: TrainConfig) -> AssembledRun:
    folder = RunFolder(config.run)
    trainer = make_trainer(config, folder.path)
    folder.check_new()
    return completed(config, folder, trainer, measure=False)


def _check(configs: Sequence[TrainConfig]) -> None:
    if faults := _faults(configs):
        raise UserError.listing("These runs cannot be trained together:", faults)


def _faults(configs: Sequence[TrainConfig]) -> list[str]:
    taught = [config for config in configs if isinstance(config, DistillConfig)]
    faults = [
        f"{key} differs: {', '.join(str(getattr(config, key)) for config in those)}"
        for keys, those in ((SHARED, configs), (SHARED_WITH_TEACHER, taught))
        for key in keys
        if any(getattr(config, key) != getattr(those[0], key) for config in those)
    ]
    if len({config.run for config in configs}) < len(configs):
        faults.append("run: two runs have the same folder")
    faults += [
        f"{config.run}: it needs devices=1 and num_nodes=1"
        for config in configs
        if config.devices != 1 or config.num_nodes != 1
    ]
    return faults


@dataclass(frozen=True, slots=True)
class _Group:
    """Runs that share a loader, a teacher and its passes.

    Attributes:
        runs: in the order of the user.
        turns: whose turn it is.
        batches: that all of them take.
    """

    runs: list[AssembledRun]
    turns: "_Turns"
    batches: "_Batches"

    @classmethod
    def of(cls, runs: Sequence[AssembledRun]) -> "_Group":
        """Let runs share the loader, the teacher, its passes and its check."""
        starts = [run.checkpoints.saved_step for run in runs]
        # Those that are behind go first, so that all runs come to a step in the same round.
        turns = _Turns(sorted(range(len(runs)), key=lambda number: starts[number]))
        taught = [run for run in runs if run.engine.teacher_pass]
        passes: dict[bool, SharedPass] = {}  # of the runs that use kept outputs, which are rounded, and of the others
        for cached in {isinstance(run.engine.teacher_pass, TeacherCache) for run in taught}:
            those = [run.engine for run in taught if isinstance(run.engine.teacher_pass, TeacherCache) is cached]
            config, teacher, data = those[0].config, taught[0].engine.teacher, those[0].data
            assert isinstance(config, DistillConfig)
            assert teacher
            learners = [engine.learner for engine in those]
            passes[cached] = SharedPass(open_teacher(config, learners, teacher, data, those[0].unlabelled))
        loader = (taught or runs)[0].loader  # a teacher may see larger images, which a plain run does not load
        batches = _Batches(loader, starts, runs[0].trainer.strategy.root_device, turns, [*passes.values()])
        bar = _OneBar()
        checks: list[CheckTeacher] = []  # in the order in which the runs begin
        for number in turns.order:
            run = runs[number]
            callbacks: Any = run.trainer.callbacks  # ty: ignore[missing-attribute]
            if own := run.engine.teacher_pass:
                shared = passes[isinstance(own, TeacherCache)]
                run.engine.__dict__["teacher"], run.engine.teacher_pass = shared.teacher, shared
                if labels := run.engine.pseudo_labels:
                    labels.teacher = shared.teacher
                checks += [each for each in callbacks if isinstance(each, CheckTeacher)]
            kept = [each for each in callbacks if not isinstance(each, ShowProgress)]
            callbacks[:] = [_TakeTurns(turns, number), *kept, bar]
        for check in checks[1:]:
            check.teacher = checks[0].teacher  # one teacher in memory
            check.same_as = checks[0]  # read by runs at their first step, and then the first run is at its first
        views = [replace(run, loader=batches.view(number)) for number, run in enumerate(runs)]
        return cls(views, turns, batches)

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


def _stopping_all(runs: Sequence[AssembledRun]) -> contextlib.AbstractContextManager[None]:
    """Pass signals on to all runs, which save and stop after their step."""

    def stop(number: int, frame: Any) -> None:
        for run in runs:
            run.checkpoints.received = run.checkpoints.received or number

    return heeding(stop)


class _Turns:
    """Whose turn it is, among the runs that are not finished."""

    def __init__(self, order: Sequence[int]):
        self.changed, self.order = threading.Condition(), deque(order)

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

    def on_train_start(self, trainer: L.Trainer, engine: Any) -> None:
        """Show the bar of the first run."""
        self.training.append(trainer)
        if len(self.training) == 1:
            super().on_train_start(trainer, engine)

    def on_train_batch_end(self, trainer: L.Trainer, engine: Any, *more: Any) -> None:
        """Advance the bar with one of the runs."""
        if trainer is self.training[0]:
            super().on_train_batch_end(trainer, engine, *more)

    def teardown(self, trainer: L.Trainer, engine: Any, stage: str) -> None:
        """Remove the bar with the last run."""
        if trainer in self.training:
            self.training.remove(trainer)
        if not self.training:
            super().teardown(trainer, engine, stage)


class _View:
    """The loader of one run: the batches that one loader loads for all."""

    def __init__(self, batches: "_Batches", number: int):
        self.batches, self.number = batches, number
        self.sampler = self  # whose epoch Lightning sets; each run may be in another one

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the epoch follows from the number of the batch."""

    def __len__(self) -> int:
        return self.batches.length

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.epoch(self.number)


class _Batches:
    """One loader for several runs, each of which takes every batch once.

    Args:
        loader: of one of the runs.
        starts: for each run, the number of the first batch that it takes.
        device: of the runs.
        turns: of the runs.
        passes: of the teacher.

    Attributes:
        next: the number of the batch that is loaded next.
        taken: for each run that is not finished, the number of the batch that it takes next.
    """

    def __init__(
        self,
        loader: DataLoader,
        starts: Sequence[int],
        device: torch.device,
        turns: _Turns,
        passes: Sequence[SharedPass],
    ):
        self.loader, self.device, self.turns, self.passes = loader, device, turns, passes
        self.length, self.next = len(loader), min(starts)
        self.taken = dict(enumerate(starts))
        self.queues: dict[int, deque[Batch]] = {number: deque() for number in self.taken}
        self.source: Iterator[Batch] | None = None
        self.error: RunError | None = None

    def view(self, number: int) -> Any:
        return _View(self, number)

    def leave(self, number: int) -> None:
        """Give a run no more batches."""
        del self.queues[number], self.taken[number]

    def close(self) -> None:
        """End the workers, as Lightning does for a loader of its own."""
        self.source, self.loader._iterator = None, None

    def epoch(self, number: int) -> Iterator[Batch]:
        """Iterate over what is left of a run's epoch."""
        for _ in range(self.length - self.taken[number] % self.length):
            while not self.queues[number]:
                if self.next < self.taken[number] and any(taken <= self.next for taken in self.taken.values()):
                    self.turns.pass_on(number)  # to the runs that are behind
                else:
                    self._load()
            self.taken[number] += 1
            yield self.queues[number].popleft()

    def _load(self) -> None:
        """Load the next batch for all that take it; an image that cannot be read ends every run with one message."""
        epoch, within = divmod(self.next, self.length)
        try:
            if self.error:
                raise self.error
            if self.source is None or not within:
                sampler: Any = self.loader.sampler
                sampler.set_epoch(epoch)
                sampler.start = within
                self.source = iter(self.loader)
            batch = next(self.source)
        except RunError as error:
            self.error = error
            raise
        for each in self.passes:
            each.source.prepare(batch)
        batch = batch.to(self.device)  # resized once for all
        for number, queue in self.queues.items():
            if self.taken[number] <= self.next:
                queue.append(batch)
        self.next += 1
