"""Training runs: train a teacher or a plain student, distil a student, and resume an interrupted run.

A run is assembled before its folder is created, so a faulty config leaves nothing behind. Lightning runs the loop over
:class:`.engine.Engine`. The order of the images, the augmentation and the random numbers of a step depend on seed,
epoch, image, step and process alone: a resumed run equals an uninterrupted one to the bit.
"""

import contextlib
import errno
from collections.abc import Generator
from pathlib import Path

import torch
from rich.markup import escape

from understudy.checkpoints import read_checkpoint
from understudy.config import DistillConfig, TrainConfig, dump_config
from understudy.errors import RunError, UserError
from understudy.files import drop_rows_after
from understudy.training.assembly import AssembledRun, assemble, resolve_config
from understudy.training.checkpointing import Interrupted
from understudy.training.console import say
from understudy.training.folder import RunFolder, is_first_process
from understudy.training.resuming import load_unchanged_config
from understudy.training.trainer import quiet_lightning


def train(config: TrainConfig) -> Path:
    """Train a detector (a teacher or a plain student) and return its run folder.

    Raises:
        UserError: the config does not fit the data, the detector or the machine; nothing was written.
        RunError: the run failed; its folder holds everything up to the last checkpoint.
        KeyboardInterrupt: the user stopped the run; the message names the command that continues it.
    """
    return _start(config)


def distill(config: DistillConfig) -> Path:
    """Train a student with a teacher and distillation methods, and return its run folder; raises as :func:`train`."""
    return _start(config)


def resume(run: Path) -> Path:
    """Continue an interrupted run from its last checkpoint, and return its folder.

    Raises:
        UserError: the folder is not a run, or the run is finished, in use, without a checkpoint, or changed.
        RunError: as :func:`train`.
        KeyboardInterrupt: as :func:`train`.
    """
    folder = RunFolder.open(Path(run))
    with folder.locked():
        if folder.result.exists():
            raise UserError(f"{run} is finished. Its evaluation is in {folder.result}.")
        if not folder.last.exists():
            raise UserError(
                f"{run} has no checkpoint: it was stopped before the first was saved. Delete the folder and start the "
                "run again."
            )
        saved = read_checkpoint(folder.last)["understudy"]
        assembled = assemble(load_unchanged_config(folder, saved), folder, saved)
        if is_first_process():
            for file in (folder.losses, folder.metrics):
                drop_rows_after(file, saved["step"])
        return _fit(assembled)


def _start(config: TrainConfig) -> Path:
    folder = RunFolder(config.run)
    assembled = assemble(resolve_config(config), folder)
    if is_first_process():
        RunFolder.create(config.run, dump_config(assembled.engine.config), assembled.facts)
    with folder.locked():
        return _fit(assembled)


def _fit(run: AssembledRun) -> Path:
    if is_first_process():
        for note in run.notes:
            say(escape(note))
    torch.set_flush_denormal(True)  # denormal numbers make training on a CPU many times slower
    with quiet_lightning(), _failures_explained(run.folder), run.checkpoints.handling_interrupts():
        try:
            run.trainer.fit(run.engine, run.loader, ckpt_path=run.folder.last if run.resumed else None)
        except Interrupted as stop:
            raise KeyboardInterrupt(str(stop)) from None
        run.validate.write_result(run.trainer, run.engine)
    return run.folder.path


@contextlib.contextmanager
def _failures_explained(folder: RunFolder) -> Generator[None]:
    """Turn a full disk and a failed allocation into messages with a remedy."""
    try:
        yield
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        if not (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise
        saved, path = folder.last.exists(), folder.path
        remedy = f"run: understudy resume {path}" if saved else f"delete {path} and start the run again."
        raise RunError(f"The disk is full: {error} Free some space, then {remedy}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The device has too little memory for this run. Lower batch_size or data.shorter_side, or use "
            "precision=bf16."
        ) from error
