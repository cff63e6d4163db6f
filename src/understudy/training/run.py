"""Training runs: train a teacher or a plain student, distil a student, and resume an interrupted run.

A run is assembled before its folder is created, so a faulty config leaves nothing behind. Lightning runs the loop over
:class:`.engine.Engine`. The order of the images, the augmentation and the random numbers of a step depend on seed,
epoch, image, step and process alone: a resumed run equals an uninterrupted one to the bit.
"""

import contextlib
import errno
import re
from collections.abc import Generator, Sequence
from pathlib import Path

import torch

from understudy.checkpoints import check_weights
from understudy.config import DistillConfig, TrainConfig, dump_config
from understudy.errors import RunError, UserError, is_out_of_memory
from understudy.files import drop_rows_after
from understudy.text import shown
from understudy.training.assembly import AssembledRun, assemble, resolve_config
from understudy.training.checkpointing import Interrupted
from understudy.training.console import say
from understudy.training.folder import RunFolder, is_first_process
from understudy.training.resuming import check_own_methods, load_unchanged_config, read_resumable
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


def resume(run: Path, methods: Sequence[str] = ()) -> Path:
    """Continue an interrupted run from its last checkpoint, and return its folder.

    Args:
        run: the folder.
        methods: the user's own methods that may be imported; a run that uses others is refused.

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
        content = read_resumable(folder.last)
        saved = content["understudy"]
        config = load_unchanged_config(folder, saved)
        check_own_methods(folder, config, methods)
        assembled = assemble(config, folder, saved)
        summary = f"The weights in {folder.last} do not fit the run:"
        check_weights(summary, assembled.engine.state_dict(), content["state_dict"])
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
            say(note)
    torch.set_flush_denormal(True)  # denormal numbers make training on a CPU many times slower
    with quiet_lightning(), _failures_explained(run.folder), run.checkpoints.handling_interrupts():
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
            raise KeyboardInterrupt(str(stop)) from None
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
        saved, path = folder.last.exists(), folder.path
        remedy = f"run: understudy resume {path}" if saved else f"delete {path} and start the run again."
        raise RunError(f"The disk is full: {error} Free some space, then {remedy}") from error
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
