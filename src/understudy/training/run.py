"""Training runs: train a teacher or a plain student, distil a student, and resume an interrupted run.

A run is assembled before its folder is created, so a faulty config leaves nothing behind. Lightning runs the loop over
:class:`.engine.Engine`. The order of the images, the augmentation and the random numbers of a step depend on seed,
epoch, image, step and process alone: a resumed run equals an uninterrupted one to the bit.
"""

import contextlib
import errno
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from understudy.checkpoints import check_weights
from understudy.config import DistillConfig, TrainConfig, dump_config
from understudy.errors import RunError, Stopped, UserError, is_out_of_memory
from understudy.text import shown
from understudy.training.assembly import AssembledRun, assemble, resolve_config
from understudy.training.checkpointing import Interrupted
from understudy.training.console import say
from understudy.training.defaults import derive
from understudy.training.folder import RunFolder
from understudy.training.launching import is_first_process
from understudy.training.resuming import (
    check_data_is_there,
    check_own_methods,
    load_unchanged_config,
    own_methods,
    read_resumable,
    record_resumption,
    requeued,
    same_run,
)
from understudy.training.sources import Sources
from understudy.training.trainer import make_trainer, quiet_lightning


def train(config: TrainConfig) -> Path:
    """Train a detector (a teacher or a plain student) and return its run folder.

    A job that SLURM has requeued continues the run that it finds in its folder.

    Raises:
        UserError: the config does not fit the data, the detector or the machine; nothing was written.
        RunError: the run failed; its folder holds everything up to the last checkpoint.
        Stopped: a signal stopped the run; the message names the command that continues it. A ``KeyboardInterrupt``.
    """
    return _start(config)


def distill(config: DistillConfig) -> Path:
    """Train a student with a teacher and distillation methods, and return its run folder; raises as :func:`train`."""
    return _start(config)


def resume(run: Path, methods: Sequence[str] = (), *, accept_changes: bool = False) -> Path:
    """Continue an interrupted run from its last checkpoint, or from its first step, and return its folder.

    Args:
        run: the folder.
        methods: the user's own methods that may be imported; a run that uses others is refused.
        accept_changes: whether to continue with other data or another teacher than at the start.

    Raises:
        UserError: the folder is not a run, or the run is finished, in use or changed, or reads other data.
        RunError: as :func:`train`.
        Stopped: as :func:`train`.
    """
    with reopened(run, methods, accept_changes=accept_changes) as assembled:
        return fit(assembled)


@contextlib.contextmanager
def reopened(run: Path, methods: Sequence[str] = (), *, accept_changes: bool = False) -> Generator[AssembledRun]:
    """Assemble an interrupted run, whose folder is locked within this block; arguments and errors as :func:`resume`."""
    folder = RunFolder.open(Path(run))
    begun = folder.read_config()
    trainer = make_trainer(begun, folder.path)
    with using_threads(begun.threads), _in_first_process(folder.locked()):
        if folder.result.exists():
            raise UserError(f"{run} is finished. Its evaluation is in {folder.result}.")
        content = read_resumable(folder.last) if folder.last.exists() else None
        saved = content["understudy"] if content else None
        config = load_unchanged_config(folder, saved) if saved else folder.read_config()
        check_own_methods(folder, config, methods)
        check_data_is_there(folder, config)
        assembled = completed(config, folder, trainer, saved, measure=False)
        if content:
            summary = f"The weights in {folder.last} do not fit the run:"
            check_weights(summary, assembled.engine.state_dict(), content["state_dict"])
            assembled.average.check(folder.last, assembled.engine, content)
        notes = record_resumption(folder, assembled.facts, saved, accept_changes) if is_first_process() else []
        yield replace(assembled, notes=(*notes, *assembled.notes))


def _start(config: TrainConfig) -> Path:
    config, folder = resolve_config(config), RunFolder(config.run)
    if requeued() and folder.config.exists() and same_run(config, folder.read_config()):
        return resume(folder.path, own_methods(config))  # the user names them in this config, too
    trainer = make_trainer(config, folder.path)
    if is_first_process():
        folder.check_new()  # at once: opening a large data set takes a while
    with using_threads(config.threads):
        assembled = completed(config, folder, trainer)
        with _in_first_process(folder.created(dump_config(assembled.engine.config), assembled.facts)):
            return fit(assembled)


def completed(
    config: TrainConfig,
    folder: RunFolder,
    trainer: L.Trainer,
    saved: Mapping[str, Any] | None = None,
    *,
    measure: bool = True,
) -> AssembledRun:
    """Choose what a config leaves open, and assemble the run; arguments as of :func:`.assemble` and :func:`.derive`."""
    sources = Sources.of(config)
    derived = derive(config, sources, trainer, measure=measure)
    if isinstance(derived.failure, UserError):
        raise derived.failure  # before weights are downloaded
    assembled = assemble(derived.config, folder, trainer, saved, sources)
    return replace(assembled, notes=(*derived.notes, *assembled.notes, *derived.estimate))


@contextlib.contextmanager
def using_threads(count: int | None) -> Generator[None]:
    """Let PyTorch use so many threads within this block; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_first_process(block: contextlib.AbstractContextManager[None]) -> contextlib.AbstractContextManager[None]:
    return block if is_first_process() else contextlib.nullcontext()


def fit(run: AssembledRun) -> Path:
    """Train an assembled run, whose folder is taken, and return the folder; raises as :func:`train`."""
    if is_first_process():
        teacher_pass = run.engine.teacher_pass
        for note in (*run.notes, *([teacher_pass.note] if teacher_pass and teacher_pass.note else [])):
            say(note)
    torch.set_flush_denormal(True)  # denormal numbers make training on a CPU many times slower
    with quiet_lightning(), _failures_explained(run.folder), run.checkpoints.handling_signals():
        try:
            run.trainer.fit(run.engine, run.loader, ckpt_path=run.folder.last if run.resumed else None)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if (
                isinstance(error, UserError | RunError)
                or not run.resumed
                or run.engine.restored
                or is_out_of_memory(error)
            ):
                raise
            raise UserError(
                f"{run.folder.last} is damaged, so the run cannot continue ({type(error).__name__}: "
                f"{shown(str(error))}). Its detector may still be usable: understudy evaluate {run.folder.path}"
            ) from error
        except Interrupted as stop:
            if not is_first_process():
                raise SystemExit(0) from None  # a launcher kills the first process when another one fails
            raise Stopped(str(stop), stop.number) from None
        run.validate.write_result(run.trainer, run.engine)
    return run.folder.path


_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|peer", re.IGNORECASE)
"""What the backends of ``torch.distributed`` say if another process is gone."""


@contextlib.contextmanager
def _failures_explained(folder: RunFolder) -> Generator[None]:
    """Turn a full disk and a failed allocation into messages with a remedy."""
    try:
        yield
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        if not (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise
        what = f"{error.filename or folder.path}: {error.strerror}." if isinstance(error, OSError) else error
        raise RunError(
            f"The disk is full: {what} Free some space, then run: understudy resume {folder.path}"
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(
                "The device has too little memory for this run. Lower batch_size or data.shorter_side, or use "
                "precision=bf16. With optimizer.scale_lr the learning rate follows the batch size."
            ) from error
        if torch.distributed.is_initialized() and isinstance(error, RuntimeError) and _LOST.search(str(error)):
            raise RunError(
                "The connection to another process of this run was lost: it failed or was ended. Its own message is "
                f"above, or in the log of its machine. ({str(error).splitlines()[0][:200]})"
            ) from error
        raise
