"""Lightning's trainer for a config, and its messages."""

import contextlib
import logging
import os
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from understudy.checkpoints import write_checkpoint
from understudy.config import TrainConfig
from understudy.errors import UserError
from understudy.training.launching import OneProcess, adopt_rank, cluster_environment

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def make_trainer(config: TrainConfig, folder: Path) -> L.Trainer:
    """Make Lightning's trainer, without callbacks; from then on the rank of this process is known.

    Args:
        config: the run's config.
        folder: the run folder.

    Raises:
        UserError: the devices, the precision or the launcher's processes are not as the config asks.
    """
    try:
        with quiet_lightning():
            devices = _count(config.accelerator) if config.devices == "auto" else config.devices
            environment = cluster_environment(devices, config.num_nodes)
            trainer = L.Trainer(
                accelerator=config.accelerator,
                devices=devices,
                num_nodes=config.num_nodes,
                strategy=config.strategy,
                precision=PRECISIONS[config.precision],
                max_epochs=-1,  # set when the config is complete; see `assemble`
                gradient_clip_val=config.optimizer.clip_norm,
                sync_batchnorm=config.detector.norm == "sync",
                plugins=[_AtomicCheckpoints(), *([environment] if environment else [])],
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            if isinstance(trainer.strategy, ParallelStrategy) and trainer.strategy.cluster_environment:
                trainer.strategy.cluster_environment.validate_settings(devices, config.num_nodes)
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:  # the last: a TPU's package
        raise UserError(
            f"accelerator={config.accelerator} devices={config.devices} strategy={config.strategy} "
            f"precision={config.precision} is not available on this machine: {error}"
        ) from error
    if config.num_nodes > 1 and not _has_launcher():
        raise UserError(
            f"num_nodes={config.num_nodes} needs a launcher that starts the command on every machine; this process "
            "would wait for the others without end. Use SLURM (srun), or on each machine: torchrun "
            f"--nnodes={config.num_nodes} --node-rank=NUMBER --master-addr=FIRST_MACHINE -m understudy ..."
        )
    adopt_rank(trainer)
    trainer._signal_connector = _NoSignals(trainer)
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if config.precision == "16" and on_cpu:
        raise UserError("precision=16 needs a GPU, but this run is on the CPU. Use precision=32 or precision=bf16.")
    if config.detector.norm == "sync" and on_cpu and isinstance(trainer.strategy, ParallelStrategy):
        raise UserError(
            "detector.norm=sync needs GPUs: PyTorch cannot synchronise batch normalisation between CPU processes. Use "
            "detector.norm=batch (statistics of each process's own images), eval or frozen."
        )
    return trainer


def _has_launcher() -> bool:
    """Return whether the environment tells this process its place among the machines of a run."""
    known = ("SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "LSB_JOBID", "OMPI_COMM_WORLD_RANK")
    return any(name in os.environ for name in known)


def _count(accelerator: str) -> int:
    """Return the number of available devices."""
    found = L.Trainer(
        accelerator=accelerator,
        devices="auto",
        plugins=[OneProcess()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return found.num_devices


@contextlib.contextmanager
def quiet_lightning() -> Generator[None]:
    """Suppress Lightning's notes and advice; the run prints what a user needs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.utils.data")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written completely or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)


class _NoSignals(_SignalConnector):
    """Leaves signals to the run, which saves first.

    Lightning's own handlers end the training without saving, broadcast within a signal handler, and requeue jobs of
    SLURM themselves.
    """

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False
